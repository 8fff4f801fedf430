"""Every YAML composes, holds all fields of its dataclass, and says what it is; wrong ones are refused with a key."""

import copy
import dataclasses
import re
from collections.abc import Callable
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class

from golf.compose import compose
from golf.conf_files import CONF, parse
from golf.config import NOT_IDENTITY, Run, fingerprint, identity
from golf.errors import UserError
from golf.nodes import plain, without_nulls
from golf.typed import typed
from tests.helpers.model_choices import FIRST
from tests.helpers.runs import composed
from tests.helpers.tiers import slow

YAMLS = sorted(path for path in CONF.rglob("*.yaml") if "hydra" not in path.parts)
TRACKS = sorted(path.stem for path in (CONF / "track").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
OWNED_BY_TRACKS = {"track", "cap_bytes", "scale", "budget", "compute", "launch", "data"}


def choice(path: Path) -> str:
    """conf/model/mlp/relu2.yaml -> model/mlp=relu2."""
    relative = path.relative_to(CONF).with_suffix("")
    return f"{relative.parent}={relative.name}"


# The tests of these compose each (a scorer in the eval of its name), and those of models the first of each class.
ELSEWHERE = {".", "experiment", "sweep", "eval", "eval/scorer", "quant"}
GROUPED = [
    path for path in YAMLS if str(path.parent.relative_to(CONF)) not in ELSEWHERE and choice(path) not in FIRST.values()
]


def one_of_each_group(paths: list[Path]) -> list[list[Path]]:
    """Lines that between them show all of these YAMLs, each line one of every group that is left."""
    groups = groupby(sorted(paths, key=lambda path: path.parent), lambda path: path.parent)
    return [[path for path in row if path is not None] for row in zip_longest(*(list(group) for _, group in groups))]


# A model chooses parts and a track its text: neither stands in one line with a choice that would take its own away.
PARTS = [path for path in GROUPED if path.parent.parent != CONF or path.parent.name == "track"]
LINES = [*one_of_each_group([path for path in GROUPED if path not in PARTS]), *one_of_each_group(PARTS)]


def chosen(path: Path) -> list[str]:
    """The command line that takes a YAML; learners stand in an eval that learns."""
    if path.parent.name == "learner":
        return ["eval=ttt_sgd", f"eval/scorer/learner@eval.evaluators.ttt_sgd.scorer.learner={path.stem}"]
    return [choice(path)]


def targets(node: object, where: str = "") -> list[tuple[str, dict]]:
    """Return (place, node) of each node that names its class."""
    if isinstance(node, dict):
        below = [found for key, item in node.items() for found in targets(item, f"{where}.{key}")]
        return [(where, node), *below] if "_target_" in node else below
    return []


def merged(base: dict, over: dict) -> dict:
    """Return nested dicts, the second over the first."""
    both = {key: merged(base[key], over[key]) for key in base if isinstance(base[key], dict) and key in over
            and isinstance(over[key], dict)}  # fmt: skip
    return base | over | both


def test_every_yaml_begins_with_a_comment() -> None:
    """The first line says what it is."""
    for path in YAMLS:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        said = lines[0].startswith("# ") and lines[0].endswith((".", ")"))
        assert said or path.name == "config.yaml", choice(path)


def test_every_yaml_is_in_a_line_and_no_group_is_twice() -> None:
    assert sorted(path for line in LINES for path in line) == GROUPED
    assert all(len({path.parent for path in line}) == len(line) for line in LINES)


@pytest.mark.parametrize("paths", LINES, ids=lambda paths: choice(paths[0]))
@pytest.mark.parametrize("make", [composed, slow(lambda *line: compose(line))], ids=["alone", "by Hydra"])
def test_every_yaml_composes(paths: list[Path], make: Callable[..., Run]) -> None:
    """One of each group in one line, which is quick; where they do not go together, each in a line of its own."""
    try:
        make(*(argument for path in paths for argument in chosen(path)))
    except UserError:
        for path in paths:
            make(*chosen(path))


@pytest.mark.wide
@pytest.mark.parametrize("path", GROUPED, ids=choice)
def test_every_yaml_composes_alone(path: Path) -> None:
    assert isinstance(compose(chosen(path)), Run)


def test_composed_nodes_hold_all_fields() -> None:
    slots = {"embed", "mixer", "mlp", "residual", "stack", "inner", "linear", "head", "weight_decay"}
    composed_elsewhere = slots | {"codec", "rounding", "calibration", "allocation", "scorer", "learner", "adapters"}
    for path in YAMLS:
        own = parse(path.read_text()) or {}
        bases = [path.with_stem(base) for base in own.get("defaults", []) if isinstance(base, str) and base != "_self_"]
        whole: dict = {}
        for base in bases:
            whole = merged(whole, parse(base.read_text()) if base.exists() else {})
        for where, node in targets(merged(whole, own)):
            fields = {field.name for field in dataclasses.fields(get_class(node["_target_"]))}
            assert fields - composed_elsewhere <= set(node), f"{choice(path)}{where} leaves out fields"


def test_experiments_leave_what_tracks_own() -> None:
    for experiment in EXPERIMENTS:
        assert not OWNED_BY_TRACKS & set(parse((CONF / "experiment" / f"{experiment}.yaml").read_text())), experiment


def test_tracks_hold_nothing_about_ideas() -> None:
    for track in TRACKS:
        node = parse((CONF / "track" / f"{track}.yaml").read_text())
        assert set(node) <= OWNED_BY_TRACKS | {"defaults", "batch", "checkpoint", "eval"}, track


def test_scale_and_precedence() -> None:
    full, laptop = compose(["track=h100x8"]), compose(["track=laptop"])
    assert (full.model.dim, full.model.layers, full.batch.tokens_per_step) == (512, 9, 524_288)
    assert (laptop.model.dim, laptop.model.layers) == (192, 4)
    assert laptop.batch.tokens_per_step % laptop.batch.sequence_length == 0
    assert compose(["track=h100x8", "model.dim=320", "data=sotu"]).model.dim == 320
    assert type(compose(["track=h100x8", "data=sotu"]).data).__name__ == "SotuConfig"


WRONG = {
    "unknown key": (["+model.dimm=3"], r"model\.dimm=3: LMConfig has no such key; did you mean dim\?"),
    "wrong type": (["model.dim=abc"], r"model\.dim='abc': .*int"),
    "fraction for a whole number": (["model.dim=512.5"], r"model\.dim=512\.5: .*int"),
    "empty value": (["model.layers="], r"model\.layers='': .*int"),
    "unknown nested key": (["+model.mixer.head=3"], r"model\.mixer\.head=3: .*did you mean heads\?"),
    "heads and kv_heads": (["model.mixer.kv_heads=3"], r"model\.mixer\.kv_heads=3 must divide heads=8; try"),
    "cap of zero": (["cap_bytes=0"], r"cap_bytes=0 is not positive"),
    "no limit": (["budget.max_steps=null"], r"budget\.max_steps=null while clock=steps; set"),
    "unknown clock": (["budget.clock=hours"], r"budget\.clock='hours' .*steps, seconds"),
    "ragged batch": (["batch.tokens_per_step=1000"], r"batch\.tokens_per_step=1000 must be a multiple .*try \d+"),
    "unknown main evaluator": (["eval.main=slidng"], r"eval\.main='slidng' .*plain"),
    "stride past the window": (
        ["eval=sliding", "eval.evaluators.sliding.stride=4096"],
        r"sliding\.stride=4096 .*at most",
    ),
    "table to nowhere": (["optimizer.roles.matrix=nope"], r"optimizer\.roles\.matrix=nope: .*matrices"),
    "format to nowhere": (["quant.roles.matrix=nope"], r"quant\.roles\.matrix=nope: .*int6"),
    "codec level": (["codec=zlib", "codec.level=12"], r"codec\.level=12 must lie in 1 \.\. 9"),
    "bits": (["quant.formats.int6.bits=9"], r"quant\.formats\.int6\.bits=9 must lie in 2 \.\. 8"),
    "seed": (["seed=-1"], r"seed=-1 must lie"),
    "label as a path": (["label=a/b"], r"label='a/b' names a folder"),
    "vocabulary": (["data.vocab_size=70000"], r"data\.vocab_size=70000"),
    "no number": (["optimizer.groups.matrices.lr=nan"], r"optimizer\.groups\.matrices\.lr=nan is not positive"),
    "infinite": (["model.head.softcap=inf"], r"model\.head\.softcap=inf is not positive; set it to a finite"),
    "infinite expansion": (["model.mlp.expand=inf"], r"model\.mlp\.expand=inf must lie in"),
    "negative rate": (["schedule=constant", "schedule.value=-1"], r"schedule\.value=-1.* must lie in"),
    "null group": (["quant=null"], r"quant=null: a group takes the name of one"),
    "null track": (["track=null"], r"track=null: a group takes"),
    "null loader": (["loader=null"], r"loader"),
    "list for a model": (["model=[1,2]"], r"model=\[1,2\]: a group"),
    "deleted group": (["~quant"], r"quant: missing"),
    "whole for a switch": (["compute.compile=5"], r"compute\.compile=5: it takes bool"),
    "switch for a number": (["seed=true"], r"seed=True: it takes int"),
    "sweep as a path": (["sweep_label=.."], r"sweep_label='\.\.' names a folder"),
    "endless label": (["label=" + "x" * 300], r"label=.* at most 100"),
    "zero length": (["batch.sequence_length=0"], r"batch\.sequence_length=0 is not a length"),
    "word for a length": (["batch.sequence_length=abc"], r"batch\.sequence_length='abc' is not a length"),
    "word for a scale": (["scale.width=abc"], r"scale\.width='abc' is not a positive number"),
    "zero schedule": (["schedule.steps=0"], r"schedule\.steps=0 is not positive"),
}


@pytest.mark.parametrize("overrides, message", WRONG.values(), ids=WRONG)
def test_wrong_values_name_key_value_and_fix(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(overrides)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_kind_in_a_slot() -> None:
    node = plain(compose())
    for path, part, word in (
        (("model", "mixer"), node["schedule"], "model.mixer=Warmdown: must be a MixerConfig; name one"),
        (("optimizer", "groups", "matrices"), node["schedule"], "optimizer.groups.matrices=Warmdown: must be a"),
        (("optimizer", "groups", 1), node["optimizer"]["groups"]["matrices"], ": a name is text"),
        (("model", "mixer", "rope"), "???", "model.mixer.rope=???: is not set; give a value"),
        (("cap_bytes",), "???", "cap_bytes=???: is not set; give a value"),
        (("quant", "codec"), node["average"], "quant.codec"),
        (("schedule",), {"_target_": "golf.nowhere.X"}, "schedule._target_=golf.nowhere.X"),
        (("schedule",), {"_target_": "collections.OrderedDict"}, "schedule._target_=collections.OrderedDict"),
        (("model", "mlp"), {"expand": 2.0}, "model.mlp: names no _target_"),
    ):
        broken = copy.deepcopy(node)
        inner: Any = broken
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = part
        with pytest.raises(UserError, match=re.escape(word)):
            typed(broken, "", Run)


def test_canonical_form_round_trips() -> None:
    run = compose(["eval=sliding", "average=ema", "codec=zlib"])
    assert plain(typed(plain(run), "", Run)) == plain(run)


def test_null_members_of_named_dicts_are_absent() -> None:
    node = plain(compose())
    node["model"]["mixer"]["output"] = {"gate": None}
    assert typed(node, "", Run).model.mixer.output == {}


def test_fingerprint_ignores_names_places_and_new_null_fields() -> None:
    run = compose()
    same = compose(["label=other", "log=none", "outputs=elsewhere", "launch.nproc=2", "plan=true", "rerun=true"])
    assert fingerprint(run, "d") == fingerprint(same, "d")
    assert fingerprint(run, "d") != fingerprint(run, "e"), "data is named by what was prepared"
    other = compose(["seed=2"])
    assert fingerprint(run, "d") != fingerprint(other, "d")
    assert fingerprint(run, "d", with_seed=False) == fingerprint(other, "d", with_seed=False)
    for key in ("loader.prefetch=false", "eval.evaluators.plain.batch_tokens=64", "batch.max_microbatch_sequences=2"):
        assert fingerprint(run, "d") == fingerprint(compose([key]), "d"), key
    assert fingerprint(run, "d") == fingerprint(compose(["codec=zstd"]), "d"), "int6 names zstd already"
    for key in (
        "codec=zlib",
        "model.dim=208",
        "quant=int8",
        "average=ema",
        "eval=sliding",
        "budget.max_steps=7",
        "cap_bytes=9",
    ):
        assert fingerprint(run, "d") != fingerprint(compose([key]), "d"), key


def test_a_new_field_at_its_null_default_leaves_fingerprints() -> None:
    """A class that gained `window: int | None = None` and `extra: dict = {}` has the canonical form of the old one."""

    @dataclasses.dataclass(kw_only=True, slots=True)
    class Part:
        width: int

    old = Part
    new = dataclasses.make_dataclass(
        "Part",
        [("width", int), ("window", int | None, None), ("extra", dict, dataclasses.field(default_factory=dict))],
        namespace={"__qualname__": old.__qualname__, "__module__": old.__module__},
    )
    new.__module__, new.__qualname__ = old.__module__, old.__qualname__
    assert without_nulls(plain(old(width=3))) == without_nulls(plain(new(width=3)))
    assert without_nulls(plain(old(width=3))) != without_nulls(plain(new(width=3, window=0)))


def test_identity_is_the_whole_run_but_for_a_pinned_list() -> None:
    fields = {field.name for field in dataclasses.fields(Run)}
    assert fields >= NOT_IDENTITY
    node = identity(compose(["loss=z_loss", "qat=late", "late=replay", "curriculum=[length]"]), "d")
    assert set(node) == fields - NOT_IDENTITY | {"_target_"} and "codec" not in node["quant"]


def test_module_names_shadow_nothing() -> None:
    """`python golf/train.py` would put golf/ first on the path: a file named like a stdlib module breaks everyone."""
    import sys

    names = {path.stem for path in (CONF.parent / "golf").iterdir()}
    assert "train" in names and not names & set(sys.stdlib_module_names)
