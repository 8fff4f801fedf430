"""The listings of README work as they stand there."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest
import torch
from hydra.types import RunMode

import golf.models
from golf import classes
from golf.command_line import check_arguments, parsed, search_path
from golf.compose import compose, compose_whole, run_of_whole
from golf.conf_files import CONF
from golf.config import Run
from hydra_plugins.golf_sweeper import plan_of
from tests.helpers.runs import Job, toy_overrides
from tests.helpers.tiers import quick

README = (CONF.parent / "README.md").read_text()


def listing(path: str) -> str:
    """Return the text of a file, as README shows it behind the file's name."""
    (text,) = re.findall(rf"`{re.escape(path)}`\n\n((?:    .*\n|\n)+)", README)
    return textwrap.dedent(text).strip() + "\n"


@pytest.fixture
def idea(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A toy run with README's part, whose two files lie in a copy of golf, made of links, and a folder like conf/."""
    for path in classes.GOLF.rglob("*.py"):
        link = tmp_path / "golf" / path.relative_to(classes.GOLF)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    for name in ("golf/models/head_scale.py", "conf/model/output/head_scale.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(listing(name))
    monkeypatch.setattr(classes, "GOLF", tmp_path / "golf")
    monkeypatch.setattr(golf.models, "__path__", [*golf.models.__path__, str(tmp_path / "golf" / "models")])
    places = [f"outputs={tmp_path / 'outputs'}", search_path([str(tmp_path / "conf")])]
    return compose(toy_overrides(toy_folder, [*places, "model/output=head_scale"]))


def test_the_idea_of_the_readme_is_a_part_of_the_model(idea: Run) -> None:
    model = idea.model.build()
    scales = {name: role for name, role in model.stored_roles().items() if name.endswith("scale_H")}
    assert set(scales.values()) == {"scalar"} and len(scales) == idea.model.layers
    ids_BT = torch.arange(16)[None]
    for parameter in model.parameters():  # what writes to the residual stream is zero at first
        torch.nn.init.normal_(parameter, std=0.1)
    before = model.log_probs(ids_BT)
    model.get_parameter(next(iter(scales))).data.add_(1.0)
    assert torch.isfinite(before).all() and not torch.equal(before, model.log_probs(ids_BT))


@pytest.mark.slow
def test_the_idea_of_the_readme_trains_and_is_read_back(idea: Run) -> None:
    assert "artifact, read back" in Job(idea).here()


# Wrong on purpose, or with a name for the reader to fill in.
NOT_MEANT = ("model.dim=500", "model.dimm", "NAME", "KEY=")
COMMANDS = [
    shlex.split(line.strip().removeprefix("$ "), comments=True)[2:]
    for line in README.splitlines()
    if re.match(r" {4}(\$ )?python golf/train\.py", line) and not any(word in line for word in NOT_MEANT)
]


@pytest.mark.parametrize("words", quick(COMMANDS[::8], COMMANDS), ids=" ".join)
def test_the_commands_of_the_readme_compose(words: list[str]) -> None:
    overrides = check_arguments(words).overrides
    whole = compose_whole([word for word in overrides if not parsed(word).is_sweep_override()])
    if whole.hydra.mode == RunMode.MULTIRUN:
        assert plan_of(whole).purpose
    else:
        assert isinstance(run_of_whole(whole, overrides), Run)
