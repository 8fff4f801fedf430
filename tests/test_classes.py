"""Nothing that a file names is imported or made, unless it is golf's or of a package that the user registered."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from golf import audit, evaluate, quantize, report, submit, worker
from golf.artifact.file import CONFIG_PACKAGES
from golf.classes import config_class
from golf.compose import compose
from golf.conf_files import load_part, no_variables
from golf.config import Run
from golf.errors import UserError
from golf.models.slots import MLPConfig
from golf.nodes import plain, rebuild
from golf.typed import typed

PAYLOAD = """
import pathlib
from dataclasses import dataclass
from golf.models.slots import MLPConfig
pathlib.Path(__file__).with_name("mark").touch()

@dataclass(kw_only=True, slots=True)
class EvilConfig(MLPConfig):
    def __post_init__(self):
        pathlib.Path(__file__).with_name("made").touch()
"""


@pytest.fixture
def payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the import path whose module `payload` leaves files when it is imported and when it makes one."""
    folder = tmp_path / "payload_folder"
    folder.mkdir()
    (folder / "payload.py").write_text(PAYLOAD)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("payload", None)


def evil(node: Any, path: tuple[str, ...]) -> Any:
    """The node with the payload's class at this place."""
    node = json.loads(json.dumps(node))
    inner = node
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = {"_target_": "payload.EvilConfig"}
    return node


PLACES = (
    ("model",),
    ("model", "mlp"),
    ("model", "mixer", "output", "extra"),
    ("optimizer", "groups", "matrices"),
    ("quant", "roles"),
    ("quant", "roles", "matrix"),
    ("seed",),
)


@pytest.mark.parametrize("path", PLACES, ids=".".join)
def test_a_tree_imports_nothing_from_elsewhere(path: tuple[str, ...], toy: Callable[..., Run], payload: Path) -> None:
    with pytest.raises(UserError):
        typed(evil(plain(toy()), path), "", Run)
    assert list(payload.glob("ma*")) == [] and "payload" not in sys.modules


@pytest.mark.parametrize("target", [
    "payload.EvilConfig", "golf.payload.EvilConfig", "golf..payload.EvilConfig", "golf/payload.EvilConfig",
    "payload:EvilConfig", "golf.models.lm.torch.nn.Linear", "golf.models.lm.LM", "golf.models.lm.replace",
    "golf.rundir.os.system", "", "golf", None, "golf.evals.known_bad.PeekingConfig", "golf.models.mla.RopeConfig",
])  # fmt: skip
def test_only_config_classes_are_classes(target: Any, payload: Path) -> None:
    """Neither attributes of modules nor what code alone can make, and each by the one name of its own module."""
    with pytest.raises(ValueError, match=r"\w"):
        config_class(target)
    assert list(payload.glob("ma*")) == []


def test_an_artifact_names_parts_of_models_alone(toy: Callable[..., Run], payload: Path) -> None:
    model = plain(toy().model)
    slot = type(toy().model)
    for path in (("mlp",), ("mixer", "output", "extra")):
        with pytest.raises(ValueError, match=r"not in golf\.models or golf\.quant or golf\.artifact"):
            rebuild(evil(model, path), slot, CONFIG_PACKAGES)
    with pytest.raises(ValueError, match="names a GQAConfig where a MLPConfig belongs"):
        rebuild(model | {"mlp": model["mixer"]}, slot, CONFIG_PACKAGES)
    assert list(payload.glob("ma*")) == []


