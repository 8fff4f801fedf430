"""Packed files are the program that went in."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from golf.submission.pack import literal, minified, pack, wrap_brotli, wrap_lzma

PROGRAM = '''"""A program."""
import dataclasses, sys
import torch

@dataclasses.dataclass
class Part:
    """What it is."""
    width: int
    name: str = "a\\\\b"

    def doubled(self, times: int = 2) -> int:
        """Twice."""
        if times < 0:
            raise ValueError(f"times={times}: not below zero")
        return self.width * times

def main(argument: int) -> None:
    assert argument > 0
    print(Part(width=argument).doubled(times=3), Part(1).name, "\\x00\\n\\r'\\"\\\\")

main(7)
'''


GIVEN = """import functools
import torch

class Whole:
    def __init__(self, first, second, third=0):
        self.sum = first + second + third
    def plus(self, unnamed, named):
        return self.sum + unnamed * named

def direct(early, late):
    return early - late

def bound(held, free):
    return held * 10 + free

def handed(inner, outer):
    return inner * 100 + outer

def spread(left, right):
    return left * 1000 + right

def main(only):
    of = handed
    print(direct(5, late=only), functools.partial(bound, held=2)(free=3), of(outer=1, inner=2), max(3, 4, key=abs))
    print(spread(**{"right": 1, "left": 2}), Whole(1, third=2, second=4).plus(3, named=5))

main(1)
"""


def output(file: bytes, folder: Path) -> bytes:
    path = folder / "program.py"
    path.write_bytes(file)
    return subprocess.run([sys.executable, str(path)], capture_output=True, check=True, timeout=600).stdout


@given(st.binary(max_size=300))
@example(b"\x001x\x00x1\x0011\x00")  # an escaped zero byte must not take the digits behind it
def test_any_bytes_survive_a_literal(stream: bytes) -> None:
    text = b"#coding:L1\nfound=" + literal(stream) + b".encode('L1')\n"
    scope: dict[str, bytes] = {}
    exec(compile(text, "x", "exec"), scope)
    assert scope["found"] == stream


@pytest.mark.parametrize("wrap", [wrap_lzma, wrap_brotli])
def test_a_wrapper_runs_what_it_holds(wrap, tmp_path: Path) -> None:
    file = wrap(b"import sys\nprint(sys.version_info[0], __name__, __file__[-10:])\n" + b"# fill\n" * 400)
    assert output(file, tmp_path).split() == [b"3", b"__main__", b"program.py"] and len(file) < 400


def test_a_minified_program_does_the_same_and_says_less(tmp_path: Path) -> None:
    source = PROGRAM.replace("import torch\n", "")
    small = minified(source)
    assert output(small.encode(), tmp_path) == output(source.encode(), tmp_path) != b""
    assert "Twice" not in small and "not below zero" not in small and "-> int" not in small
    assert "width" in small and "doubled" in small, "what artifacts and state_dicts may hold keeps its name"


def test_parameters_that_are_given_by_name_keep_theirs(tmp_path: Path) -> None:
    """By a call of the function, through partial(), through another name, by **, by its class; the others are short."""
    source = GIVEN.replace("import torch\n", "")
    small = minified(source)
    assert output(small.encode(), tmp_path) == output(source.encode(), tmp_path) == b"4 23 201 4\n2001 22\n"
    kept = {word for word in re.findall(r"[a-z]+", source) if re.search(rf"\b{word}\b", small)}
    assert {"late", "held", "free", "inner", "outer", "left", "right", "second", "third", "named"} <= kept
    assert not {"only", "early", "unnamed"} & kept and "/" not in small


def test_the_smallest_wrapper_is_kept() -> None:
    found = pack(PROGRAM * 30)
    assert len(found.file) == min(found.sizes.values()) == found.sizes[found.coder]
    assert set(found.sizes) == {"lzma", "brotli"} and found.raw_bytes == len(PROGRAM.encode()) * 30
    assert len(found.file) < found.minified_bytes < found.raw_bytes
