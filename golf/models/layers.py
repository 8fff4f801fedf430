"""Which layers a part applies to: one small text, parsed here, with the depth that it was written for."""

import math
import re

from golf.errors import UserError

DEEPEST = 1024  # a text is checked for its form against so many layers, before the model's depth is known
LONGEST_TEXT = 200
FORMS = "all, none, first:5 of 11, last:4 of 11, or 9,10 of 11"


def layer_set(text: str, layers: int, key: str = "layers") -> frozenset[int]:
    """The layers that `text` names in a stack of `layers`.

    `first:n` and `last:n` are counts, `9,10` are indices from 0. `of R` gives the depth that the numbers are meant
    for: a count becomes round(n * layers / R), at least 1 where n is, and an index keeps its relative place. Raises
    UserError, beginning with `key`, where the text has no such form or names a layer that is not there.
    """
    compact = text.strip()
    if len(compact) > LONGEST_TEXT:
        raise UserError(f"{key}={text[:40]!r}... is longer than {LONGEST_TEXT} characters; write {FORMS}")
    if compact in ("all", "none"):
        return frozenset(range(layers)) if compact == "all" else frozenset()
    match = re.fullmatch(r"(?:(first|last):(\d+)|(\d+(?:\s*,\s*\d+)*))(?:\s+of\s+(\d+))?", compact)
    if match is None:
        raise UserError(f"{key}={text!r} names no layers; write {FORMS}")
    side, count, indices, depth = match.groups()
    reference = int(depth) if depth else layers
    if reference > max(DEEPEST, layers):
        raise UserError(f"{key}={text!r} is of {reference} layers; at most {DEEPEST}")
    numbers = [int(count)] if side else [int(index) for index in indices.split(",")]
    if reference < 1 or max(numbers) > (reference if side else reference - 1):
        raise UserError(f"{key}={text!r} goes past {reference} layers; add the depth that it was written for: {FORMS}")
    if side:
        scaled = max(min(1, numbers[0]), _round(numbers[0] * layers / reference))
        return frozenset(range(scaled) if side == "first" else range(layers - scaled, layers))
    return frozenset(_round(index * (layers - 1) / max(1, reference - 1)) for index in numbers)


def layer_span(text: str, layers: int, key: str = "layers") -> range:
    """Neighbouring layers, as layer_set() names them. Where the depth differs from the one that they were written for,
    the first keeps its relative place and their number its share of the depth, 1 at least, so that they stay
    neighbours. Raises UserError where the text names none, or names layers apart."""
    match = re.fullmatch(r"(.*?)(?:\s+of\s+(\d+))?", text.strip())
    assert match is not None
    reference = min(int(match[2]), DEEPEST + 1) if match[2] else layers
    written = sorted(layer_set(text, reference, key))
    if not written or written[-1] - written[0] + 1 != len(written):
        raise UserError(f"{key}={text!r} must name neighbouring layers; try {key}='3,4,5 of 11'")
    count = min(layers, max(1, _round(len(written) * layers / reference)))
    first = min(_round(written[0] * (layers - 1) / max(1, reference - 1)), layers - count)
    return range(first, first + count)


def _round(value: float) -> int:
    """To the nearest whole number, halves up."""
    return math.floor(value + 0.5)


def check_layer_text(**texts: str) -> None:
    """Raise ValueError where a text is no set of layers at all; the depth is checked when the model is built."""
    for field, text in texts.items():
        try:
            layer_set(text, DEEPEST, field)
        except UserError as error:
            raise ValueError(str(error)) from None
