"""A submission run again: its own file, in an empty folder, in a virtual environment of its own, without network."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from golf.alive import temporary_folder
from golf.arguments import one_of
from golf.errors import RunError, UserError
from golf.launcher.jobs import ONE_NODE, torchrun_line
from golf.rundir import DIGITS, RunDir, cpu_name
from golf.submission.folder import REQUIREMENTS, SCRIPT, TOKENIZER
from golf.submission.logs import last_line
from golf.submission.record import Ran, SeedResult, Submission, read_submission
from golf.tokens.shards import file_sha256

PACKAGES = ("install", "here")
SHORT = {"bfloat16": "bf16", "float32": "fp32"}  # as golf's log has them, and its result
OFFLINE = ["unshare", "--net", "--map-root-user", "sh", "-c", 'ip link set lo up 2>/dev/null; exec "$@"', "offline"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeated:
    """A seed's published result and the repetition's numbers. said: the script's last line; others: what was otherwise
    here than where it was made."""

    seed: int
    val_bpb: float
    artifact_bytes: int
    artifact_sha256: str
    published: SeedResult
    std: float | None
    said: dict[str, Any]
    others: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """The score to the last digit and the artifact to the last byte."""
        return self.val_bpb == self.published.val_bpb and self.artifact_sha256 == self.published.artifact_sha256

    @property
    def near(self) -> bool:
        """Within three of the published deviations between seeds (one seed: 0.1 %), and the file within 0.5 %."""
        bpb, size = self.published.val_bpb, self.published.artifact_bytes
        assert bpb is not None and size is not None, "looked at before the run"
        close = abs(self.val_bpb - bpb) <= (3 * self.std if self.std else 0.001 * bpb)
        return close and abs(self.artifact_bytes - size) <= 0.005 * size


@dataclass(frozen=True, slots=True)
class SetUp:
    """nproc: processes; threads of each (None: torch's own choice); variables: of their environment."""

    nproc: int
    threads: int | None
    variables: dict[str, str]


def reproduce(
    folder: Path, data: Path, seed: int | None, packages: str, nproc: int | None, threads: int | None
) -> Repeated:
    """Run one seed of a submission (None: its first) and compare. data: a folder of shards and their tokenizer.

    This runs the folder's train_gpt.py, as the user who calls it. nproc, threads: None for those that the seed was
    trained with, as submission.json records them; so are its device and the variables that change digits.
    packages: "install" what requirements.txt names (from the network, before the run), or those that are "here", linked
    into the environment. Raises RunError where the script fails, UserError for bad input.
    """
    record = read_submission(folder)
    seed = record.seeds[0] if seed is None else seed
    if seed not in record.seeds:
        raise UserError(f"seed={seed}: {folder} has {', '.join(map(str, record.seeds))}")
    published = record.seed_results.get(str(seed))
    if published is None or published.val_bpb is None or published.artifact_bytes is None:
        raise UserError(f"seed={seed}: {folder} has no result of it to compare with")
    one_of("packages", packages, PACKAGES)
    if not any(data.glob("*.bin")):
        raise UserError(f"data={data}: has no *.bin; name a folder of token shards, such as data/prepared/NAME")
    set_up = set_up_of(published.ran, nproc, threads)
    with _empty_folder(folder) as place:
        python = make_environment(place / "environment", folder / REQUIREMENTS, packages)
        command = [str(python), *_runner(set_up.nproc), SCRIPT]
        environment = _clean_environment(data.resolve(), place, seed, set_up.variables)
        done = subprocess.run(
            [*offline(), *command], cwd=place / "run", env=environment, capture_output=True, text=True
        )
        said = last_line(done.stdout)
        if done.returncode or said is None:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise RunError(f"{folder.name}, seed {seed}: the script ended with {done.returncode}:\n{tail}")
        found = _compared(record, seed, said, file_sha256(RunDir(place / "run").artifact))
        return replace(found, others=differences(published.ran, set_up, done.stdout, packages))


def set_up_of(ran: Ran | None, nproc: int | None, threads: int | None) -> SetUp:
    """Return what a seed is run with here: what is asked for, else what it was trained with.

    Raises UserError where it was trained on a GPU and this machine shows none.
    """
    if ran is not None and ran.device != "cpu" and not torch.cuda.is_available():
        raise UserError(f"reproduce: it was trained on {ran.device}, and no CUDA device is visible here")
    recorded = {} if ran is None else {name: v for name, v in ran.variables.items() if DIGITS.fullmatch(name)}
    threads = threads or (None if ran is None else ran.threads)
    if threads is not None:
        recorded["OMP_NUM_THREADS"] = str(threads)
    if ran is not None and ran.device == "cpu":
        recorded["CUDA_VISIBLE_DEVICES"] = ""  # the script takes a GPU where it sees one
    return SetUp(nproc or (1 if ran is None else ran.processes), threads, recorded)


def differences(ran: Ran | None, here: SetUp, printed: str, packages: str) -> tuple[str, ...]:
    """Return in what this repetition was made otherwise than the published seed; digits may differ with each."""
    if ran is None:
        return ("submission.json does not record how many threads and which device it was trained with",)
    settings = re.search(r"^attention: (\w+).*; precision: (\w+)", printed, re.MULTILINE)
    attention, precision = settings.groups() if settings else (None, None)
    pairs = {
        "processes": (ran.processes, here.nproc),
        "threads": (ran.threads, here.threads),
        "CPU": (ran.cpu, cpu_name() if ran.device == "cpu" else ran.cpu),
        "attention": (ran.attention, attention or ran.attention),
        "precision": (ran.precision, SHORT.get(str(precision), precision) or ran.precision),
    }
    if packages == "here":
        pairs["torch"] = (ran.torch, version("torch"))
    return tuple(f"{name} {now}, there {then}" for name, (then, now) in pairs.items() if then != now)


def _compared(record: Submission, seed: int, said: dict[str, Any], artifact_sha256: str) -> Repeated:
    return Repeated(
        seed=seed,
        val_bpb=said["val_bpb"][record.evaluator],
        artifact_bytes=said["artifact_bytes"],
        artifact_sha256=artifact_sha256,
        published=record.seed_results[str(seed)],
        std=record.val_bpb_std,
        said=said,
    )


@contextmanager
def _empty_folder(folder: Path) -> Iterator[Path]:
    """A temporary place with the script, and its tokenizer where it has one of its own, in `run`."""
    with temporary_folder("reproduce") as place:
        run = place / "run"
        run.mkdir()
        for file in (SCRIPT, TOKENIZER):
            if (folder / file).exists():
                shutil.copyfile(folder / file, run / file)
        yield place


def make_environment(place: Path, requirements: Path, packages: str) -> Path:
    """A virtual environment with what the script imports; returns its interpreter."""
    venv.create(place, with_pip=packages == "install", symlinks=True)
    python = place / "bin" / "python"
    if packages == "install":
        command = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
            str(requirements),
        ]
        if subprocess.run(command).returncode:
            raise RunError(f"{requirements}: could not be installed; packages=here takes those of this environment")
        return python
    # The folder alone, not what its own .pth files add: golf, installed for editing, is not among it.
    link = place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "here.pth"
    link.write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _runner(nproc: int) -> list[str]:
    if nproc == 1:
        return []
    return [*torchrun_line(nproc)[1:], *ONE_NODE]  # by another interpreter


