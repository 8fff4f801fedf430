"""Where the rows of a sweep are a full grid: what each setting does by itself, and what they do together."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from golf.reports.analysis import Analysis
from golf.reports.grids import Grid, number

NAMES = ("label", "sweep_label")  # of the configuration: these name a row and are no settings of it


@dataclass(frozen=True, slots=True)
class Factor:
    """A setting, or several that vary together ("a, b"), and the mean score at each level (of the first). share: of the
    variance between rows, 0 to 1."""

    key: str
    means: dict[Any, float]
    share: float


def factors_of(rows: Sequence[tuple[dict[str, Any], float]]) -> list[Factor]:
    """The settings of rows (configuration, score) that are every combination of two or more settings, each once, and
    last `together`: what the settings do not do one by one. Settings that vary as one are one. Empty where the rows are
    no such grid, or a score is no number."""
    if len(rows) < 4 or not all(math.isfinite(score) for _, score in rows):
        return []
    alike = varying([config for config, _ in rows])
    varied = [keys[0] for keys in alike]
    levels = {key: list(dict.fromkeys(str(config.get(key)) for config, _ in rows)) for key in varied}
    cells = {tuple(str(config.get(key)) for key in varied): score for config, score in rows}
    if len(varied) < 2 or len(cells) < len(rows) or math.prod(map(len, levels.values())) != len(rows):
        return []
    assert set(cells) == set(product(*levels.values()))
    middle = sum(cells.values()) / len(cells)
    whole = sum((score - middle) ** 2 for score in cells.values())
    found = []
    for place, (key, keys) in enumerate(zip(varied, alike, strict=True)):
        at = {level: [score for cell, score in cells.items() if cell[place] == level] for level in levels[key]}
        means = {level: sum(scores) / len(scores) for level, scores in at.items()}
        between = sum(len(at[level]) * (mean - middle) ** 2 for level, mean in means.items())
        found.append(Factor(", ".join(keys), means, between / whole if whole else 0.0))
    return [*found, Factor("together", {}, max(0.0, 1 - sum(factor.share for factor in found)) if whole else 0.0)]


def varying(configs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """The settings that differ between rows; those that tell the same rows apart stand together."""
    found: dict[tuple[int, ...], list[str]] = {}
    for key in sorted({key for config in configs for key in config} - set(NAMES)):
        values = [str(config.get(key)) for config in configs]
        first = {value: index for index, value in reversed(list(enumerate(values)))}
        if len(first) > 1:
            found.setdefault(tuple(first[value] for value in values), []).append(key)
    return list(found.values())


def factors_grid(analysis: Analysis) -> Grid | None:
    """A line a setting; None where the rows are no full grid."""
    scored = [(line.row.config, line.score.mean) for line in analysis.lines if line.score is not None]
    found = factors_of(scored)
    rows = []
    for factor in found:
        means = ", ".join(f"{level}: {number(mean)}" for level, mean in factor.means.items())
        spread = number(max(factor.means.values()) - min(factor.means.values())) if factor.means else "-"
        rows.append([factor.key, means or "-", spread, f"{factor.share:.0%}"])
    under = (
        "means: BPB over all rows at that level; share: of the variance between the rows' means. together: what is "
        "left for combinations, and for noise. Settings in one line vary as one. No test: see the rows for those."
    )
    header = ["setting", "means", "apart", "share"]
    return Grid(title="Settings of the grid", header=header, rows=rows, left=2, under=under) if rows else None
