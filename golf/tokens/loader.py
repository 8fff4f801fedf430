"""Loaders: token shards to batches; reproducible, resumable at any batch, the same for any number of ranks.

Shapes: x_BT and y_BT int64, y one token ahead of x.
"""

import functools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from golf.dist import Ranks
from golf.errors import UserError
from golf.fields import OPERATIONAL, one_of
from golf.tokens.prepare import Prepared
from golf.tokens.shards import TokenStream

State = dict[str, int]
SPLITS = ("train", "tune", "val")
_last_two = functools.lru_cache(maxsize=2)  # a batch may straddle two epochs; more orders are not worth their memory


class Loader:
    """Hands out batches and knows exactly where it stands. Subclasses say which tokens a row holds."""

    start: ClassVar[State]  # the state before the first batch; its keys are the keys of every state

    def __init__(self, stream: TokenStream, *, rank: int, world: int, prefetch: bool) -> None:
        assert 0 <= rank < world, (rank, world)
        self.stream, self.rank, self.world = stream, rank, world
        self._state = dict(self.start)
        # With prefetching all rows are read on this one thread, so subclasses may keep caches without locks.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="loader") if prefetch else None
        self._ahead: tuple[tuple[int, int], Future[tuple[Tensor, Tensor, State]]] | None = None

    def batch(self, sequences: int, length: int) -> tuple[Tensor, Tensor]:
        """This rank's rows of the next global batch of `sequences` rows of `length` tokens: x_BT, y_BT int64.

        Rank r of w gets rows r*sequences//w .. (r+1)*sequences//w - 1. UserError when the data is too small.
        """
        assert sequences > 0 and length > 0, (sequences, length)
        shape, ahead, self._ahead = (sequences, length), self._ahead, None
        if self._worker is None:
            x_BT, y_BT, self._state = self._load(self._state, shape)
            return x_BT, y_BT
        if ahead is None or ahead[0] != shape:
            ahead = shape, self._worker.submit(self._load, self._state, shape)
        x_BT, y_BT, self._state = ahead[1].result()
        self._ahead = shape, self._worker.submit(self._load, self._state, shape)
        return x_BT, y_BT

    def state(self) -> State:
        """Where the next batch begins, whatever was prefetched; JSON-able."""
        return dict(self._state)

    def seek(self, state: State) -> None:
        """Go on exactly where `state` was taken."""
        if state.keys() != self.start.keys() or not all(isinstance(v, int) and v >= 0 for v in state.values()):
            raise UserError(
                f"loader state {state} is not of {type(self).__name__}, whose states have "
                f"{', '.join(self.start)}; resume with the loader= that the run began with"
            )
        self._ahead = None
        self._state = dict(state)

    def close(self) -> None:
        """Stop the thread; the loader hands out no batch after this."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)

    def _load(self, state: State, shape: tuple[int, int]) -> tuple[Tensor, Tensor, State]:
        sequences, length = shape
        low, high = self.rank * sequences // self.world, (self.rank + 1) * sequences // self.world
        x_BT, y_BT, after = self._rows(state, sequences, length, low, high)
        return _tensor(x_BT, length), _tensor(y_BT, length), after

    def _rows(
        self, state: State, sequences: int, length: int, low: int, high: int
    ) -> tuple[np.ndarray, np.ndarray, State]:
        """Inputs and targets of rows low .. high-1 of the batch at `state`; the state after all of it."""
        raise NotImplementedError


def _tensor(rows: np.ndarray, length: int) -> Tensor:
    return torch.from_numpy(rows.astype(np.int64)).reshape(-1, length)


def _too_small(what: str, stream: TokenStream) -> UserError:
    return UserError(
        f"{what}, but the split has {len(stream)}; lower batch.tokens_per_step or batch.sequence_length, use "
        "loader=sequential (it wraps), or prepare more data"
    )


@dataclass(kw_only=True, slots=True)
class LoaderConfig:
    """The order in which training visits the tokens. prefetch: a thread reads ahead during the step; split: the text,
    which for a legal run is train."""

    prefetch: bool = field(metadata=OPERATIONAL)
    split: str = "train"

    def __post_init__(self) -> None:
        one_of("split", self.split, SPLITS)

    def open_split(self, prepared: Prepared, vocab_size: int, seed: int, ranks: Ranks) -> Loader:
        """Return a loader over the split at its first batch, for this rank; no id reaches vocab_size."""
        stream = TokenStream(prepared.splits[self.split].shards, vocab_size)
        return self.open(stream, bos_id=prepared.bos_id, seed=seed, rank=ranks.rank, world=ranks.world)

    def open(self, stream: TokenStream, *, bos_id: int, seed: int, rank: int, world: int) -> Loader:
        """A loader over the stream at its first batch."""
        raise NotImplementedError

    def tokens_needed(self, sequences: int, length: int) -> int:
        """The smallest split that gives a batch of `sequences` rows of `length`."""
        return sequences * length + 1


# ---------------------------------------------------------------- sequential


class SequentialLoader(Loader):
    """The stream from front to back, again and again, cut into rows, as upstream's train_gpt.py does."""

    start: ClassVar[State] = {"position": 0}

    def _rows(
        self, state: State, sequences: int, length: int, low: int, high: int
    ) -> tuple[np.ndarray, np.ndarray, State]:
        self._require(sequences, length)
        position = state["position"]
        span = self._span(position + low * length, position + high * length + 1)
        return span[:-1], span[1:], {"position": position + sequences * length}

    def _require(self, sequences: int, length: int) -> None:
        if len(self.stream) < length + 1:
            raise _too_small(f"a row needs {length + 1} tokens", self.stream)

    def _span(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 of the endless stream, which is one epoch after another."""
        size, parts = len(self.stream), []
        while start < stop:
            epoch, offset = divmod(start, size)
            end = min(size, offset + stop - start)
            parts.append(self._epoch(epoch, offset, end))
            start += end - offset
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _epoch(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop-1 of one epoch."""
        return self.stream.read(start, stop)


@dataclass(kw_only=True, slots=True)
class SequentialConfig(LoaderConfig):
    """The stream in order. Every token is a target once an epoch; the seed has no effect."""

    def tokens_needed(self, sequences: int, length: int) -> int:
        return length + 1  # it wraps

    def open(self, stream: TokenStream, *, bos_id: int, seed: int, rank: int, world: int) -> Loader:
        return SequentialLoader(stream, rank=rank, world=world, prefetch=self.prefetch)


# ---------------------------------------------------------------- packed


class PackedLoader(SequentialLoader):
    """Whole documents in an order shuffled anew each epoch, back to back, cut into rows: no padding.

    After the DocumentPackingLoader of the records from 1.0734 on. Opening it scans all tokens for BOS.
    """

    def __init__(self, stream: TokenStream, *, bos_id: int, seed: int, rank: int, world: int, prefetch: bool) -> None:
        super().__init__(stream, rank=rank, world=world, prefetch=prefetch)
        bounds = stream.document_bounds(bos_id)
        self._starts, self._sizes = bounds[:-1], np.diff(bounds)
        self._order = _last_two(functools.partial(self._shuffle, seed))

    def _shuffle(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(document numbers in the epoch's order, where each ends in the epoch)."""
        order = _generator(seed, epoch).permutation(len(self._starts))
        return order, np.cumsum(self._sizes[order])

    def _require(self, sequences: int, length: int) -> None:
        if len(self.stream) < sequences * length + 1:
            raise _too_small(f"a batch of {sequences} x {length} needs {sequences * length + 1} tokens", self.stream)

    def _epoch(self, epoch: int, start: int, stop: int) -> np.ndarray:
        order, ends = self._order(epoch)
        index, parts = int(np.searchsorted(ends, start, side="right")), []
        while start < stop:
            document, end = order[index], int(ends[index])
            shift = int(self._starts[document] + self._sizes[document]) - end  # from the epoch's place to the stream's
            parts.append(self.stream.read(start + shift, min(stop, end) + shift))
            start, index = min(stop, end), index + 1
        return np.concatenate(parts)


@dataclass(kw_only=True, slots=True)
class PackedConfig(LoaderConfig):
    """Documents in an order shuffled each epoch, without padding. Every token is a target once an epoch."""

    def open(self, stream: TokenStream, *, bos_id: int, seed: int, rank: int, world: int) -> Loader:
        return PackedLoader(stream, bos_id=bos_id, seed=seed, rank=rank, world=world, prefetch=self.prefetch)


# ---------------------------------------------------------------- shuffled


class ShuffledLoader(Loader):
    """Windows of one row's length in random order, from a random phase, both new each epoch, over all shards.

    After the ShuffledSequenceLoader of the records 1.0856 to 1.0810, which shuffles each rank's shards apart.
    A new row length has its own order, which is entered where the epoch stands.
    """

    start: ClassVar[State] = {"epoch": 0, "tokens": 0}

    def __init__(self, stream: TokenStream, *, seed: int, rank: int, world: int, prefetch: bool) -> None:
        super().__init__(stream, rank=rank, world=world, prefetch=prefetch)
        self._order = _last_two(functools.partial(self._shuffle, seed))

    def _shuffle(self, seed: int, epoch: int, length: int) -> np.ndarray:
        """Where each window of the epoch starts, in the epoch's order; a window is length + 1 tokens."""
        generator = _generator(seed, epoch, length)
        phase = int(generator.integers(length))
        return generator.permutation((len(self.stream) - 1 - phase) // length) * length + phase

    def _rows(
        self, state: State, sequences: int, length: int, low: int, high: int
    ) -> tuple[np.ndarray, np.ndarray, State]:
        if sequences > (len(self.stream) - length) // length:  # the windows that every phase leaves
            raise _too_small(
                f"a shuffled batch of {sequences} x {length} needs {(sequences + 1) * length} tokens",
                self.stream,
            )
        epoch, order = state["epoch"], self._order(state["epoch"], length)
        index = -(-state["tokens"] // length)
        starts = order[index : index + sequences]
        index += sequences
        if len(starts) < sequences:
            epoch, index = epoch + 1, sequences - len(starts)
            starts = np.concatenate([starts, self._order(epoch, length)[:index]])
        rows = [self.stream.read(int(start), int(start) + length + 1) for start in starts[low:high]]
        rows_BT = np.stack(rows) if rows else np.empty((0, length + 1), dtype=np.uint16)
        return rows_BT[:, :-1], rows_BT[:, 1:], {"epoch": epoch, "tokens": index * length}


@dataclass(kw_only=True, slots=True)
class ShuffledConfig(LoaderConfig):
    """Non-overlapping windows in a random order, with a new phase each epoch."""

    def tokens_needed(self, sequences: int, length: int) -> int:
        return (sequences + 1) * length  # whatever the phase

    def open(self, stream: TokenStream, *, bos_id: int, seed: int, rank: int, world: int) -> Loader:
        return ShuffledLoader(stream, seed=seed, rank=rank, world=world, prefetch=self.prefetch)


# ---------------------------------------------------------------- random orders


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
