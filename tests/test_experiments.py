"""Published configurations: their sizes, and what each changes against the one it is built on."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from golf.conf_files import CONF, parse
from golf.config import fingerprint, identity
from golf.nodes import plain
from tests.helpers.models import moved
from tests.helpers.parts import node_of, run_of_line
from tests.helpers.runs import composed
from tests.helpers.tiers import slow, wide

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
FULL = "h100x8"  # the track that the other tests here look at
TRACKS = sorted(path.stem for path in (CONF / "track").glob("*.yaml"))

PUBLISHED = {
    "baseline_naive": 17_059_912,
    "pr584_baseline": 26_993_756,
    "pr584_swiglu": 26_993_756,
    "pr584_norm_gate": 26_993_756 + 44,
    "pr584_mos": 26_993_756 + 2 * 512 * 512 + 2 * 512,
    "pr675_base": 18_897_488,
    "pr675_diffattn": 18_898_768,
    "pr1589_mla_128": 15_880_264,
    "pr1589_mla_64": 15_290_440,
    "pr1589_pause_4_64": 17_061_960,
    "pr1589_pause_8_32": 17_064_008,
    "pr1589_eigen_64": 4_382_152,
    "pr1589_eigen_128": 8_219_464,
    "pr1589_eigen_256": 15_894_088,
    "pr1589_recurrence_34x2": 17_060_424,
    "pr1589_recurrence_345x2": 17_060_936,
    "pr1589_recurrence_34x3": 17_060_936,
    "pr1589_basis_64": 2_805_832,
    "pr1589_basis_128": 5_066_824,
    "pr1589_universal_12": 2_361_865,
    "pr1589_universal_20": 2_361_865,
    "pr1589_hypernetwork": 110_106_248,
    "pr401_squared": 28_224_320,
    "pr401_share": 27_648_584,
    "pr401_f1": 33_425_507 - 1,  # ours has no mix where there is nothing to mix, in the first layer
}


def groups_of(experiment: str) -> dict[str, Any]:
    """Return the options that an experiment and those that it builds on choose, by group."""
    found: dict[str, Any] = {}
    for entry in parse((CONF / f"experiment/{experiment}.yaml").read_text()).get("defaults", []):
        if isinstance(entry, dict):
            found |= {key.removeprefix("override /"): option for key, option in entry.items()}
        elif entry != "_self_":
            found |= groups_of(entry)
    return found


def wholes() -> list[str]:
    """Return experiments that together have all options of models and optimizers that are chosen together with others.

    What stands alone on the baseline is tried with it in tests/models/test_every_*.py.
    """
    shows = {name: groups for name in EXPERIMENTS if len(groups := groups_of(name)) >= MANY}
    parts = {
        name: {f"{group}={option}" for group, option in groups.items() if group.startswith(("model/", "optimizer"))}
        for name, groups in shows.items()
    }
    chosen, unseen = [], set[str]().union(*parts.values())
    while unseen:
        chosen.append(max(parts, key=lambda name: len(parts[name] & unseen)))
        unseen -= parts[chosen[-1]]
    return chosen


MANY = 8  # groups that a whole published configuration chooses


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_each_parameter_has_its_place(experiment: str) -> None:
    """On the tiny track; and it can be scored by another evaluator than its own, as scoring a run of it anew does."""
    run = run_of_line("track=tiny", f"experiment={experiment}")
    model = run.model.build_on_meta()
    assert run.track == "tiny" and set(run.optimizer.assign(model)) == {name for name, _ in model.named_parameters()}
    roles = model.stored_roles()
    assert set(run.quant.assign(roles)) == set(roles)
    other = node_of(["track=tiny", f"experiment={experiment}", "eval=ttt_lora"])[0]["eval"]
    assert set(other["evaluators"]) == {"plain", "documents", "ttt_lora"} and other["main"] == "ttt_lora"


@pytest.mark.wide
@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_compose_on_every_track(track: str, experiment: str) -> None:
    run = composed(f"track={track}", f"experiment={experiment}")
    run.model.build_on_meta()
    assert run.track == track


@pytest.mark.wide
@pytest.mark.parametrize("experiment, expected", PUBLISHED.items())
def test_full_size_models_have_the_published_parameters(experiment: str, expected: int) -> None:
    model = run_of_line(f"track={FULL}", f"experiment={experiment}").model.build_on_meta()
    assert sum(p.numel() for p in model.parameters()) == expected


def differing(one: Any, other: Any, key: str = "") -> Iterator[str]:
    """The keys under which two nodes differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in sorted({*one, *other}):
            yield from differing(one.get(name), other.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(one or other, dict) and not (one and other):
        yield from differing(one or {}, other or {}, key)
    elif one != other:
        yield key


CHANGES = {
    "pr584_swiglu": ("pr584_baseline", "model.mlp"),
    "pr584_window": ("pr584_baseline", "model.mixer.window"),
    "pr584_registers": ("pr584_baseline", "model.embed.features.registers"),
    "pr584_norm_gate": ("pr584_baseline", "model.mixer.value.norm_gate"),
    "pr584_mos": ("pr584_baseline", "model.head"),
    "pr675_9l": ("pr675_base", "model.layers"),
    "pr675_11l": ("pr675_base", "model.layers"),
    "pr675_3x": ("pr675_base", "model.mlp.expand"),
    "pr675_relu2": ("pr675_base", "model.mlp.activation.slope"),
    "pr675_diffattn": ("pr675_base", "model.mixer._target_"),
    "pr675_vrl": ("pr675_base", "model.mixer.value.residual"),
    "pr675_entropy_loss": ("pr675_base", "loss"),
    "pr675_lawa": ("pr675_base", "average"),
    "pr675_ramping_wd": ("pr675_base", "optimizer.groups.matrices.weight_decay"),
    "pr675_qat": ("pr675_base", "qat"),
    "pr675": ("pr675_legal", "loader.split"),
    "pr401_ema_swa": ("pr584_baseline", "average"),
    "pr401_late_qat": ("pr584_baseline", "qat"),
    "pr401_replay": ("pr584_baseline", "late"),
    "pr401_distill": ("pr584_baseline", "late"),
    "pr401_mousse": ("pr401_sota254", "optimizer.groups.matrices.before.mousse"),
    "pr401_d2z": ("pr401_sota254", "schedule"),
    "pr401_exp_a": ("pr401_sota254", "model.auxiliary.mtp"),
    "pr401_exp_b": ("pr401_sota254", "model.mlp"),
    "pr401_diagonal": ("pr401_sota254", "model.mixer"),
    "pr401_v7_xsa11": ("pr401_v7", "model.mixer.output.xsa.layers"),
    "pr401_v7_mtp": ("pr401_v7", "model.auxiliary.mtp"),
    "pr401_bigram1536_xsa11": ("pr401_v7_xsa11", "model.embed.features.bigram.buckets"),
    "pr401_bigram1024_xsa11": ("pr401_v7_xsa11", "model.embed.features.bigram.buckets"),
    "pr401_matrix_lr": ("pr401", "optimizer.groups.matrices.lr"),
    "pr401_fractal_5x2": ("pr401_fractal_6x2", "model.layers"),
    "pr401_fractal_4x2": ("pr401_fractal_6x2", "model.layers"),
}


@pytest.mark.wide
@pytest.mark.parametrize("experiment, base_and_key", CHANGES.items())
def test_a_single_change_changes_nothing_else(experiment: str, base_and_key: tuple[str, str]) -> None:
    base, key = base_and_key
    one, other = (identity(run_of_line(f"track={FULL}", f"experiment={name}"), "") for name in (base, experiment))
    changed = list(differing(one, other))
    assert changed, "nothing"
    follows = {"cut", "quant.names.head.project.weight"}  # how a batch is cut; how a further matrix is stored
    assert all(name == key or name in follows or name.startswith(f"{key}.") for name in changed), changed


ROW_MAXIMUM = {"quant.formats.int6.steps._target_": "golf.quant.steps.MaxAbsConfig"}
FLOORS = {
    "quant.formats.int6.steps.floor": 1 / 31,
    "quant.formats.int6.half_below": 65_536,
    "quant.formats.int8.steps.floor": 1 / 127,
    "quant.formats.int8.steps.quantile": 0.9999984,
    "quant.formats.int8.half_below": 65_536,
}
UNIFORM = {"model.linear.init": "uniform", "model.linear.residual": "zero"}
NEVER_STRETCHED = {"model.mixer.rope.part": 0.25, "model.mixer.rope.reference_length": None}
ALWAYS_STRETCHED = {"model.mixer.rope.part": 0.25, "model.mixer.rope.reference_length": 1024}
XSA, CLIP = "model.mixer.output.xsa.layers", "optimizer.clip_norm"
DECODER = "optimizer.multipliers.decoder.layers"

# Read from the scripts of the PRs.
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    "baseline_naive": {"quant.formats.int8.steps.floor": 1 / 127, CLIP: None},
    "pr584_baseline": {**FLOORS, **ALWAYS_STRETCHED, XSA: "last:4 of 11", CLIP: 0.3},
    "pr401": {**FLOORS, **ROW_MAXIMUM, **ALWAYS_STRETCHED, CLIP: 0.3},
    "pr401_v7": {**FLOORS, "quant.formats.int6.steps.over": "row"},
    "pr401_sota254": {
        **FLOORS,
        **ROW_MAXIMUM,
        "model.mixer.rope.part": 1.0,
        "model.mixer.rope.reference_length": 1024,
        "model.linear.init": "orthogonal",
        "average.every_steps": 200,
        CLIP: 0.3,
    },
    "pr401_swiglu": {**UNIFORM, **NEVER_STRETCHED, XSA: "last:4 of 11", CLIP: None},
    "pr401_f1": {**UNIFORM, **NEVER_STRETCHED, XSA: "last:4 of 11", DECODER: "last:6 of 11", CLIP: 0.3},
    "pr401_share": {**UNIFORM, **NEVER_STRETCHED, XSA: "last:4 of 9", DECODER: "last:4 of 9", CLIP: None},
    "pr401_stacked": {**UNIFORM, **NEVER_STRETCHED, XSA: "last:4 of 9", DECODER: "last:4 of 9", CLIP: None},
    "pr401_squared": {**FLOORS, **ALWAYS_STRETCHED, XSA: "last:2 of 6", CLIP: 0.3},
    "pr401_fractal_3x4": {**FLOORS, XSA: "last:2 of 3", CLIP: 5.0, "model.mlp.expand": 3.0, "average.of": None},
    "pr401_fractal_6x2": {
        **FLOORS,
        **ALWAYS_STRETCHED,
        "model.linear.init": "orthogonal",
        "model.embed.features.bigram.hash": "xor",
        "optimizer.multipliers": {},
        XSA: "last:3 of 6",
        CLIP: 0.3,
    },
}


