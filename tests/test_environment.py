"""What stands around a run (variables, home folders, names of the host, words for null) never changes or hangs it."""

import dataclasses
import functools
import operator
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from golf import audit, data, dist, door, evaluate, quantize, report, submit
from golf.arguments import key_values
from golf.code_record import ROOT
from golf.compose import compose
from golf.config import Run
from golf.errors import UserError
from golf.files import path_of, paths_of
from golf.launcher import jobs
from golf.launcher.processes import TORCHRUN_NAMES, die_with_torchrun, is_rank
from golf.launcher.slots import Slot
from golf.nodes import configs, plain
from golf.rundir import RunDir
from golf.sinks import Sink, WandbConfig, WandbSink
from golf.suggestions import NO_VALUE
from golf.train import as_many_ranks
from golf.typed import typed

LEFT_OVER = dict.fromkeys(TORCHRUN_NAMES, "3") | {"TORCHELASTIC_RUN_ID": "x", "PET_NNODES": "2"}

# ---------------------------------------------------------------- ranks


@pytest.fixture
def left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a torchrun further up."""
    for name, value in LEFT_OVER.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("nproc", [1, 2])
@pytest.mark.usefixtures("left_over")
def test_a_run_has_no_ranks_of_others(nproc: int, toy: Callable[..., Run], tmp_path: Path) -> None:
    command, environment = jobs.worker_command(toy(f"launch.nproc={nproc}"), RunDir(tmp_path), Slot(2))
    assert not LEFT_OVER.keys() & environment.keys() and environment["PATH"] == os.environ["PATH"]
    assert ("--local-addr=127.0.0.1" in command) == (nproc > 1), "the host's own name need not resolve"


def test_rank_and_world_size_alone_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters and other programs set them, too."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert dist.start("cpu") == dist.ALONE


@pytest.mark.usefixtures("left_over")
def test_a_process_that_torchrun_did_not_start_is_no_rank() -> None:
    assert not is_rank(sys.argv) and door.ranks_asked() is None
    assert as_many_ranks(["seed=1"]) == ["seed=1"]


def test_a_door_under_torchrun_asks_for_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of torchrun's processes is the door, and starts so many ranks itself."""
    monkeypatch.setattr(door, "is_rank", lambda arguments: True)
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert as_many_ranks(["seed=1"]) == ["seed=1", "launch.nproc=2"]
    assert as_many_ranks(["launch.nproc=4"]) == ["launch.nproc=4"]
    monkeypatch.setattr(door, "is_own_process", lambda: True)
    monkeypatch.setattr(door, "read_utf8", lambda: None)
    does = door.in_one_line(lambda: 7)
    for rank, code in (("0", 7), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert does() == code
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    assert does() == 2, "ranks on several machines are SLURM's to start"


def test_is_rank_reads_the_parents_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")[:-1]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert is_rank([os.fsdecode(word) for word in words[-2:]]) and not is_rank(["golf/worker.py", "elsewhere"])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert not is_rank([os.fsdecode(word) for word in words[-2:]])
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("a lone worker ended itself"))
    die_with_torchrun(["golf/worker.py", "elsewhere"])


# ---------------------------------------------------------------- doors


def test_every_door_sets_up_its_process() -> None:
    """What has a main of its own goes through golf.door: its streams, and one line for what is no bug."""
    scripts = [path for path in (ROOT / "golf").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    mains = {path.stem: path.read_text() for path in scripts}
    assert {"train", "worker", "report", "audit", "submit", "data", "evaluate", "quantize"} <= mains.keys()
    for name, text in mains.items():
        shared = "@in_one_line\ndef main(" in text or "DOOR.main(" in text or "    read_utf8()\n" in text
        assert shared, f"golf/{name}.py"


def test_another_programs_process_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "read_utf8", lambda: pytest.fail("a test's process was set up"))
    assert not door.is_own_process() and door.in_one_line(lambda: 5)() == 5
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(ROOT / "golf" / "report.py"), raising=False)
    assert door.is_own_process()


