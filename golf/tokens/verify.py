"""The deep check of a prepared folder: everything that `Prepared.check` does not read."""

from collections.abc import Iterator
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np

from golf.errors import UserError
from golf.tokens.prepare import Log, Prepared, Split
from golf.tokens.shards import TokenStream, check_ids
from golf.tokens.tokenizer import ByteCounter, load_tokenizer

DECODE_DOCUMENTS = 256  # decoded at once


def verify_prepared(prepared: Prepared, log: Log = print) -> None:
    """Hashes, headers, ids, bytes by the rule against bytes of decoded text, no document in two splits.

    Raises UserError at the first fault. Splits with uncounted documents (FineWeb's train) are not decoded.
    """
    prepared.verify()
    counter = ByteCounter.from_tokenizer(prepared.tokenizer)
    home: dict[bytes, str] = {}  # of each document, by the hash of its tokens
    for name, split in prepared.splits.items():
        for path in split.shards:
            check_ids(path, prepared.vocab_size)
        if split.documents is None:
            log(f"{name}: {split.tokens} tokens, ids and hashes agree; documents not compared")
            continue
        _check_bytes(prepared, name, split, counter)
        for document in documents_of(split, prepared.bos_id):
            first = home.setdefault(sha256(document.tobytes()).digest(), name)
            # A published set may repeat a document within a split; in two splits is what must not be.
            if first != name:
                text = load_tokenizer(prepared.tokenizer).decode(document[1:].tolist())[:60]
                where = f"{prepared.folder}: a document is in {first} and in {name}"
                raise UserError(f"{where}: {text!r}; prepare it again")
        counts = f"{split.tokens} tokens, {split.documents} documents, {split.bytes} bytes"
        log(f"{name}: {counts}, as in the decoded text")


def documents_of(split: Split, bos_id: int) -> Iterator[np.ndarray]:
    """Each document's tokens (1 + n,) uint16, its BOS first."""
    stream = TokenStream(split.shards)
    bounds = stream.document_bounds(bos_id).tolist()
    for start, stop in pairwise(bounds):
        yield stream.read(start, stop)


def decoded_bytes(tokenizer: Path, bos_id: int, tokens: np.ndarray) -> int:
    """UTF-8 bytes of the text that a stream decodes to, document by document."""
    pieces = [piece for piece in np.split(tokens, np.flatnonzero(tokens == bos_id)) if len(piece)]
    texts = load_tokenizer(tokenizer).decode([piece[piece != bos_id].tolist() for piece in pieces])
    return sum(len(text.encode()) for text in texts)


def _check_bytes(prepared: Prepared, name: str, split: Split, counter: ByteCounter) -> None:
    counted = counter.total(TokenStream(split.shards).chunks())
    tokenizer, decoded, batch = load_tokenizer(prepared.tokenizer), 0, []
    for document in documents_of(split, prepared.bos_id):
        batch.append(document[1:].tolist())
        if len(batch) == DECODE_DOCUMENTS:
            decoded += sum(len(text.encode()) for text in tokenizer.decode(batch))
            batch = []
    decoded += sum(len(text.encode()) for text in tokenizer.decode(batch)) if batch else 0
    if not counted == decoded == split.bytes:
        raise UserError(
            f"{prepared.folder}: split {name} has {counted} bytes by the rule, {decoded} in its decoded text "
            f"and {split.bytes} in the manifest; prepare it again, with a tokenizer of the stock settings"
        )
