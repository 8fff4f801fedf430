"""The record of the code: a patch that applies, whatever git's settings, and a word where git cannot tell."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from golf import code_record
from golf.code_record import brief, changes, joined, record, same_code
from golf.rundir import Made, RunDir, make_folder
from tests.helpers.runs import Job

GIT = ("git", "-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false")


def git(folder: Path, *words: str, stdin: bytes | None = None) -> bytes:
    return subprocess.run([*GIT, *words], cwd=folder, check=True, capture_output=True, input=stdin).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository in golf's place, with a commit of files of every kind."""
    folder = tmp_path / "check out [1]"
    for name, body in {
        "golf/a.py": b"one\n\ntwo\n\n\nthree\n",
        "golf/gone.py": b"gone\n",
        "golf/latin.py": "# gr\xfc\xdfe\n".encode("latin-1") * 5,
        "golf/crlf.py": b"one\r\ntwo\r\nthree\r\n",
        "golf/open end.py": b"no newline",
        "golf/run.py": b"#!/bin/sh\n",
        "conf/data.bin": bytes(range(256)),
        "README.md": b"read\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(body)
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    monkeypatch.setattr(code_record, "ROOT", folder)
    monkeypatch.setattr(code_record, "SAFE", tuple(word.replace(str(code_record.Path(__file__).parents[1]), str(folder))
                                                   for word in code_record.SAFE))  # fmt: skip
    return folder


def edit(folder: Path) -> None:
    """Change a file of each kind, and add new ones."""
    (folder / "golf/a.py").write_bytes(b"one\n\nTWO  \n\n\nthree\n\n")
    (folder / "golf/gone.py").unlink()
    (folder / "golf/latin.py").write_bytes(b"# \xff\xfe\n" + (folder / "golf/latin.py").read_bytes())
    (folder / "golf/crlf.py").write_bytes(b"one\r\nTWO\r\nthree\n")
    (folder / "golf/open end.py").write_bytes(b"no newline yet")
    (folder / "golf/run.py").chmod(0o755)
    (folder / "conf/data.bin").write_bytes(bytes(range(255, -1, -1)))
    (folder / "golf/new idea.py").write_bytes(b"new\n\n\xe9\n")
    (folder / "conf/größe.yaml").write_bytes(b"x: 1")
    (folder / "sweeps").mkdir()
    (folder / "sweeps/empty.yaml").write_bytes(b"")
    (folder / "README.md").write_bytes(b"read me\n")
    (folder / "notes.txt").write_bytes(b"outside golf's own folders: left out\n")


def tree(folder: Path) -> dict[str, tuple[bytes, bool]]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path.relative_to(folder)): (path.read_bytes(), os.access(path, os.X_OK)) for path in files}


