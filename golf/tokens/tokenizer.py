"""SentencePiece tokenizers: training with the challenge's settings, encoding, counting bytes of tokens."""

import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from rich.progress import Progress
from torch import Tensor

from golf.errors import UserError
from golf.terminal import console

SPACE = "\u2581"  # SentencePiece's mark of a space before a piece
PAD_ID, BOS_ID, EOS_ID, UNK_ID = 0, 1, 2, 3
# The trainer drops sentences over 4,192 bytes without a word; this many characters are at most 4,000 bytes.
LINE_CHARACTERS = 1000
BATCH_CHARACTERS = 4_000_000
SETTINGS: dict[str, Any] = {  # of the challenge's exporter
    "model_type": "bpe",
    "character_coverage": 0.999,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": False,
    "pad_id": PAD_ID,
    "bos_id": BOS_ID,
    "eos_id": EOS_ID,
    "unk_id": UNK_ID,
    "hard_vocab_limit": False,
    "minloglevel": 2,
}
# Ways to unify characters that keep their case; the challenge's tokenizers have the first.
NORMALISERS = ("nmt_nfkc", "nfkc", "identity")
WAIT_FOR_BYTES = "nothing here counts the bytes of the text before that; use a tokenizer of the text as it is"


def training_lines(documents: Iterable[str]) -> Iterator[str]:
    """Documents cut into lines of at most LINE_CHARACTERS, at white space where there is some."""
    for text in documents:
        start = 0
        while len(text) - start > LINE_CHARACTERS:
            stop = start + LINE_CHARACTERS
            cut = max(text.rfind(" ", start + 1, stop), text.rfind("\n", start + 1, stop))
            cut = cut if cut > start else stop
            yield text[start:cut]
            start = cut
        yield text[start:]


def train_tokenizer(documents: Iterable[str], vocab_size: int, path: Path) -> None:
    """Train SentencePiece BPE with the settings of the challenge's exporter and write the model to `path`.

    The bytes written depend on the documents and vocab_size only. Text with few spaces or none (DNA, Chinese) gets a
    token for the space all the same, without which its bytes cannot be counted. Raises UserError when the text cannot
    give a vocabulary of exactly this size. Source: openai/parameter-golf, data/download_hf_docs_and_tokenize.py.
    """
    texts = list(documents)
    model = _trained(texts, vocab_size)
    if _lacks_space(model):  # not at once for all: the settings stand in the file, and its bytes name the data
        model = _trained(texts, vocab_size, required_chars=SPACE)
    reached = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    if reached != vocab_size:
        raise UserError(
            f"data.vocab_size={vocab_size} is more than this text can fill; set data.vocab_size={reached} or "
            "less, or give more text"
        )
    path.write_bytes(model)


def _trained(documents: list[str], vocab_size: int, **more: Any) -> bytes:
    """The file of a trained model. more: settings beyond the challenge's."""
    model = io.BytesIO()  # no path of this machine gets into the model
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=training_lines(documents), model_writer=model, vocab_size=vocab_size, **(SETTINGS | more)
        )
    except RuntimeError as error:
        needed = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
        fix = f"its characters and the 256 bytes need at least {needed[1]}" if needed else str(error)
        raise UserError(f"data.vocab_size={vocab_size}: no tokenizer can be trained on this text: {fix}") from None
    return model.getvalue()


def _lacks_space(model: bytes) -> bool:
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=model)
    return bool(tokenizer.is_unknown(tokenizer.piece_to_id(SPACE)))


def load_tokenizer(path: Path) -> sentencepiece.SentencePieceProcessor:
    """Open a .model file; UserError where it is missing or not one."""
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a SentencePiece model that can be read ({reason}); prepare the data again"
        ) from None


def encode_documents(path: Path, documents: list[str], label: str) -> Iterator[np.ndarray]:
    """Yield each document as BOS and its tokens (1 + n,) uint16, in order and without EOS, as upstream does.

    SentencePiece's own threads share each batch out over the cores, as upstream's exporter does.
    """
    tokenizer = load_tokenizer(path)
    bos_id, threads = tokenizer.bos_id(), os.cpu_count() or 1
    out = console(to_stderr=True)
    with Progress(console=out, disable=not out.is_terminal) as progress:
        task = progress.add_task(f"encoding {label}", total=sum(map(len, documents)))
        for batch in _batches(documents):
            for ids in tokenizer.encode(batch, out_type=int, num_threads=threads):
                yield np.array([bos_id, *ids], dtype=np.uint16)
            progress.advance(task, sum(map(len, batch)))


