"""A run in one file that names its own checksum and is never written twice."""

import hashlib
import io
import json
import lzma
import os
import tarfile
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from golf.alive import temporary_of
from golf.errors import RunError, UserError
from golf.files import MOST_TEXT, opened, parse_json
from golf.rundir import RunDir

MANIFEST = "MANIFEST.json"
# An archive that is looked at may unpack to so many bytes, and so many times its own; a run has some hundred files.
MOST_BYTES, MOST_RATIO, MOST_FILES, MOST_MEMORY = 2**28, 64, 10_000, 2**28
LEFT_OUT = ("checkpoint", ".lock", "wandb")  # what a restart needs, and copies of what is there


def archive(folder: Path, into: Path) -> Path:
    """Write NAME-<16 hex digits of the sha256>.tar.xz, read-only. Raises UserError where no finished run stands."""
    if RunDir(folder).finished() is None:
        raise UserError(f"archive={folder}: no finished run; name a folder that golf/train.py made")
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and not set(path.relative_to(folder).parts) & set(LEFT_OUT)
    )
    manifest = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    blob = io.BytesIO()
    with tarfile.open(fileobj=blob, mode="w:xz") as tar:
        _add(tar, MANIFEST, json.dumps(manifest, indent=1).encode())
        for name in manifest:
            _add(tar, name, (folder / name).read_bytes())
    data = blob.getvalue()
    target = into / f"{folder.resolve().name}-{hashlib.sha256(data).hexdigest()[:16]}.tar.xz"
    into.mkdir(parents=True, exist_ok=True)
    _write_once(target, data)
    return target


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """No owner and no time: the same run gives the same file."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o444
    tar.addfile(entry, io.BytesIO(data))


def _write_once(target: Path, data: bytes) -> None:
    """Beside, then linked into its place: a link never replaces a file."""
    temporary = temporary_of(target)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o444)
        os.link(temporary, target)
    except FileExistsError:
        raise UserError(f"archive: {target} exists already, and an archive is never overwritten") from None
    finally:
        temporary.unlink(missing_ok=True)


def verify(path: Path) -> int:
    """Return how many files an archive holds: each as its manifest says, the whole as its name says; else RunError.

    The files are read one after another and kept nowhere: an archive of any size takes no memory.
    """
    try:
        with opened(path) as file:
            name = path.name.removesuffix(".tar.xz").rsplit("-", 1)[-1]
            if hashlib.file_digest(file, "sha256").hexdigest()[:16] != name:
                raise RunError(f"{path}: is damaged: its sha256 is not the one in its name")
            file.seek(0)
            manifest, hashes = _contents(file)
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError) as error:
        raise RunError(f"{path}: is no archive of a run: {error}") from None
    if hashes != manifest:
        raise RunError(f"{path}: its files are not those of its manifest")
    return len(hashes)


class Unpacked(io.RawIOBase):
    """What an .xz file holds, read in order. Raises ValueError beyond `most` bytes, lzma.LZMAError where unpacking
    would take over MOST_MEMORY."""

    def __init__(self, file: BufferedReader, most: int):
        self.file, self.left = file, most
        self.decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.decompressor.eof:
            packed = self.file.read(2**16) if self.decompressor.needs_input else b""
            if not packed and self.decompressor.needs_input:
                raise EOFError("it ends too soon")
            if data := self.decompressor.decompress(packed, len(buffer)):
                self.left -= len(data)
                if self.left < 0:
                    raise ValueError("it unpacks to far more than a run is")
                buffer[: len(data)] = data
                return len(data)
        return 0


def _contents(file: BufferedReader) -> tuple[Any, dict[str, str]]:
    """Return the manifest of an archive, and the sha256 of each other file. Raises ValueError beyond the limits."""
    manifest, hashes = None, dict[str, str]()
    most = MOST_BYTES + MOST_RATIO * os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=io.BufferedReader(Unpacked(file, most)), mode="r|") as tar:
        for entry in tar:
            body = tar.extractfile(entry)
            if body is None or entry.name in hashes or len(hashes) >= MOST_FILES:
                raise ValueError(f"{entry.name[:80]}: is no file, is there twice, or is one of too many")
            if entry.name == MANIFEST and entry.size <= MOST_TEXT:
                manifest = parse_json(body.read())
            else:
                hashes[entry.name] = _digest(body)
    return manifest, hashes


def _digest(body: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := body.read(2**20):
        digest.update(block)
    return digest.hexdigest()
