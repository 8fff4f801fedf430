"""Files of others: pipes, endless and deep ones, and archives that unpack to far more than they are."""

import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from golf import report
from golf.errors import RunError
from golf.files import parse_json, read_bytes
from golf.launcher.standing import logged, read_standing
from golf.rundir import RunDir, read_json
from golf.submission import archive
from golf.submission.archive import MANIFEST, verify


def test_only_regular_files_of_a_size_are_read(tmp_path: Path) -> None:
    pipe, there = tmp_path / "pipe", tmp_path / "there"
    os.mkfifo(pipe)
    there.write_bytes(b"12345")
    assert read_bytes(there, 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_bytes(there, 4)
    assert read_bytes(there, 2**44) == b"12345", "no more is asked of memory than there is in the file"
    for odd in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"Not a regular file|Is a directory"):
            read_bytes(odd, 100)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 65 + "1" + "}" * 65, "{", "nul", ""])
def test_json_that_golf_would_not_write_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    assert read_json(tmp_path / "x.json") is None
    with pytest.raises(ValueError, match=r"\w"):
        parse_json(text)


def test_json_of_some_depth_is_read() -> None:
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}


def test_a_pipe_in_a_run_folder_holds_nobody_up(
    finished_copy: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    run = finished_copy()
    for name in ("result.json", "metrics.jsonl", "status.json"):
        (run / name).unlink()
        os.mkfifo(run / name)
    assert read_standing(RunDir(run)).state == "waiting" and logged(RunDir(run), "loss") == []
    assert report.main([str(run.parent)]) in (0, 2) and "Traceback" not in capsys.readouterr().err


def sealed(folder: Path, entries: dict[str, bytes], manifest: dict[str, str] | None = None) -> Path:
    """An archive of these files under the name that its bytes give."""
    blob = io.BytesIO()
    said = manifest if manifest is not None else {n: hashlib.sha256(b).hexdigest() for n, b in entries.items()}
    with tarfile.open(fileobj=blob, mode="w:xz") as tar:
        for name, body in {MANIFEST: json.dumps(said).encode(), **entries}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return named(folder, blob.getvalue())


def named(folder: Path, data: bytes) -> Path:
    path = folder / f"run-{hashlib.sha256(data).hexdigest()[:16]}.tar.xz"
    path.write_bytes(data)
    return path


def test_an_archive_that_unpacks_to_far_more_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 2**20)
    bomb = sealed(tmp_path, {"weights": bytes(2**23)})
    assert bomb.stat().st_size < 2**13
    with pytest.raises(RunError, match="unpacks to far more than a run is"):
        verify(bomb)


def test_odd_archives_are_refused_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verify(sealed(tmp_path, {"a": b"1", "b": b"2"})) == 2
    whole = lzma.compress(b"no tar" * 1000)
    for data in (b"", b"\xfd7zXZ\0", whole, whole[:-30], lzma.compress(b"")):
        with pytest.raises(RunError, match=r"no archive of a run|not those of its manifest"):
            verify(named(tmp_path, data))
    with pytest.raises(RunError, match="not those of its manifest"):
        verify(sealed(tmp_path, {"a": b"1"}, {"a": "0"}))
    with pytest.raises(RunError, match="one of too many"):
        monkeypatch.setattr(archive, "MOST_FILES", 1)
        verify(sealed(tmp_path, {"a": b"1", "b": b"2"}))
