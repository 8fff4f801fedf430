"""Composition: the same as Hydra's own, from files read once; a part of the configuration alone."""

import os
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from golf.compose import VERSION_BASE, Composer, compose, compose_whole, set_up_hydra
from golf.conf_files import CONF, load_part, parse
from golf.errors import UserError
from tests.helpers.tiers import quick

YAMLS = sorted(CONF.rglob("*.yaml"))
LINES = [
    ["track=tiny", "experiment=pr401", "seed=7", "model.dim=64"],
    ["loss=[z_loss,entropy_weighted]", "~optimizer.roles.gate", "+loss.more=null", "optimizer.groups.matrices.lr=1e-3"],
    ["track=laptop", "+sweep=smoke", "hydra.sweeper.seeds=[1,2]", "eval=sliding", "model={dim: 48}"],
]
ODD = """
small: 1e-3
plain: .5e+3
day: 2026-12-01
text: on
"""


@pytest.mark.parametrize("path", quick(YAMLS[::40], YAMLS), ids=lambda path: str(path.relative_to(CONF)))
def test_yaml_is_read_as_omegaconf_reads_it(path: Path) -> None:
    text = path.read_text()
    assert parse(text) == yaml.load(text, Loader=get_yaml_loader())


def test_numbers_days_and_keys_given_twice_are_read_as_omegaconf_reads_them() -> None:
    assert parse(ODD) == yaml.load(ODD, Loader=get_yaml_loader())
    assert parse(ODD)["small"] == 0.001 and parse(ODD)["day"] == "2026-12-01"
    with pytest.raises(yaml.constructor.ConstructorError, match="duplicate key a"):
        parse("a: 1\na: 2")


@pytest.mark.parametrize("line", LINES, ids=["experiment", "values of every kind", "sweep"])
def test_a_composition_is_hydras_own(line: list[str]) -> None:
    compose_whole([override for override in line if "." not in override.split("=")[0]])  # its groups are known now
    ours = compose_whole(line)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=VERSION_BASE):
        theirs = hydra_compose("config", overrides=line, return_hydra_config=True)
    assert ours.hydra.runtime.choices == theirs.hydra.runtime.choices
    assert ours.hydra.sweeper == theirs.hydra.sweeper and ours.hydra.mode == theirs.hydra.mode
    for config in (ours, theirs):
        OmegaConf.set_struct(config, False)
        del config["hydra"]
    assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs)


def test_every_caller_has_an_object_of_its_own() -> None:
    one, other = compose(["track=tiny"]), compose(["track=tiny"])
    one.model.mixer.heads = 99
    one.optimizer.groups.clear()
    assert other == compose(["track=tiny"]) != one


def test_a_file_that_has_changed_is_read_anew(tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    (tmp_path / "config.yaml").write_text("defaults:\n  - part: one\n  - _self_\nvalue: 1\n")
    (tmp_path / "part" / "one.yaml").write_text("size: 1\n")
    set_up_hydra()
    composer = Composer(ConfigLoaderImpl(create_config_search_path(str(tmp_path))))
    assert composer.compose(["value=5"]).part.size == 1
    (tmp_path / "part" / "one.yaml").write_text("size: 22\n")
    again = composer.compose(["value=6"])
    assert (again.part.size, again.value) == (22, 6)
    state = os.stat(tmp_path / "part" / "one.yaml")
    (tmp_path / "part" / "one.yaml").write_text("size: 33\n")
    os.utime(tmp_path / "part" / "one.yaml", ns=(state.st_atime_ns, state.st_mtime_ns + 1000))
    assert composer.compose([]).part.size == 33
    (tmp_path / "part" / "two.yaml").write_text("size: 44\n")
    assert composer.compose(["part=two"]).part.size == 44, "a file that is new"


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("value: 1\npart: {size: 1\n")
    set_up_hydra()
    with pytest.raises(UserError, match=r"config\.yaml: cannot be read as YAML: line 3: .*expected ',' or '}'"):
        Composer(ConfigLoaderImpl(create_config_search_path(str(tmp_path)))).compose([])


def test_a_part_alone_is_the_part_of_a_run() -> None:
    run = compose(["track=tiny", "model/mixer=mla"])
    rope = load_part("model/rope/full")
    assert rope == run.model.mixer.rope
    part = load_part("model/mixer/mla", scale={"width": run.scale.width}, rope=rope)
    assert part == run.model.mixer and part is not run.model.mixer
    assert load_part("model/mixer/mla", rope=rope).latent == 128, "full size"
    windows = load_part("eval/scorer/ngram", root={"batch": {"sequence_length": 32}})
    assert type(windows).__name__.endswith("Config")


@pytest.mark.parametrize(
    "name, fields, message",
    [
        ("model/mixer/none", {}, r"model/mixer/none: there is no .*name a YAML of conf/"),
        ("model/mla_128", {}, r"model/mla_128: is made of other files \(its defaults list\); compose a run with it"),
        ("model/mixer/mla", {}, r"model\.mixer\.mla\.rope=\?\?\?: is not set"),
        ("schedule/constant", {"nope": 1}, r"schedule\.constant\.nope=1: .*has no such key"),
        ("model/rope/full", {"base": "abc"}, r"model\.rope\.full\.base='abc'"),
    ],
)
def test_a_part_that_cannot_be_made_says_why(name: str, fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_part(name, **fields)