def _batches(documents: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _refuse_transformed(path: Path, tokenizer: sentencepiece.SentencePieceProcessor) -> None:
    """Raise UserError for tokenizers of transformed text, whose bytes are not those of the original.

    Private-use characters in pieces are marks that a transform put into the text (CaseOps, PR 1729), and count 3 bytes
    each where the original has none; a normaliser that folds case makes another text (PR 1873).
    """
    for index in range(tokenizer.vocab_size()):
        piece = tokenizer.id_to_piece(index)
        if any(unicodedata.category(character) == "Co" for character in piece):
            raise UserError(f"{path}: piece {index}, {piece!a}, marks a transform of the text; {WAIT_FOR_BYTES}")
    if _without_spaces(tokenizer.normalize(_characters())) not in _normalised():
        raise UserError(f"{path}: its normaliser changes letters (it folds case, it seems); {WAIT_FOR_BYTES}")


def check_symbols(path: Path) -> None:
    """Raise UserError for a tokenizer whose own symbols, or whose way back to text, mark a transform of the text.

    A user-defined symbol is a mark unless it is white space, which stands for itself.
    """
    from sentencepiece import sentencepiece_model_pb2  # a submission counts bytes without it

    proto: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    model = proto.ModelProto.FromString(path.read_bytes())
    if model.denormalizer_spec.precompiled_charsmap:
        raise UserError(f"{path}: changes text again where it decodes; {WAIT_FOR_BYTES}")
    for index, piece in enumerate(model.pieces):
        symbol = piece.piece.replace(SPACE, " ")
        if piece.type == proto.ModelProto.SentencePiece.USER_DEFINED and not symbol.isspace():
            raise UserError(
                f"{path}: piece {index}, {symbol!a}, is a user-defined symbol, which marks a transform of the text; "
                + WAIT_FOR_BYTES
            )


@cache
def _characters() -> str:
    """All letters, digits and signs of Unicode's first plane."""
    return "".join(c for c in map(chr, range(1 << 16)) if unicodedata.category(c)[0] in "LNPS")


@cache
def _normalised() -> set[str]:
    """_characters as the normalisers that keep them give them back."""
    rules = (sentencepiece.SentencePieceNormalizer(rule_name=name) for name in NORMALISERS)
    return {_without_spaces(rule.normalize(_characters())) for rule in rules}


def _without_spaces(text: str) -> str:
    """A text without the spaces that settings other than the rule put in or take out."""
    return text.replace(SPACE, "").replace(" ", "")


class ByteCounter:
    """How many UTF-8 bytes of text each token stands for: the denominator of bits per byte.

    A piece counts its UTF-8 length without its leading U+2581, a byte piece 1, a control, unknown or unused
    piece 0. The mark counts 1 more, unless the token before is control, unknown or unused (a document's first
    word has no space before it). With the mark in the table as well it would count twice, as in PR 1698.
    Source: the challenge's train_gpt.py.
    """

    def __init__(self, base_V: Tensor, mark_V: Tensor, boundary_V: Tensor) -> None:
        """base_V int64: bytes but for the mark; mark_V bool: begins with it; boundary_V bool: control etc."""
        self.base_V, self.mark_V, self.boundary_V = base_V, mark_V, boundary_V

    @classmethod
    def from_tokenizer(cls, path: Path) -> "ByteCounter":
        """Tables of a .model file. UserError for tokenizers whose bytes the rule cannot count exactly."""
        tokenizer = load_tokenizer(path)
        ids = range(tokenizer.vocab_size())
        _refuse_transformed(path, tokenizer)
        if sum(map(tokenizer.is_byte, ids)) != 256:
            raise UserError(
                f"{path}: has no byte fallback, so unknown characters have no bytes to count; use a "
                "tokenizer trained with byte_fallback=True (fineweb_1024_bpe.model is, *_cipfi.model are not)"
            )
        if tokenizer.is_unknown(tokenizer.piece_to_id(SPACE)):
            raise UserError(
                f"{path}: U+2581 alone is not a token, so spaces have no token; use one that was trained with "
                "required_chars, as data=text does"
            )
        boundary = [tokenizer.is_control(i) or tokenizer.is_unknown(i) or tokenizer.is_unused(i) for i in ids]
        base, mark = [], []
        for i in ids:
            piece = tokenizer.id_to_piece(i)
            if boundary[i] or tokenizer.is_byte(i):
                base.append(0 if boundary[i] else 1)
                mark.append(False)
                continue
            if SPACE in piece[1:]:
                raise UserError(f"{path}: piece {piece!r} has a space inside; train it with split_by_whitespace=True")
            base.append(len(piece.removeprefix(SPACE).encode()))
            mark.append(piece.startswith(SPACE))
        return cls(torch.tensor(base), torch.tensor(mark), torch.tensor(boundary))

    def to(self, device: torch.device | str) -> "ByteCounter":
        """The same tables on another device."""
        return ByteCounter(self.base_V.to(device), self.mark_V.to(device), self.boundary_V.to(device))

    def count(self, previous: Tensor, target: Tensor) -> Tensor:
        """Bytes of each target given the token before it; int64 of any one shape, on the tables' device."""
        return self.base_V[target] + (self.mark_V[target] & ~self.boundary_V[previous])

    def stream_bytes(self, tokens: np.ndarray) -> np.ndarray:
        """Bytes (n - 1,) int64 of tokens[1:], each given its predecessor; tables on the CPU."""
        ids = torch.from_numpy(tokens.astype(np.int64))
        return self.count(ids[:-1], ids[1:]).numpy()

    def total(self, chunks: Iterable[np.ndarray]) -> int:
        """Bytes of a whole stream, in consecutive chunks, but for its first token (a BOS, which has none)."""
        total, last = 0, np.empty(0, dtype=np.uint16)
        for chunk in chunks:
            total += int(self.stream_bytes(np.concatenate([last, chunk])).sum())
            last = chunk[-1:]
        return total
