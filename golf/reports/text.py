"""Numbers as the report writes them, and words that golf did not write, made harmless for each kind of file."""

import re
from typing import Any

# A cell that begins so is a formula to a spreadsheet.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
MARKS = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {mark: f"\\{mark}" for mark in "\\`*[]|~$"})
EDGES = re.compile(r"(?<!\w)_|_(?!\w)")  # within a word an underscore means nothing
STARTS = re.compile(r"^([#+=-]|\d+(?=[.)]))")  # of a heading, a list, a rule
ADDRESSES = re.compile(r"(://|\bwww\.)")


def number(value: float | None, digits: int = 4, sign: bool = False) -> str:
    """Return a number as text; a dash where there is none."""
    if value is None:
        return "-"
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"  # adding 0.0 makes -0.0 plain


def p_text(value: float | None) -> str:
    return "-" if value is None else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def interval(low: float | None, high: float | None, sign: bool = False) -> str:
    return "-" if low is None else f"{number(low, sign=sign)} .. {number(high, sign=sign)}"


def in_markdown(text: str) -> str:
    """Return a text of one line that Markdown shows letter for letter: no tags, links or emphasis of its own."""
    line = EDGES.sub(r"\\_", " ".join(text.split()).translate(MARKS))
    return ADDRESSES.sub(lambda found: found[0].replace("://", ":\\//").replace(".", "\\."), line)


def as_paragraph(text: str) -> str:
    """in_markdown() at the beginning of a line: no heading, list or rule either."""
    line = in_markdown(text)
    return STARTS.sub(lambda found: f"{found[1]}\\" if found[1].isdigit() else f"\\{found[1]}", line)


def in_cell(value: Any) -> Any:
    """Return a value that a spreadsheet takes for what it is: no text begins like a formula."""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text
