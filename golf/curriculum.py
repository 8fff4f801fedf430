"""Batches that change during training: shorter rows or fewer of them at first, in few shapes, all known beforehand."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from golf.errors import UserError
from golf.fields import between, positive
from golf.schedules import Tick


@dataclass(frozen=True, slots=True)
class Shape:
    """The global batch of a step: rows and their tokens."""

    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        return self.sequences * self.length


@dataclass(kw_only=True, slots=True)
class CurriculumConfig:
    """The slot: what one curriculum makes of a batch."""

    def apply(self, shape: Shape, tick: Tick) -> Shape:
        """The batch of the step at `tick`; one of every(shape)."""
        raise NotImplementedError

    def every(self, shape: Shape) -> list[Shape]:
        """Each shape that apply() can give, in the order in which they come.

        Raises ValueError that begins with `field=value` where `shape` can't be cut so.
        """
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class LengthConfig(CurriculumConfig):
    """Rows of a d-th of the length, for each d of `divisors`, over equal parts of the first `share` of the run; as many
    tokens a step as ever (PR 401: 256, 512 and 1,024 of 2,048 tokens over the first quarter)."""

    divisors: list[int]
    share: float

    def __post_init__(self) -> None:
        if not self.divisors or any(divisor < 1 for divisor in self.divisors):
            raise ValueError(f"divisors={self.divisors} must be whole numbers of at least 1; try [8,4,2]")
        between(1e-6, 1, share=self.share)

    def apply(self, shape: Shape, tick: Tick) -> Shape:
        index = int(tick.progress / self.share * len(self.divisors))
        return shape if index >= len(self.divisors) else _shortened(shape, self.divisors[index])

    def every(self, shape: Shape) -> list[Shape]:
        for divisor in self.divisors:
            if shape.length % divisor:
                raise ValueError(
                    f"divisors={self.divisors}: {divisor} does not divide rows of {shape.length} tokens; "
                    f"try {math.gcd(divisor, shape.length)}"
                )
        return [*(_shortened(shape, divisor) for divisor in self.divisors), shape]


def _shortened(shape: Shape, divisor: int) -> Shape:
    return Shape(shape.sequences * divisor, shape.length // divisor)


@dataclass(kw_only=True, slots=True)
class BatchWarmupConfig(CurriculumConfig):
    """Fewer rows at first: `first` of `parts` equal parts of the batch, all of them from `steps` steps on; between them
    as many whole parts as a line from the one to the other has reached (PR 401: a third to all over 1,000 steps; its
    own form asks for rows that are not whole and stops)."""

    parts: int
    first: int
    steps: int

    def __post_init__(self) -> None:
        positive(steps=self.steps)
        between(1, 1024, parts=self.parts)
        between(1, self.parts, first=self.first)

    def apply(self, shape: Shape, tick: Tick) -> Shape:
        reached = int(self.first + (self.parts - self.first) * min(1.0, tick.step / self.steps))
        return Shape(shape.sequences * reached // self.parts, shape.length)

    def every(self, shape: Shape) -> list[Shape]:
        if shape.sequences % self.parts:
            fits = [n for n in range(2, shape.sequences + 1) if shape.sequences % n == 0]
            near = min(fits, key=lambda n: abs(n - self.parts)) if fits else 1
            raise ValueError(f"parts={self.parts} must divide the {shape.sequences} rows of a step; try parts={near}")
        return [Shape(shape.sequences * n // self.parts, shape.length) for n in range(self.first, self.parts + 1)]


class Batches:
    """The batches of a run: which shape at which tick, and how many rows go through the model at once.

    Raises UserError naming the part of the curriculum that can't cut the batch, or the rows that ranks can't share.
    """

    def __init__(self, full: Shape, curriculum: Mapping[str, CurriculumConfig | None], max_rows: int, world: int):
        """max_rows: how many rows of the full length a rank may have in one forward; shorter rows in proportion."""
        self.full, self.world = full, world
        self.parts = {name: part for name, part in curriculum.items() if part is not None}
        self.shapes = [full]
        for name, part in self.parts.items():
            try:
                self.shapes = list(dict.fromkeys(found for shape in self.shapes for found in part.every(shape)))
            except ValueError as error:
                raise UserError(f"curriculum.{name}.{error}") from None
        for shape in self.shapes:
            if shape.sequences % world:
                fits = max(n for n in range(1, world + 1) if shape.sequences % n == 0)
                raise UserError(
                    f"launch.nproc={world} must divide the {shape.sequences} sequences of a step "
                    f"(batch.tokens_per_step / batch.sequence_length, parts of it in a curriculum); try "
                    f"launch.nproc={fits}"
                )
        self._rows = {length: self._most(length, max_rows) for length in {shape.length for shape in self.shapes}}

    def at(self, tick: Tick) -> Shape:
        """The global batch of the step at `tick`."""
        shape = self.full
        for part in self.parts.values():
            shape = part.apply(shape, tick)
        return shape

    def rows(self, shape: Shape) -> int:
        """Rows of a rank in one forward: the same for all batches of this length, so that one graph serves them."""
        return self._rows[shape.length]

    def forwards(self) -> list[Shape]:
        """What goes through the model at once, each shape once."""
        return [Shape(rows, length) for length, rows in self._rows.items()]

    def _most(self, length: int, max_rows: int) -> int:
        shares = [shape.sequences // self.world for shape in self.shapes if shape.length == length]
        most = max(1, max_rows * self.full.length // length)
        common = math.gcd(*shares)
        return max(n for n in range(1, min(common, most) + 1) if common % n == 0)