@pytest.mark.parametrize("encoding, again", [("UTF-8", False), ("ANSI_X3.4-1968", True), ("ISO-8859-1", True)])
def test_a_process_reads_utf8_whatever_the_locale(encoding: str, again: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    monkeypatch.setattr("locale.getpreferredencoding", lambda do: encoding)
    monkeypatch.setattr(os, "execve", lambda program, line, environment: started.append(environment))
    door.read_utf8()
    assert bool(started) == (again and not sys.flags.utf8_mode)
    for environment in started:
        assert environment["PYTHONUTF8"] == "1" and environment["PYTHONIOENCODING"] == sys.stdout.encoding


# ---------------------------------------------------------------- home folders

PATHS: dict[str, Callable[[str], Any]] = {
    "audit run": lambda path: audit.main([f"run={path}"]),
    "audit run, second": lambda path: audit.main([f"run={path},{path}"]),
    "audit sweep": lambda path: audit.main([f"sweep={path}"]),
    "audit known_bad": lambda path: audit.main([f"run={path}", "known_bad=true"]),
    "evaluate run": lambda path: evaluate.main([f"run={path}"]),
    "quantize run": lambda path: quantize.main([f"run={path}"]),
    "quantize inspect": lambda path: quantize.main([f"inspect={path}"]),
    "report": lambda path: report.main([path]),
    "submit run": lambda path: submit.main([f"run={path}", "track=non_record", "name=x", "author=me"]),
    "submit check": lambda path: submit.main([f"check={path}"]),
    "submit reproduce": lambda path: submit.main([f"reproduce={path}", f"data={path}"]),
    "submit archive": lambda path: submit.main([f"archive={path}"]),
    "submit verify": lambda path: submit.main([f"verify={path}"]),
    "data list": lambda path: data.main(["list", "--data-dir", path]),
    "data check": lambda path: data.main(["check", path]),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and an empty folder to be in."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


@pytest.mark.parametrize("name", PATHS)
def test_every_door_knows_home_folders(name: str, home: Path, capfd: pytest.CaptureFixture) -> None:
    """The message names the place that was looked at."""
    assert PATHS[name]("~/absent") in (1, 2)
    said = "".join(capfd.readouterr())
    assert f"{home}/absent" in said and "Traceback" not in said, said
    assert not list(Path().iterdir()), "no folder named ~"


def test_a_runs_places_know_home_folders(home: Path, toy: Callable[..., Run]) -> None:
    run = toy("outputs='~/out'", "data_dir='~/data'", "data.path='~/absent.txt'")
    assert (run.outputs, run.data_dir) == (f"{home}/out", f"{home}/data")
    with pytest.raises(UserError, match=r"data.path=~/absent.txt: no"):
        run.data.prepare(Path(run.data_dir))
    (home / "absent.txt").write_text("one\n\ntwo")
    with pytest.raises(UserError, match="fall"):
        run.data.prepare(Path(run.data_dir), log=lambda line: None)


def test_what_is_kept_goes_home(home: Path, finished: Callable[..., Path], capfd: pytest.CaptureFixture) -> None:
    shutil.copytree(finished(), home / "run")
    assert submit.main(["archive=~/run", "into=~/kept"]) == 0
    assert list((home / "kept").iterdir()) and not list(Path().iterdir())


def test_a_comma_may_be_part_of_a_name(tmp_path: Path) -> None:
    for name in ("a,b", "c", "d"):
        (tmp_path / name).mkdir()
    listed = [tmp_path / "c", tmp_path / "a,b", tmp_path / "d", tmp_path / "x", tmp_path / "y"]
    assert paths_of(",".join(map(str, listed))) == listed
    assert paths_of("") == [Path()]


def test_a_home_that_nobody_has_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="~no_such_user/x: nobody's home folder is known for ~no_such_user"):
        path_of("~no_such_user/x")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(UserError, match="write the path out"):
        path_of("~/x")


# ---------------------------------------------------------------- words for null


def nullable(run: Run) -> Iterator[tuple[str, str]]:
    """The path of each config of a run and the name of each of its fields that can be null."""
    for path, config in configs(run):
        for name, hint in get_type_hints(type(config)).items():
            if NoneType in get_args(hint) and name in {item.name for item in dataclasses.fields(config)}:
                yield path, name


@pytest.mark.parametrize(
    "line", [["log=wandb", "late=replay", "qat=late"], ["launch=slurm", "eval=documents", "model=baseline"]]
)
def test_words_for_null_are_refused_at_every_key_that_can_be_null(line: list[str], toy: Callable[..., Run]) -> None:
    run = toy(*line)
    keys = list(nullable(run))
    assert len(keys) > 20 and ("", "sweep_label") in keys and ("budget", "max_seconds") in keys
    for number, (path, name) in enumerate(keys):
        node = plain(run)
        holder = functools.reduce(operator.getitem, path.split(".") if path else (), node)
        holder[name] = ("None", *NO_VALUE)[number % (len(NO_VALUE) + 1)]
        key = f"{path}.{name}".lstrip(".")
        with pytest.raises(UserError) as refused:
            typed(node, "", Run)
        assert str(refused.value).startswith(f"{key}=") and f"write {key}=null" in str(refused.value)


@pytest.mark.parametrize(
    "override, fix",
    [
        ("label=None", "write label=null"),
        ("late=None", "write late=null"),
        ("codec=none", "write codec=null"),
        ("average=None", "did you mean none?"),
        ("+optimizer.groups.x=None", "write optimizer.groups.x=null"),
        ("data.separator=None", "write data.separator=null"),
    ],
)
def test_a_word_for_null_is_refused_with_the_fix(override: str, fix: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(["track=tiny", "data=text", override])
    assert fix in str(refused.value) and "\n" not in str(refused.value)


def test_null_may_be_written_in_capitals() -> None:
    """As values may, in YAML and on Hydra's command line."""
    assert compose(["track=tiny", "late=NULL", "budget.max_seconds=NULL"]).late is None


def test_an_argument_that_means_none_is_left_out() -> None:
    with pytest.raises(UserError, match="row=None: is a text here; leave row out"):
        key_values(["row=None"], ["row"])
    assert key_values(["row=none"], ["row"]) == {"row": "none"}, "a row may be called so"


# ---------------------------------------------------------------- W&B


@pytest.mark.parametrize(
    "mode, variable, chosen",
    [
        ("auto", "", "auto"),
        ("auto", "disabled", "disabled"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "online", "online"),
        ("online", "disabled", "online"),
        ("offline", "disabled", "offline"),
    ],
)
def test_wandb_mode_is_heard_where_golf_is_told_nothing(
    mode: str, variable: str, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", variable)
    monkeypatch.setattr(WandbSink, "_start", lambda *given: None)
    config, notes = WandbConfig(every_steps=1, project="golf", entity=None, mode=mode), []
    assert config.chosen_mode() == chosen
    sink = config.build(tmp_path, {}, notes.append)
    assert (type(sink) is Sink) == (chosen == "disabled") == bool(notes)
    assert not list(tmp_path.iterdir())
