"""The report's plots as inline SVG. Colours of text and lines are the page's own, so they follow light and dark."""

import io
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from golf.reports.analysis import MARGIN_NATS, Analysis, Line
from golf.reports.grids import what_counts
from golf.reports.load import Started, curve, traces
from golf.reports.series import broken, front, gaps, smooth
from golf.reports.stats import nats_to_bpb

# Matplotlib draws with these; the SVG then gets the page's variables in their place.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
PALETTE = ("#3d7fc4", "#d9643a", "#3c9a5f", "#b58a1b", "#8c6bc8", "#c4568f", "#2d9aa8", "#8a8f98")
WIDTH_INCHES = 5.3
NAME_LENGTH = 26
MOST_COLOURED = len(PALETTE)  # rows with a colour and a name in plots that join them
MOST_CURVES = 200  # lines in a plot of runs: more are a smear, and tens of megabytes
SMALL = 9.5  # points, of what is written into a plot
FAR = 6.0  # a row so many times the typical distance from the middle is shown at the edge


DISQUALIFYING = {"over the cap", "over time", "illegal"}

Span = tuple[float, float, float]  # low, middle, high of what a row shows


def figures(analysis: Analysis) -> dict[str, str]:
    """Caption -> SVG, for what there is data for."""
    lines = [line for line in analysis.lines if line.score is not None]
    if not lines:
        return {}
    colours = _colours(lines, analysis.sweep.control)
    counts = sorted({len(line.row.counted) for line in lines})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"

    def by_row(some: Sequence[Line], label: str, draw: Callable[[Axes, Sequence[Line]], None]) -> str:
        return _by_row(some, colours, label, lambda axes: draw(axes, some), len(counts) > 1)

    drawn = {f"Score: each seed, mean and 95 % interval ({n})": by_row(lines, "bits per byte", _scores)}
    compared = [line for line in lines if line.difference is not None]
    if compared:
        caption = f"Difference from {analysis.sweep.control}: Welch's 95 % interval ({n}); left is better"
        label = "difference, bits per byte"
        drawn[caption] = by_row(compared, label, lambda axes, some: _deltas(axes, some, analysis))
    gap, step = f"Quantisation gap: each seed ({n})", f"Time of a step: each seed ({n})"
    size = f"Size ({what_counts(analysis)}): the largest seed ({n}), and the cap"
    drawn[gap] = by_row(lines, "BPB after minus before", lambda axes, some: _gaps(axes, some, analysis))
    drawn[size] = by_row(lines, "million bytes", _sizes)
    drawn[step] = by_row(lines, "milliseconds, median", _times)
    drawn |= _curves(lines, colours, n) | _adaptations(lines, colours)
    if len(lines) > 1:
        joined = "; the line joins the best by these" if len(_best(lines)) > 1 else ""
        caption = f"Size (largest seed) against score (mean, 95 % interval; {n}){joined}"
        drawn[caption] = _pareto(lines, colours)
    return drawn


def _colours(lines: Sequence[Line], control: str | None) -> dict[str, str]:
    """A colour for each row; where they are many, for the control and the best, and grey for the rest."""
    first = sorted(lines, key=lambda line: (line.row.name != control, line.score.mean if line.score else 0.0))
    chosen = {line.name for line in first[:MOST_COLOURED]}
    bright = iter(PALETTE)
    return {line.name: next(bright) if line.name in chosen else MUTED for line in lines}


# ---------------------------------------------------------------- rows as horizontal lines


def _by_row(
    lines: Sequence[Line], colours: dict[str, str], label: str, draw: Callable[[Axes], None], with_n: bool
) -> str:
    def fill(ax: Axes) -> None:
        ax.set_prop_cycle(color=[colours[line.name] for line in lines])
        draw(ax)
        counts = [f" ({len(line.row.counted)})" if with_n else "" for line in lines]
        names = [_short(line.name) + count for line, count in zip(lines, counts, strict=True)]
        ax.set_yticks(range(len(lines)), names)
        ax.set_ylim(len(lines) - 0.4, -0.6)
        ax.set_xlabel(label)
        ax.grid(axis="x", color=GRID, linewidth=0.8)

    return _svg(fill, 1.0 + 0.36 * len(lines))


def _dots(ax: Axes, lines: Sequence[Line], key: str) -> None:
    for place, line in enumerate(lines):
        values = line.row.values(key)
        ax.plot(values, [place] * len(values), "o", markersize=7, alpha=0.8, markeredgewidth=0, zorder=3)


