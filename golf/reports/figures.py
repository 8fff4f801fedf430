"""The report's plots as inline SVG. Colours of text and lines are the page's own, so they follow light and dark."""

import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from golf.reports.analysis import Analysis, Line
from golf.reports.load import Row, curve
from golf.reports.stats import Summary

# Matplotlib draws with these; the SVG then gets the page's variables in their place.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
PALETTE = ("#3d7fc4", "#d9643a", "#3c9a5f", "#b58a1b", "#8c6bc8", "#c4568f", "#2d9aa8", "#8a8f98")
WIDTH_INCHES = 5.6
LONGEST_NAME = 24
SMOOTHING = 0.8  # of a training curve, per logged step


def figures(analysis: Analysis) -> dict[str, str]:
    """Caption -> SVG, for what there is data for."""
    lines = [line for line in analysis.lines if line.score is not None]
    if not lines:
        return {}
    colours = dict(zip((line.row.name for line in lines), itertools.cycle(PALETTE), strict=False))
    counts = sorted({len(line.row.results) for line in lines})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"

    def by_row(some: Sequence[Line], label: str, draw: Callable[[Axes, Sequence[Line]], None]) -> str:
        return _by_row(some, colours, label, lambda axes: draw(axes, some))

    drawn = {f"Score: each seed, mean and 95 % interval ({n})": by_row(lines, "bits per byte", _scores)}
    compared = [line for line in lines if line.difference is not None]
    if compared:
        caption = f"Difference from {analysis.sweep.control}: Welch's 95 % interval ({n}); left is better"
        label = "difference, bits per byte"
        drawn[caption] = by_row(compared, label, lambda axes, some: _deltas(axes, some, analysis))
    gap, step = f"Quantisation gap: each seed ({n})", f"Time of a step: each seed ({n})"
    drawn[gap] = by_row(lines, "BPB after minus before", lambda axes, some: _dots(axes, some, "quant_gap_bpb"))
    drawn[f"Code and artifact: the largest seed ({n}), and the cap"] = by_row(lines, "million bytes", _sizes)
    drawn[step] = by_row(lines, "milliseconds, median", lambda axes, some: _dots(axes, some, "step_ms"))
    drawn |= _curves(lines, colours)
    if len(lines) > 1:
        caption = f"Size against score (mean over seeds, {n}); the line joins what nothing beats in both"
        drawn[caption] = _pareto(lines, colours)
    return drawn


# ---------------------------------------------------------------- rows as horizontal lines


def _by_row(lines: Sequence[Line], colours: dict[str, str], label: str, draw: Callable[[Axes], None]) -> str:
    def fill(ax: Axes) -> None:
        ax.set_prop_cycle(color=[colours[line.row.name] for line in lines])
        draw(ax)
        ax.set_yticks(range(len(lines)), [_short(line.row.name) for line in lines])
        ax.set_ylim(len(lines) - 0.4, -0.6)
        ax.set_xlabel(label)
        ax.grid(axis="x", color=GRID, linewidth=0.8)

    return _svg(fill, 1.0 + 0.36 * len(lines))


def _dots(ax: Axes, lines: Sequence[Line], key: str) -> None:
    for place, line in enumerate(lines):
        values = line.row.values(key)
        ax.plot(values, [place] * len(values), "o", markersize=7, alpha=0.8, markeredgewidth=0, zorder=3)
    if key == "quant_gap_bpb":
        ax.axvline(0, color=MUTED, linewidth=1)


def _scores(ax: Axes, lines: Sequence[Line]) -> None:
    _dots(ax, lines, "val_bpb")
    for place, line in enumerate(lines):
        assert line.score is not None
        _interval(ax, place, line.score)


def _interval(ax: Axes, place: int, summary: Summary) -> None:
    if summary.low is not None and summary.high is not None:
        ax.plot([summary.low, summary.high], [place, place], "-", color=INK, linewidth=1.4)
    ax.plot([summary.mean], [place], "|", color=INK, markersize=11, markeredgewidth=1.8)


def _deltas(ax: Axes, lines: Sequence[Line], analysis: Analysis) -> None:
    ax.axvline(0, color=MUTED, linewidth=1)
    if analysis.margin_bpb:
        _mark(ax, -analysis.margin_bpb, f"{analysis.margin_nats:g} nats")
    for place, line in enumerate(lines):
        assert line.difference is not None
        low, high = line.difference.low, line.difference.high
        if low is not None and high is not None:
            ax.plot([low, high], [place, place], "-", color=INK, linewidth=1.4)
        ax.plot([line.difference.delta], [place], "o", markersize=7)


