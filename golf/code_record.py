"""Which code a run is made with: the commit, what the working tree has beyond it as a patch, a hash of all of it."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from golf.alive import temporary_folder

ROOT = Path(__file__).resolve().parents[1]
CODE = ("golf", "conf", "sweeps", "hydra_plugins")
SUFFIXES = (".py", ".yaml")
# A patch that `git apply` takes, whatever the user's settings and attributes make of a diff for the eye.
DIFF = ("diff", "HEAD", "--binary", "--full-index", "--unified=3", "--no-relative", "--no-ext-diff", "--no-textconv",
        "--no-color", "--no-renames", "--src-prefix=a/", "--dst-prefix=b/", "--ignore-submodules=all")  # fmt: skip
# The checkout may be another user's: git refuses to look at it without this. Its code is running already.
SAFE = ("-c", f"safe.directory={ROOT}", "-c", "core.fsmonitor=false", "-c", "core.quotepath=false")


class GitError(Exception):
    """What git says where it cannot tell."""


def _git(*arguments: str, index: Path | None = None) -> bytes:
    """Return what git prints in golf's own checkout. index: in place of the repository's own."""
    ours = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    ours |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"} | ({"GIT_INDEX_FILE": str(index)} if index else {})
    try:
        line = ["git", "-C", str(ROOT), *SAFE, *arguments]
        done = subprocess.run(line, capture_output=True, timeout=60, env=ours, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitError(str(error)) from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise GitError(said[0] if said else f"git ended with {done.returncode}")
    return done.stdout


def git(*arguments: str) -> str | None:
    """Return what git says in golf's own checkout, as text; None where it can't tell."""
    try:
        return _git(*arguments).decode(errors="replace").strip()
    except GitError:
        return None


def changes() -> bytes:
    """Return what the working tree has beyond the commit, new files of golf's own folders included, as a patch.

    Empty where there is nothing. Raises GitError where git can't tell.
    """
    new = [name for name in _git("ls-files", "-z", "--others", "--exclude-standard", "--", *CODE).split(b"\0") if name]
    if not new:
        return _git(*DIFF)
    with temporary_folder("index") as folder:
        index = folder / "index"  # a copy: the repository's own is the user's
        there = ROOT / _git("rev-parse", "--git-path", "index").decode().strip()
        if there.exists():
            shutil.copy2(there, index)  # with its time: git looks into files that are as new as their index
        for name in new:
            _git("add", "--intent-to-add", "--", os.fsdecode(name), index=index)
        return _git(*DIFF, index=index)


def code_sha256() -> str:
    """Return a hash of all code and configuration that runs are made with: it tells without git."""
    digest = hashlib.sha256()
    for folder in CODE:
        for path in sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.is_file()):
            digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
            digest.update(path.read_bytes())
    return digest.hexdigest()


def record(patch: bytes | None = None) -> dict[str, Any]:
    """Return git_commit, git_dirty, git_error and code_sha256, as environments hold them.

    patch: changes(), where they are known. What git can't tell is null, and git_error says why.
    """
    facts: dict[str, Any] = {"git_commit": None, "git_dirty": None, "git_error": None, "code_sha256": code_sha256()}
    try:
        facts["git_commit"] = _git("rev-parse", "HEAD").decode().strip()
        facts["git_dirty"] = bool(changes() if patch is None else patch)
    except GitError as error:
        facts["git_error"] = str(error)
    return facts


def brief(environment: dict[str, Any], step: int = 0) -> dict[str, Any]:
    """Return the code of an environment, as `codes` of a result names it. step: from which on it ran."""
    keys = ("git_commit", "git_dirty", "code_sha256")
    return {"from_step": step, **{key: environment.get(key) for key in keys}}


def joined(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the codes that made something, in order, none twice in a row."""
    codes = list(before)
    for code in now:
        if not codes or not same_code(codes[-1], code):
            codes.append(code)
    return codes


def same_code(then: dict[str, Any], now: dict[str, Any]) -> bool:
    """Return whether two environments (of a result, of this process) are known to be of the same code."""
    if then.get("code_sha256") is not None:
        return bool(then["code_sha256"] == now["code_sha256"])
    # a result of before the code was hashed
    return then.get("git_dirty") is False and now["git_dirty"] is False and then.get("git_commit") == now["git_commit"]