def _gaps(ax: Axes, lines: Sequence[Line], analysis: Analysis) -> None:
    """Draw on a scale that holds zero and the margin on both sides: what is far smaller looks like nothing."""
    _dots(ax, lines, "quant_gap_bpb")
    ax.axvline(0, color=MUTED, linewidth=1)
    main = lines[0].row.results[0]["evals"][lines[0].row.results[0]["eval_main"]]
    room = analysis.margin_bpb or nats_to_bpb(MARGIN_NATS, tokens=main["tokens"], text_bytes=main["bytes"])
    values = [value for line in lines for value in line.row.values("quant_gap_bpb")]
    low, high = min(-room, *values), max(room, *values)
    ax.set_xlim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _times(ax: Axes, lines: Sequence[Line]) -> None:
    """Draw on a scale that begins at zero: a per cent is a per cent."""
    _dots(ax, lines, "step_ms")
    ax.set_xlim(0, 1.1 * max((value for line in lines for value in line.row.values("step_ms")), default=1.0))


def _scores(ax: Axes, lines: Sequence[Line]) -> None:
    _dots(ax, lines, "val_bpb")
    spans: list[Span] = []
    for place, line in enumerate(lines):
        assert line.score is not None
        low, high = line.score.low, line.score.high
        if low is not None and high is not None:
            ax.plot([low, high], [place, place], "-", color=INK, linewidth=1.4)
        ax.plot([line.score.mean], [place], "|", color=INK, markersize=11, markeredgewidth=1.8, zorder=4)
        seen = [*line.row.values("val_bpb"), *(end for end in (low, high) if end is not None)]
        spans.append((min(seen), line.score.mean, max(seen)))
    _focus(ax, spans)


def _focus(ax: Axes, spans: Sequence[Span]) -> None:
    """Show rows far from the others by an arrow at the edge, so that they flatten none."""
    found = _window(spans)
    if found is None:
        return
    low, high = found
    ax.set_xlim(low, high)
    text: dict[str, Any] = {"va": "center", "color": INK, "fontsize": SMALL}
    for place, (_, mid, _) in enumerate(spans):
        if mid > high:
            ax.annotate(f"{mid:.4g} \u2192", (high, place), ha="right", **text)
        elif mid < low:
            ax.annotate(f"\u2190 {mid:.4g}", (low, place), ha="left", **text)


def _window(spans: Sequence[Span]) -> tuple[float, float] | None:
    """Where the rows are that lie near the middle one; None where all do."""
    middle = statistics.median(mid for _, mid, _ in spans)
    typical = statistics.median(max(abs(mid - middle), (high - low) / 2) for low, mid, high in spans)
    near = [span for span in spans if abs(span[1] - middle) <= FAR * typical]
    if len(near) == len(spans):
        return None
    low, high = min(span[0] for span in near), max(span[2] for span in near)
    room = 0.08 * (high - low)
    return low - room, high + room


def _deltas(ax: Axes, lines: Sequence[Line], analysis: Analysis) -> None:
    ax.axvline(0, color=MUTED, linewidth=1)
    if analysis.margin_bpb:
        _mark(ax, -analysis.margin_bpb, f"{analysis.margin_nats:g} nats")
    spans = []
    for place, line in enumerate(lines):
        assert line.difference is not None
        low, high = line.difference.low, line.difference.high
        if low is not None and high is not None:
            ax.plot([low, high], [place, place], "-", color=INK, linewidth=1.4)
        delta = line.difference.delta
        ax.plot([delta], [place], "o", markersize=7)
        spans.append((delta if low is None else low, delta, delta if high is None else high))
    _focus(ax, spans)


def _sizes(ax: Axes, lines: Sequence[Line]) -> None:
    caps = {line.cap_bytes for line in lines if line.cap_bytes is not None}
    for place, line in enumerate(lines):
        assert line.max_bytes is not None and line.cap_bytes is not None
        ax.barh(place, line.max_bytes / 1e6, height=0.55)
        left = (line.cap_bytes - line.max_bytes) / 1e6
        words = f"{left:.3f} left" if left >= 0 else f"{-left:.3f} OVER"
        ax.annotate(words, (0, place), (5, 0), textcoords="offset points", va="center", color="white", fontsize=SMALL)
    for cap in caps:
        _mark(ax, cap / 1e6, "cap")
    ax.set_xlim(0, 1.15 * max(*caps, *(line.max_bytes or 0 for line in lines)) / 1e6)