def _clean_environment(data: Path, place: Path, seed: int, variables: dict[str, str]) -> dict[str, str]:
    """What the script is told, and of this process's variables only what the machine needs."""
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES")
    told = {"SEED": str(seed), "DATA_PATH": str(data), "OUT": str(place / "run")}
    return {name: os.environ[name] for name in kept if name in os.environ} | variables | told


def offline() -> list[str]:
    """A prefix that runs a command in a network namespace of its own, with nothing in it but itself."""
    try:
        able = subprocess.run([*OFFLINE, "true"], capture_output=True).returncode == 0
    except OSError:
        able = False
    if not able:
        raise RunError("this machine lets nobody make a network namespace (unshare --net), so no run here is offline")
    return OFFLINE


def told(found: Repeated) -> str:
    """In two lines, and one for each thing that was otherwise here."""
    verdict = "as published, within the spread" if found.near else "OTHER"
    if found.same:
        verdict = "the same to the last digit and byte"
    elif found.published.artifact_sha256 is None:
        verdict += " (no artifact_sha256 is published, so bytes were not compared)"
    return json.dumps(
        {
            "seed": found.seed,
            "val_bpb": found.val_bpb,
            "artifact_bytes": found.artifact_bytes,
            "artifact_sha256": found.artifact_sha256,
            "code_bytes": found.said.get("code_bytes"),
        }
    ) + (
        f"\nseed {found.seed}: {found.val_bpb:.6f} BPB, {found.artifact_bytes:,} bytes; published "
        f"{found.published.val_bpb:.6f} and {found.published.artifact_bytes:,}: {verdict}"
        + "".join(f"\nother than there: {text}" for text in ([] if found.same else found.others))
    )
