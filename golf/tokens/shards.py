"""The challenge's shard format, and several shards read as one stream.

A shard is 256 little-endian int32 (magic, version, token count, zeros) and then one uint16 a token
(openai/parameter-golf, data/README.md).
"""

import hashlib
import os
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from golf.alive import written_beside
from golf.errors import UserError

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
SHARD_TOKENS = 100_000_000  # as upstream's export cuts them
CHUNK_TOKENS = 1 << 22  # what a scan holds in memory at once


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Write tokens (n,) as one shard, under a temporary name first so that no reader sees half of it."""
    if tokens.dtype != np.uint16 and tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < 1 << 16:
        raise UserError(
            f"{path}: token ids {tokens.min()} .. {tokens.max()} do not fit uint16; use a smaller vocabulary"
        )
    header = np.zeros(256, dtype="<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    with written_beside(path) as temporary, temporary.open("wb") as file:
        file.write(header.tobytes())
        file.write(tokens.astype("<u2", copy=False).tobytes())


def write_shards(folder: Path, name: str, pieces: Iterable[np.ndarray], shard_tokens: int = SHARD_TOKENS) -> list[Path]:
    """Write a stream of token arrays as folder/name_000000.bin, ...; all but the last hold shard_tokens."""
    paths: list[Path] = []
    held: list[np.ndarray] = []
    count = 0

    def flush(tokens: np.ndarray) -> None:
        paths.append(folder / f"{name}_{len(paths):06d}.bin")
        write_shard(paths[-1], tokens)

    for piece in pieces:
        held.append(piece)
        count += len(piece)
        while count >= shard_tokens:
            tokens = np.concatenate(held)
            flush(tokens[:shard_tokens])
            held, count = [tokens[shard_tokens:]], count - shard_tokens
    if count:
        flush(np.concatenate(held))
    return paths


def open_shard(path: Path) -> np.ndarray:
    """Open a shard as a read-only memory map (n,) of uint16; each way to be wrong is its own UserError."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = np.frombuffer(file.read(HEADER_BYTES), dtype=np.uint8)
    except OSError as error:
        raise UserError(f"{path}: shard cannot be read ({error.strerror}); prepare the data again") from None
    if len(header) < HEADER_BYTES:
        raise UserError(
            f"{path}: {size} bytes are too few for a shard's header of {HEADER_BYTES}; prepare the data again"
        )
    magic, version, count = (int(value) for value in header.view("<i4")[:3])
    if magic != MAGIC:
        raise UserError(f"{path}: magic number {magic}, not {MAGIC}; this is not a token shard")
    if version != VERSION:
        raise UserError(f"{path}: shard version {version}, this code reads version {VERSION}; prepare the data again")
    if count <= 0:
        raise UserError(f"{path}: the header says {count} tokens; prepare the data again")
    expected = HEADER_BYTES + 2 * count
    if size != expected:
        fault = "truncated" if size < expected else "has trailing bytes"
        raise UserError(f"{path}: {fault}: {count} tokens need {expected} bytes, the file has {size}; prepare it again")
    return np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def check_ids(path: Path, vocab_size: int) -> None:
    """Raise UserError unless every token id of the shard is below vocab_size; reads the whole shard."""
    tokens = open_shard(path)
    for start in range(0, len(tokens), CHUNK_TOKENS):
        chunk = tokens[start : start + CHUNK_TOKENS]
        if int(chunk.max()) >= vocab_size:
            where = start + int(np.argmax(chunk >= vocab_size))
            raise UserError(
                f"{path}: token {where} has id {tokens[where]}, outside a vocabulary of {vocab_size}; "
                "the shard was made with another tokenizer"
            )


def file_sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


class TokenStream:
    """Shards, in the order given, read as one stream of uint16 token ids. Nothing is held in memory or mapped.

    vocab_size: reading an id from there on raises UserError; None: ids are not looked at.
    """

    def __init__(self, shards: list[Path], vocab_size: int | None = None) -> None:
        self._shards, self._vocab_size = shards, vocab_size
        self._sizes = [len(open_shard(path)) for path in shards]
        self._ends = np.cumsum(self._sizes)
        self._files = [os.open(path, os.O_RDONLY) for path in shards]
        weakref.finalize(self, _close, self._files)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return tokens start .. stop-1 (stop - start,). Raises UserError where a shard has been cut short."""
        assert 0 <= start <= stop <= len(self), (start, stop, len(self))
        index = int(np.searchsorted(self._ends, start, side="right"))
        parts = []
        while start < stop:
            end = int(self._ends[index])
            first = end - self._sizes[index]
            parts.append(self._part(index, start - first, min(stop, end) - first))
            start, index = min(stop, end), index + 1
        if not parts:
            return np.empty(0, dtype=np.uint16)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _part(self, index: int, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 of one shard. Read, not mapped: behind the end of a file a map kills the process."""
        place, left, blocks = HEADER_BYTES + 2 * start, 2 * (stop - start), []
        while left:
            block = os.pread(self._files[index], left, place)
            if not block:
                raise UserError(f"{self._shards[index]}: was cut short while it was in use; prepare the data again")
            blocks.append(block)
            place, left = place + len(block), left - len(block)
        tokens = np.frombuffer(blocks[0] if len(blocks) == 1 else b"".join(blocks), dtype="<u2")
        if self._vocab_size is not None and int(tokens.max()) >= self._vocab_size:
            raise UserError(
                f"{self._shards[index]}: has id {tokens.max()}, outside a vocabulary of {self._vocab_size}; the shard "
                "was made with another tokenizer"
            )
        return tokens

    def chunks(self, size: int = CHUNK_TOKENS) -> Iterator[np.ndarray]:
        """The whole stream, at most `size` tokens at a time."""
        for start in range(0, len(self), size):
            yield self.read(start, min(start + size, len(self)))

    def document_bounds(self, bos_id: int) -> np.ndarray:
        """Document i is tokens bounds[i] .. bounds[i+1]-1; (documents + 1,) int64. Scans the whole stream.

        A document begins at each BOS; tokens before the first BOS, if any, are a document of their own.
        """
        found, start = [np.zeros(1, dtype=np.int64)], 0
        for chunk in self.chunks():
            found.append(np.flatnonzero(chunk == bos_id) + start)
            start += len(chunk)
        found.append(np.array([start], dtype=np.int64))
        return np.unique(np.concatenate(found))