def test_no_part_is_made_that_does_not_fit(toy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Golf's own ones neither: what they check as they are made may cost something."""
    part = load_part("quant/allocation/waterfill")
    made: list[Any] = []
    monkeypatch.setattr(type(part), "__post_init__", made.append)
    for key in ("schedule", "budget"):
        with pytest.raises(UserError, match=f"^{key}=WaterfillConfig: must be a "):
            typed({**plain(toy()), key: plain(part)}, "", Run)
    with pytest.raises(ValueError, match="names a WaterfillConfig where a MLPConfig belongs"):
        rebuild({**plain(toy().model), "mlp": plain(part)}, type(toy().model), CONFIG_PACKAGES)
    assert made == []


def test_a_registered_package_is_the_users(
    toy: Callable[..., Run], payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"not in golf, .*; GOLF_PACKAGES=payload registers that package, if it is yours"
    ):
        typed(evil(plain(toy()), ("model", "mlp")), "", Run)
    monkeypatch.setenv("GOLF_PACKAGES", "other, payload")
    run = typed(evil(plain(toy()), ("model", "mlp")), "", Run)
    assert type(run.model.mlp).__module__ == "payload" and isinstance(run.model.mlp, MLPConfig)
    assert rebuild(plain(run.model), type(run.model), CONFIG_PACKAGES) == run.model
    assert (payload / "mark").exists() and (payload / "made").exists()


DOORS: dict[str, Callable[[Path], int]] = {
    "evaluate": lambda run: evaluate.main([f"run={run}", "eval=plain"]),
    "quantize": lambda run: quantize.main([f"run={run}", "quant=int8"]),
    "audit": lambda run: audit.main([f"run={run}"]),
    "submit": lambda run: submit.main([f"run={run}", "name=x", "track=record"]),
    "report": lambda run: report.main([str(run.parent)]),
    "worker": lambda run: worker.main(str(run)),
}


@pytest.mark.parametrize("door", DOORS)
def test_no_door_runs_what_a_run_folder_names(
    door: str, finished_copy: Callable[..., Path], payload: Path, capsys: pytest.CaptureFixture
) -> None:
    run = finished_copy()
    config = json.loads((run / "config.json").read_text())
    config["run"] = evil(config["run"], ("model", "mlp"))
    (run / "config.json").write_text(json.dumps(config))
    shutil.copy(payload / "payload.py", run)
    code = DOORS[door](run)
    assert list(payload.glob("ma*")) == [] and not (run / "mark").exists()
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert code == 2 or door in ("report", "worker"), "a report counts folders, and a finished run is not begun"


def test_a_command_line_in_a_run_folder_names_nothing_either(
    finished_copy: Callable[..., Path], payload: Path, capsys: pytest.CaptureFixture
) -> None:
    run = finished_copy()
    command = run / "command.txt"
    command.write_text(command.read_text().strip() + " model.mlp._target_=payload.EvilConfig\n")
    assert quantize.main([f"run={run}", "quant=int8"]) == 2
    assert "model.mlp._target_=payload.EvilConfig: not in golf" in capsys.readouterr().err
    assert list(payload.glob("ma*")) == []


@pytest.mark.parametrize("words", [
    ("hydra.searchpath=[pkg://payload]",),
    ("hydra.searchpath=[]", "++hydra.searchpath=[pkg://payload.inner]"),
])  # fmt: skip
def test_a_command_line_in_a_run_folder_imports_no_package(
    words: tuple[str, ...], finished_copy: Callable[..., Path], payload: Path, capsys: pytest.CaptureFixture
) -> None:
    """Hydra would import it, to look for YAML files in it."""
    run = finished_copy()
    command = run / "command.txt"
    command.write_text(shlex.join([*shlex.split(command.read_text()), *words]) + "\n")
    assert quantize.main([f"run={run}", "quant=int8"]) == 2
    assert "pkg://payload" in capsys.readouterr().err
    assert list(payload.glob("ma*")) == []


def test_an_unfinished_run_of_somebody_else_is_refused(
    finished_copy: Callable[..., Path], payload: Path, capsys: pytest.CaptureFixture
) -> None:
    run = finished_copy()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "run": evil(config["run"], ("model", "mlp"))}))
    (run / "result.json").unlink()
    assert worker.main(str(run)) == 2
    assert "model.mlp._target_=payload.EvilConfig: not in golf" in capsys.readouterr().err
    assert list(payload.glob("ma*")) == []


@pytest.mark.parametrize("where", ["its command", "a YAML file of its folder", "its configuration"])
def test_a_run_folder_reads_no_variable_of_this_machine(
    where: str, finished_copy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A file that is written from it, and may be published, would hold the secret."""
    monkeypatch.setenv("SECRET", "s3cret")
    run = finished_copy()
    command, extra = run / "command.txt", run / "conf" / "eval"
    words = shlex.split(command.read_text())
    if where == "its command":
        words.append("eval.main=${oc.env:SECRET}")
    elif where == "its configuration":
        config = json.loads((run / "config.json").read_text())
        config["run"]["eval"]["main"] = "${oc.env:SECRET}"
        (run / "config.json").write_text(json.dumps(config))
    else:
        extra.mkdir(parents=True)
        (extra / "theirs.yaml").write_text("defaults: [plain, _self_]\nmain: ${oc.env:SECRET}\n")
        words += [f"hydra.searchpath=[file://{extra.parent}]", "eval=theirs"]
    command.write_text(shlex.join(words) + "\n")
    assert quantize.main([f"run={run}", "quant=int8"]) == 2
    said = capsys.readouterr()
    assert "oc.env:SECRET}" in said.err and "s3cret" not in said.out + said.err, said
    assert not list(run.parents[1].glob("requantised-*"))
    with no_variables():
        pass
    monkeypatch.setenv("FIVE", "5")
    assert compose(["track=tiny", "seed=${oc.env:FIVE}"]).seed == 5, "one's own command may read them"
