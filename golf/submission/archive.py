"""A run in one file that names its own checksum and is never written twice."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

from golf.errors import RunError, UserError
from golf.rundir import RunDir

MANIFEST = "MANIFEST.json"
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
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
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
    """How many files an archive holds, each as its manifest says, the whole as its name says. RunError where not."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != path.name.removesuffix(".tar.xz").rsplit("-", 1)[-1]:
        raise RunError(f"{path}: is damaged: its sha256 is not the one in its name")
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as tar:
        found = {entry.name: tar.extractfile(entry) for entry in tar.getmembers()}
        held = {name: file.read() for name, file in found.items() if file is not None}
    manifest = json.loads(held.pop(MANIFEST))
    if {name: hashlib.sha256(body).hexdigest() for name, body in held.items()} != manifest:
        raise RunError(f"{path}: its files are not those of its manifest")
    return len(held)
