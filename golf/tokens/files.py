"""Files of text: which of a folder's files are meant, and what they hold, plain or zstd."""

import codecs
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import zstandard

from golf.errors import UserError
from golf.files import path_of

SUFFIXES = (".txt", ".jsonl", ".txt.zst", ".jsonl.zst")
KINDS = " or ".join(SUFFIXES)
BLOCK_BYTES = 1 << 20
# What editors and programs leave beside a text, by the end and by the beginning of a name without its suffix.
DRAFT_ENDS = ("~", ".bak", ".swp", ".swo", ".orig", ".tmp", ".part")
DRAFT_STARTS = ("~", "#")
BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}


@dataclass(slots=True)
class Found:
    """files: in order, each once; left_out: how many of which kind."""

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """What is left out, in words; empty where nothing is."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.left_out.items()))

    def add(self, path: Path, seen: set[tuple[int, int]]) -> None:
        """Take a file, or count it as left out. seen: device and inode of what was taken before."""
        if path.name.startswith("."):
            self.left_out["hidden"] += 1
        elif is_draft(path):
            self.left_out["drafts (~, .bak, .swp and the like)"] += 1
        elif not path.is_file():
            self.left_out["broken links and special files"] += 1
        elif suffix_of(path) is None:
            self.left_out["of another kind"] += 1
        elif (place := _place(path)) in seen:
            self.left_out["linked twice"] += 1
        else:
            seen.add(place)
            self.files.append(path)


def text_files(path: str) -> Found:
    """The files that `path` names: a file, a folder and all below it, linked folders too, or a glob.

    UserError where there is none, where a file that is named is of another kind, and where a folder cannot be read.
    """
    root, found = path_of(path), Found()
    if root.is_dir():
        _search(root, found, set(), set())
    elif root.is_file():
        found.files = [root]
    else:
        seen: set[tuple[int, int]] = set()
        for name in sorted(glob.glob(str(root), recursive=True)):
            one = Path(name)
            if (suffix_of(one) is None and not is_draft(one)) or one.is_dir():
                raise UserError(f"data.path={path}: {one} is no {KINDS} file; rename it or leave it out")
            found.add(one, seen)
    if not found.files:
        but = f" (left out: {found.summary()})" if found.left_out else ""
        raise UserError(f"data.path={path}: no {KINDS} file there{but}; name a file, a folder or a glob")
    if suffix_of(found.files[0]) is None:
        raise UserError(f"data.path={path}: {root} is no {KINDS} file; rename it or leave it out")
    return found


def _search(folder: Path, found: Found, files: set[tuple[int, int]], folders: set[tuple[int, int]]) -> None:
    """Add what lies in a folder and below it; each folder once, however many links lead there."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"data.path: {folder} cannot be read ({error.strerror}); allow it, or leave it out") from None
    folders.add(_place(folder))
    for entry in entries:
        path = Path(entry.path)
        if not path.is_dir():
            found.add(path, files)
        elif entry.name.startswith("."):
            found.left_out["hidden folders"] += 1
        elif _place(path) not in folders:
            _search(path, found, files, folders)
        elif entry.is_symlink():
            found.left_out["links to a folder that is searched already"] += 1


def _place(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_dev, state.st_ino


def is_draft(path: Path) -> bool:
    """Whether a name is that of a file which an editor or a program left behind."""
    stem = path.name.removesuffix(suffix_of(path) or "")
    return stem.endswith(DRAFT_ENDS) or path.name.startswith(DRAFT_STARTS)


def suffix_of(path: Path) -> str | None:
    return next((suffix for suffix in reversed(SUFFIXES) if path.name.endswith(suffix)), None)


def chunks_of(path: Path) -> Iterator[str]:
    """The text of a UTF-8 file, plain or zstd, in pieces; drops a byte order mark, keeps line ends."""
    try:
        with path.open("rb") as file:
            blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
            plain = _decompressed(blocks) if path.suffix == ".zst" else blocks
            yield from codecs.iterdecode(plain, "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({_encoding(path) or error.reason}); convert it first") from None
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise UserError(f"{path}: cannot be read ({error}); check the file") from None


def _encoding(path: Path) -> str | None:
    """The encoding that the first bytes of a file tell of."""
    with path.open("rb") as file:
        return BYTE_ORDER_MARKS.get(file.read(2))


def _decompressed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Frames of zstd, all whole: zstandard's own reader takes a file that was cut off for a shorter one."""
    decoder = None
    for block in blocks:
        while block:
            decoder = decoder or zstandard.ZstdDecompressor().decompressobj()
            yield decoder.decompress(block)
            block = decoder.unused_data
            decoder = None if decoder.eof else decoder
    if decoder is not None:
        raise EOFError("the last zstd frame is cut off")


def lines_of(chunks: Iterable[str]) -> Iterator[str]:
    rest = ""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split("\n")
        yield from lines
    yield rest