SETTINGS = {
    "none": [],
    "an own diff": [("diff.external", "true")],
    "no prefix": [("diff.noprefix", "true")],
    "other prefixes": [("diff.mnemonicPrefix", "true")],
    "colours": [("color.ui", "always"), ("color.diff", "always")],
    "a text of binaries": [("diff.up.textconv", "tr a-z A-Z <")],
    "blanks": [("core.whitespace", "trailing-space"), ("apply.whitespace", "nowarn"), ("core.autocrlf", "false")],
    "few words": [("diff.context", "0"), ("diff.renames", "copies"), ("core.quotepath", "true")],
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_patch_makes_the_same_tree(settings: str, checkout: Path, tmp_path: Path) -> None:
    for key, value in SETTINGS[settings]:
        git(checkout, "config", key, value)
    (checkout / ".git/info/attributes").write_text("*.py diff=up\n")
    git(checkout, "clone", "-q", str(checkout), str(tmp_path / "clean"))
    assert changes() == b"" and record()["git_dirty"] is False
    edit(checkout)
    before = (checkout / ".git/index").read_bytes()
    git(tmp_path / "clean", "apply", "--whitespace=nowarn", "-", stdin=changes())
    expected = {name: found for name, found in tree(checkout).items() if name != "notes.txt"}
    assert tree(tmp_path / "clean") == expected
    assert record()["git_dirty"] is True
    assert (checkout / ".git/index").read_bytes() == before, "the user's own index stays as it was"


def test_variables_of_git_lead_nowhere_else(checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    commit = record()["git_commit"]
    for name, value in {"GIT_DIR": str(tmp_path / "none"), "GIT_EXTERNAL_DIFF": "true", "GIT_WORK_TREE": "/"}.items():
        monkeypatch.setenv(name, value)
    (checkout / "golf/a.py").write_text("other\n")
    assert record()["git_commit"] == commit and b"+other" in changes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_owners_checkout_is_read(checkout: Path) -> None:
    for path in (checkout, checkout / ".git"):
        os.chown(path, 12345, 12345)
    refused = subprocess.run(["git", "-C", str(checkout), "status"], capture_output=True)
    assert b"dubious ownership" in refused.stderr
    found = record()
    assert len(found["git_commit"]) == 40 and found["git_dirty"] is False and found["git_error"] is None


def test_where_git_cannot_tell_it_is_said(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = record()
    assert found["git_commit"] is None and found["git_dirty"] is None and "git" in found["git_error"]
    assert not same_code({"git_commit": None, "git_dirty": None}, found), "what is not known is not the same"
    assert same_code(found, record()), "its hash tells"
    (checkout / "golf/a.py").write_text("other\n")
    assert not same_code(found, record())


def test_an_environment_of_before_is_judged_by_its_commit() -> None:
    now = {"git_commit": "a", "git_dirty": False, "code_sha256": "1"}
    assert same_code({"git_commit": "a", "git_dirty": False}, now)
    for then in ({"git_commit": "b", "git_dirty": False}, {"git_commit": "a", "git_dirty": True}, {"git_commit": "a"}):
        assert not same_code(then, now)


def test_codes_are_named_in_their_order() -> None:
    a, b = ({"code_sha256": name, "git_commit": name, "git_dirty": False} for name in "ab")
    codes = joined([brief(a)], [brief(a, 4)])
    codes = joined(codes, [brief(b, 6)])
    assert [(code["code_sha256"], code["from_step"]) for code in codes] == [("a", 0), ("b", 6)]


def test_each_attempt_is_recorded(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    for changed in (b"", b"+ \xff one\n", b"+ \xff one\n"):
        make_folder(folder, {}, "", ["train.py"], lambda changed=changed: Made(changed, {"git_dirty": bool(changed)}))
    lines = [json.loads(line) for line in (tmp_path / "attempts.jsonl").read_text().splitlines()]
    assert [line["environment"]["git_dirty"] for line in lines] == [False, True, True]
    assert [(tmp_path / line["patch"]).read_bytes() for line in lines] == [b"", b"+ \xff one\n", b"+ \xff one\n"]
    assert json.loads((tmp_path / "environment.json").read_text()) == {"git_dirty": False}, "as it began"


def test_a_run_that_goes_on_under_other_code_says_so(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from golf import audit, report

    def code(name: str) -> None:
        made = {"git_commit": name, "git_dirty": False, "git_error": None, "code_sha256": name}
        monkeypatch.setattr(code_record, "record", lambda patch=None: made)

    one = job("checkpoint.every_steps=2")
    code("first")
    monkeypatch.setattr("golf.worker.export", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        one.here(code=1)
    monkeypatch.undo()
    code("second")
    assert "made by 2 codes" in one.here()
    assert [(c["code_sha256"], c["from_step"]) for c in one.result()["codes"]] == [("first", 0), ("second", 6)]
    assert report.main([str(one.folder.path.parent)]) == 0 and "MADE BY 2 CODES" in capsys.readouterr().out
    assert audit.main([f"run={one.folder.path}"]) == 1 and "made by 2 codes" in capsys.readouterr().out