def _sizes(ax: Axes, lines: Sequence[Line]) -> None:
    caps = {line.cap_bytes for line in lines if line.cap_bytes is not None}
    for place, line in enumerate(lines):
        assert line.max_bytes is not None and line.cap_bytes is not None
        ax.barh(place, line.max_bytes / 1e6, height=0.55)
        left = (line.cap_bytes - line.max_bytes) / 1e6
        words = f"{left:.3f} left" if left >= 0 else f"{-left:.3f} OVER"
        ax.annotate(words, (line.max_bytes / 1e6, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    for cap in caps:
        _mark(ax, cap / 1e6, "cap")
    ax.set_xlim(0, 1.15 * max(*caps, *(line.max_bytes or 0 for line in lines)) / 1e6)


def _mark(ax: Axes, x: float, words: str) -> None:
    """A dashed line across, named above the axes."""
    ax.axvline(x, color=MUTED, linewidth=1, linestyle="--")
    above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate(words, (x, 1), (0, 3), ha="center", color=MUTED, fontsize=8, **above)


# ---------------------------------------------------------------- curves and the front


def _curves(lines: Sequence[Line], colours: dict[str, str]) -> dict[str, str]:
    """Training loss by step and by seconds: a line a seed, smoothed; the budget's seconds marked."""
    runs = [(line.row.name, folder) for line in lines for folder in line.row.folders.values()]
    traces = [(name, curve(folder, "loss")) for name, folder in runs]
    if not any(len(trace) > 1 for _, trace in traces):
        return {}
    smooth = [_smooth([point[2] for point in trace]) for _, trace in traces]
    late = [value for values in smooth for value in values[len(values) // 5 :]]  # the rest would flatten these
    drawn = {}
    for column, label in enumerate(("step", "seconds of training")):

        def fill(ax: Axes, column: int = column, label: str = label) -> None:
            named: set[str] = set()
            for (name, trace), values in zip(traces, smooth, strict=True):
                once = None if name in named else _short(name)
                ax.plot(
                    [point[column] for point in trace],
                    values,
                    color=colours[name],
                    linewidth=1.2,
                    alpha=0.8,
                    label=once,
                )
                named.add(name)
            caps = {line.row.config.get("budget.max_seconds") for line in lines} if column == 1 else set()
            for cap in filter(None, caps):
                ax.axvline(cap, color=MUTED, linewidth=1, linestyle="--", label=f"cap {cap:g} s")
            ax.set_ylim(min(late) - 0.05, max(late) + 0.05)
            ax.set_xlabel(label)
            ax.set_ylabel("training loss, nats per token")
            ax.grid(color=GRID, linewidth=0.8)
            ax.legend(frameon=False, fontsize=8, labelcolor=INK)

        drawn[f"Training loss by {label}: a line a seed, smoothed"] = _svg(fill, 3.3)
    return drawn


def _smooth(values: Sequence[float]) -> list[float]:
    """Exponential average, corrected for its start."""
    smoothed, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = SMOOTHING * total + (1 - SMOOTHING) * value, SMOOTHING * weight + 1 - SMOOTHING
        smoothed.append(total / weight)
    return smoothed


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other point beats in both (smaller is better), from small to large."""
    best: list[tuple[float, float]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best


def _pareto(lines: Sequence[Line], colours: dict[str, str]) -> str:
    def fill(ax: Axes) -> None:
        points = {line.row.name: _mean_point(line.row) for line in lines}
        best = front(list(points.values()))
        ax.plot([x for x, _ in best], [y for _, y in best], color=MUTED, linewidth=1, drawstyle="steps-post", zorder=1)
        for name, (x, y) in points.items():
            ax.plot([x], [y], "o", color=colours[name], markersize=8)
            ax.annotate(_short(name), (x, y), (8, 0), textcoords="offset points", va="center", color=INK, fontsize=8)
        ax.margins(0.3, 0.15)
        ax.set_xlabel("million bytes, code and artifact")
        ax.set_ylabel("bits per byte")
        ax.grid(color=GRID, linewidth=0.8)

    return _svg(fill, 3.3)


def _mean_point(row: Row) -> tuple[float, float]:
    sizes, scores = row.values("total_bytes"), row.values("val_bpb")
    return sum(sizes) / len(sizes) / 1e6, sum(scores) / len(scores)


# ---------------------------------------------------------------- SVG


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _svg(fill: Callable[[Axes], None], height_inches: float) -> str:
    """One set of axes as an SVG element without a size of its own, in the page's colours."""
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "golf",
        "font.size": 9.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GRID,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "axes.axisbelow": True,
    }
    with rc_context(style):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        axes = figure.subplots()
        fill(axes)
        axes.locator_params(axis="x", nbins=6)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    width, height = WIDTH_INCHES * 72, height_inches * 72
    return svg.replace(f'width="{width:g}pt"', "", 1).replace(f'height="{height:g}pt"', "", 1)