@pytest.mark.parametrize("experiment", AS_PUBLISHED)
def test_what_the_scripts_of_the_prs_have(experiment: str) -> None:
    node = plain(run_of_line(f"track={FULL}", f"experiment={experiment}"))
    for key, value in (AS_PUBLISHED[experiment] | {"model.norm_eps": torch.finfo(torch.float32).eps}).items():
        found = node
        for part in key.split("."):
            found = found[part]
        assert found == (pytest.approx(value) if isinstance(value, float) else value), key


GATED = [("h100x8", 2.0), ("laptop", 3.0), ("tiny", 2.0)]


@pytest.mark.parametrize("mlp", ["swiglu", "geglu", "relu2_gated", "star_relu_gated"])
@pytest.mark.parametrize(
    "track, expand", [("h100x8", 3.0), wide("h100x8", 2.0), wide("laptop", 3.0), wide("tiny", 2.0)]
)
def test_gated_mlps_have_the_parameters_of_the_ungated(mlp: str, track: str, expand: float) -> None:
    counts = []
    for part in ("relu2", mlp):
        parts = [f"model/mlp={part}", f"model.mlp.expand={expand}"]
        run = run_of_line(f"track={track}", "experiment=pr584_baseline", *parts)
        counts.append(sum(p.numel() for p in run.model.build_on_meta().parameters()))
    assert counts[1] == pytest.approx(counts[0], rel=0.01)


@pytest.mark.wide
def test_no_two_experiments_are_one_run() -> None:
    runs: dict[str, set[str]] = {}
    for experiment in EXPERIMENTS:
        run = run_of_line(f"track={FULL}", f"experiment={experiment}")
        runs.setdefault(fingerprint(run, ""), set()).add(experiment)
    assert not [names for names in runs.values() if len(names) > 1]


WHOLES = wholes()


@pytest.mark.parametrize("experiment", [name if name in WHOLES else slow(name) for name in EXPERIMENTS])
def test_every_experiment_trains_all_that_it_holds(experiment: str) -> None:
    """On the tiny track, after two steps, every parameter has a gradient and the loss is a number."""
    run = run_of_line("track=tiny", f"experiment={experiment}")
    model = moved(run)
    ids = torch.randint(run.model.vocab_size, (2, 132), generator=torch.Generator().manual_seed(2))  # some chunks
    model.zero_grad()
    total = torch.stack(list(model(ids[:, :-1], ids[:, 1:]).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
