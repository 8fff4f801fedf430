"""What begins only when a run has gone some way, and what of it never began."""

from golf.config import Recipe
from golf.curriculum import Shape
from golf.late import begun
from golf.nodes import configs
from golf.schedules import Start, Tick


def never_begun(run: Recipe, starts: tuple[float, ...], last: Tick) -> list[str]:
    """Return the keys of what had not begun at the last step of a run.

    starts: of the model's stack, parts of training. A batch of a curriculum counts as begun once it is whole.
    """
    missed = [path for path, part in configs(run) if isinstance(part, Start) and not part.reached(last)]
    if any(start > last.progress for start in starts):
        missed.append("model.stack.loop.again")
    full = Shape(run.batch.sequences, run.batch.sequence_length)
    parts = run.curriculum.items()
    missed += [f"curriculum.{name}" for name, part in parts if part is not None and part.apply(full, last) != full]
    if run.late is not None and not begun(last):
        missed.append("late")
    return missed
