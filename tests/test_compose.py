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

from golf.command_line import search_path
from golf.compose import VERSION_BASE, Composer, compose, compose_whole, set_up_hydra
from golf.conf_files import CONF, load_part, parse, read_yaml
from golf.errors import UserError
from hydra_plugins.golf_sweeper import plan_of
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


NO_YAML = {
    "a tab": (b"a:\n\tb: 1\n", r"line 2: .*; a line begins with a tab, and YAML is indented with blanks"),
    "a tab under Windows' line ends": (b"a: 1\r\n\tb: 1\r\n", r"line 2: .*; a line begins with a tab"),
    "a key twice": (b"a: 1\nb: 2\na: 3\n", r"line 3: found duplicate key a"),
    "a number as a key twice": (b"1: 1\n1: 2\n", r"line 2: found duplicate key 1"),
    "another encoding": ("a: 1\nb: \u00e4\n".encode("latin-1"), r"line 2: is not UTF-8"),
    "UTF-16": ("a: 1\n".encode("utf-16"), r"line 1: is not UTF-8"),
    "a NUL": (b"a: 1\nb: \0", r"line 2: control characters are not allowed"),
    "a list": (b"- 1\n", r"is no mapping"),
    "a word": (b"abc", r"is no mapping"),
    "half a reference": (b"a: ${b", r"config\.yaml: .*\$\{b"),
    "a reference to itself": (b"a: &x [*x]", r"nested too deeply"),
    "brackets": (b"[" * 3000, r"line 1: exceeded maximum nesting depth|nested too deeply"),
    "no number": (b"a: !!int x", r"invalid literal"),
    "an object": (b"a: !!python/object:os.system x", r"line 1: could not determine a constructor"),
}


@pytest.mark.parametrize("case", NO_YAML)
def test_a_file_that_is_no_yaml_is_one_line(case: str, tmp_path: Path) -> None:
    blob, message = NO_YAML[case]
    (tmp_path / "config.yaml").write_bytes(blob)
    with pytest.raises(UserError, match=message) as refused:
        read_yaml(tmp_path / "config.yaml")
    assert len(str(refused.value).splitlines()) == 1 and str(refused.value).startswith(str(tmp_path))


NO_DEFAULTS = ["foo", "[1]", "[{a: b, c: d}]", "{a: b}", "[null]", "['']", "[[a]]", "[a: {b: c}]", "[a: [1]]", "null"]


@pytest.mark.parametrize("said", NO_DEFAULTS)
def test_a_defaults_list_that_is_none_is_named_with_its_file(said: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"defaults: {said}\n")
    set_up_hydra()
    with pytest.raises(UserError, match=r"config\.yaml: defaults: is no list of names and of GROUP: OPTION"):
        Composer(ConfigLoaderImpl(create_config_search_path(str(tmp_path)))).compose([])


def test_files_that_name_each_other_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "x.yaml").write_text("defaults: [y]\n")
    (tmp_path / "quant" / "y.yaml").write_text("defaults: [x]\n")
    with pytest.raises(UserError, match="quant=x: files name each other without end"):
        compose([search_path([str(tmp_path)]), "quant=x"])


@pytest.mark.parametrize("line", ["# @package a b", "# @package"])
def test_a_package_line_that_is_none_is_named_with_its_file(line: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"{line}\na: 1\n")
    set_up_hydra()
    with pytest.raises(UserError, match=r"config\.yaml: line 1: .*@package.*; write # @package PLACE"):
        Composer(ConfigLoaderImpl(create_config_search_path(str(tmp_path)))).compose([])


def test_keys_are_texts_as_they_are_written(tmp_path: Path) -> None:
    """A byte order mark is no part of the first."""
    names = ["on", "null", "1e3", "0x10", "true", "010", "1:30", "~", "2026-12-01"]
    (tmp_path / "a.yaml").write_text("".join(f"{name}: 1\n" for name in names), encoding="utf-8-sig")
    assert read_yaml(tmp_path / "a.yaml")[1] == dict.fromkeys(names, 1)


def test_rows_may_have_any_name(tmp_path: Path) -> None:
    names = ["on", "off", "null", "1e3", "0x10", "007"]
    for control in names:
        rows = ", ".join(f"{name}: a=1" for name in names)
        said = f"purpose: x, control: {control}, seeds: [], rows: {{{rows}}}"
        (tmp_path / "a.yaml").write_text(f"hydra: {{sweeper: {{{said}}}}}")
        plan = plan_of(read_yaml(tmp_path / "a.yaml")[1])
        assert list(plan.rows) == names and plan.control == (None if control == "null" else control)
    (tmp_path / "a.yaml").write_text(
        "hydra: {sweeper: {purpose: x, control: on, seeds: [], rows: {on: a=1, yes: a=2}}}"
    )
    with pytest.raises(UserError, match=r"hydra\.sweeper\.control=True: is no text; put the name of a row in quotes"):
        plan_of(read_yaml(tmp_path / "a.yaml")[1])