def _mark(ax: Axes, x: float, words: str) -> None:
    """A dashed line across, named above the axes."""
    ax.axvline(x, color=MUTED, linewidth=1, linestyle="--")
    above: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate(words, (x, 1), (0, 3), ha="center", color=MUTED, fontsize=SMALL, **above)


# ---------------------------------------------------------------- curves and the front


def _curves(lines: Sequence[Line], colours: dict[str, str], n: str) -> dict[str, str]:
    """Training loss by step and by seconds: a line a seed, smoothed; the budget's seconds marked."""
    runs, which = _shown(lines, colours)
    traces = [(name, curve(run.folder, "loss")) for name, run in runs]
    if not any(len(trace) > 1 for _, trace in traces):
        return {}
    ends = [gaps([point[0] for point in trace]) for _, trace in traces]
    averages = [smooth([point[2] for point in trace], places) for (_, trace), places in zip(traces, ends, strict=True)]
    late = [value for values in averages for value in values[len(values) // 5 :]]  # the rest would flatten these
    drawn = {}
    for column, label in enumerate(("step", "seconds of training")):

        def fill(ax: Axes, column: int = column, label: str = label) -> None:
            named: set[str] = set()
            for (name, trace), values, places in zip(traces, averages, ends, strict=True):
                grey = colours[name] == MUTED
                once = None if name in named or grey else _short(name)
                style: dict[str, Any] = {"linewidth": 0.8, "alpha": 0.5} if grey else {"linewidth": 1.2, "alpha": 0.85}
                x, y = (broken(some, places) for some in ([point[column] for point in trace], values))
                ax.plot(x, y, color=colours[name], label=once, **style)
                named.add(name)
            caps = {line.row.config.get("budget.max_seconds") for line in lines} if column == 1 else set()
            for cap in (cap for cap in caps if isinstance(cap, int | float) and cap):
                ax.axvline(cap, color=MUTED, linewidth=1, linestyle="--", label=f"cap {cap:g} s")
            ax.set_ylim(min(late) - 0.05, max(late) + 0.05)
            ax.set_xlabel(label)
            ax.set_ylabel("training loss, nats per token")
            ax.grid(color=GRID, linewidth=0.8)
            ax.legend(frameon=False, fontsize=SMALL, labelcolor=INK)

        drawn[f"Training loss by {label}: a line a seed, smoothed ({n}{which})"] = _svg(fill, 3.5)
    return drawn


def _shown(lines: Sequence[Line], colours: dict[str, str]) -> tuple[list[tuple[str, Started]], str]:
    """(row, run) of those that get a line of their own, and words on how many these are, if not all: rows with a colour
    come first, and one seed of each before a second of any."""
    runs = [(line.name, run, turn) for line in lines for turn, run in enumerate(line.row.counted)]
    order = sorted(range(len(runs)), key=lambda index: (colours[runs[index][0]] == MUTED, runs[index][2]))
    kept = [runs[index][:2] for index in sorted(order[:MOST_CURVES])]
    return kept, f"; {len(kept)} of {len(runs):,} runs" if len(kept) < len(runs) else ""


def _adaptations(lines: Sequence[Line], colours: dict[str, str]) -> dict[str, str]:
    """What learning at evaluation does as it goes: the running score against the same windows without learning, and the
    loss that it learns with. Where the second falls while the first rises, it learns its text and loses the rest."""
    curves = []
    runs, which = _shown(lines, colours)
    for row, run in runs:
        by_name = traces(run.folder)
        main = by_name.get(run.result["eval_main"] if run.result else "", [])
        still = [trace for trace in by_name.values() if all(point["learning_loss"] is None for point in trace)]
        beside = next((t for t in still if [p["tokens"] for p in t] == [p["tokens"] for p in main]), None)
        if beside is not None and any(point["learning_loss"] is not None for point in main):
            curves.append((row, main, beside))
    if not curves:
        return {}

    def draw(fill_one: Callable[[Axes, Any, Any, dict[str, Any]], None], label: str) -> str:
        def fill(ax: Axes) -> None:
            named: set[str] = set()
            for name, main, beside in curves:
                once = None if name in named else _short(name)
                fill_one(ax, main, beside, {"color": colours[name], "label": once, "linewidth": 1.2})
                named.add(name)
            ax.set_xlabel("tokens graded")
            ax.set_ylabel(label)
            ax.grid(color=GRID, linewidth=0.8)
            ax.legend(frameon=False, fontsize=SMALL, labelcolor=INK)

        return _svg(fill, 3.5)

    def against(ax: Axes, main: Any, beside: Any, style: dict[str, Any]) -> None:
        gain = [one["bpb"] - two["bpb"] for one, two in zip(main, beside, strict=True)]
        ax.plot([point["tokens"] for point in main], gain, **style)
        ax.axhline(0, color=MUTED, linewidth=1)

    def learning(ax: Axes, main: Any, beside: Any, style: dict[str, Any]) -> None:
        losses = [math.nan if point["learning_loss"] is None else point["learning_loss"] for point in main]
        ax.plot([point["tokens"] for point in main], losses, **style)  # a chunk that was not learnt is a gap

    return {
        f"Learning at evaluation: running score minus the same windows without it; below 0 it helps{which}": draw(
            against, "difference so far, BPB"
        ),
        f"Learning at evaluation: the loss of each chunk as it is learnt, first epoch{which}": draw(
            learning, "nats per token"
        ),
    }


def _pareto(lines: Sequence[Line], colours: dict[str, str]) -> str:
    def fill(ax: Axes) -> None:
        points = {line.name: (_largest(line), line.score.mean) for line in lines if line.score}
        best = _best(lines)
        ax.plot([x for x, _ in best], [y for _, y in best], color=MUTED, linewidth=1, drawstyle="steps-post", zorder=1)
        for line in lines:
            assert line.score is not None
            x, y = points[line.name]
            if line.score.low is not None and line.score.high is not None:
                ax.plot([x, x], [line.score.low, line.score.high], color=GRID, linewidth=2, zorder=1)
            ax.plot([x], [y], "o", color=colours[line.name], markersize=8)
        named = sorted((name for name in points if colours[name] != MUTED), key=lambda name: points[name][1])
        for place, name in enumerate(named):  # to the right and to the left in turn, so that neighbours stay legible
            side, shift = ("left", 8) if place % 2 == 0 else ("right", -8)
            text: dict[str, Any] = {"ha": side, "va": "center", "color": INK, "fontsize": SMALL}
            ax.annotate(
                _short(name), points[name], (shift, 0), textcoords="offset points", annotation_clip=True, **text
            )
        ax.margins(0.4, 0.12)
        scores = [line.score for line in lines if line.score]
        window = _window([(score.low or score.mean, score.mean, score.high or score.mean) for score in scores])
        if window is not None:
            ax.set_ylim(*window)
            far = [f"{_short(name)} {y:.4g}" for name, (_, y) in points.items() if not window[0] <= y <= window[1]]
            ax.set_title(f"out of view: {', '.join(far)}", fontsize=SMALL, color=MUTED, wrap=True)
        ax.set_xlabel("million bytes")
        ax.set_ylabel("bits per byte")
        ax.grid(color=GRID, linewidth=0.8)
        for cap in {line.cap_bytes for line in lines if line.cap_bytes}:
            if ax.get_xlim()[0] <= cap / 1e6 <= ax.get_xlim()[1]:
                _mark(ax, cap / 1e6, "cap")

    return _svg(fill, 3.6)


def _best(lines: Sequence[Line]) -> list[tuple[float, float]]:
    """Return size and score of the rows that may count and that no other one beats in both."""
    fit = [line for line in lines if not DISQUALIFYING & set(line.faults)]
    return front([(_largest(line), line.score.mean) for line in fit if line.score])


def _largest(line: Line) -> float:
    """Million bytes of the largest seed."""
    assert line.max_bytes is not None
    return line.max_bytes / 1e6


# ---------------------------------------------------------------- SVG


def _short(name: str) -> str:
    """Return a name without its middle where it is long: rows often differ at the end.

    What cannot be printed is no part of an SVG.
    """
    half = NAME_LENGTH // 2
    name = "".join(mark if mark.isprintable() else "\ufffd" for mark in name)
    name = f" {name}" if name.startswith("_") else name  # Matplotlib leaves such names out of legends
    return name if len(name) <= NAME_LENGTH else f"{name[: half - 1]}…{name[-half:]}"


def _svg(fill: Callable[[Axes], None], height_inches: float) -> str:
    """One set of axes as an SVG element without a size of its own, in the page's colours."""
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "golf",
        "text.parse_math": False,  # a name with $ is a name
        "font.size": 11,
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
    with rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # only widths are measured here: the browser has the letters
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        axes = figure.subplots()
        fill(axes)
        axes.locator_params(axis="x", nbins=4)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    width, height = WIDTH_INCHES * 72, height_inches * 72
    return svg.replace(f'width="{width:g}pt"', "", 1).replace(f'height="{height:g}pt"', "", 1)
