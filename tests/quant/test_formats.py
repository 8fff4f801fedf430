"""Formats, the role table, codecs and the artifact file, over every quantiser in conf/."""

import hashlib
import importlib
import json
import math
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.artifact import file as file_module
from golf.artifact.file import CONFIG_PACKAGES, MAGIC, PREFIX, check_readable, read_artifact
from golf.checks import check
from golf.conf_files import CONF, load_part
from golf.config import Run
from golf.errors import UserError
from golf.models.lm import LMConfig
from golf.nodes import plain, rebuild
from golf.quant import steps as steps_module
from golf.quant.formats import FloatConfig, IntConfig, gaussian_entropy
from golf.quant.rounding import How, NearestConfig
from golf.quant.steps import LeastErrorConfig, MaxAbsConfig, QuantileConfig, SDClipConfig, SearchConfig, StepConfig
from golf.roles import roles_of
from tests.helpers.forks import in_a_fork
from tests.helpers.quant import CODECS, QUANTS, copy_of, gaussian, quant_of, row_int, there_and_back, written_artifact
from tests.helpers.runs import composed
from tests.helpers.tiers import quick

Toy = Callable[..., Run]


@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_come_back_within_half_a_step(bits: int) -> None:
    w_BOI = gaussian(7, 33, stack=2)
    parts = row_int(bits).encode(w_BOI)
    step_BO1 = parts["scale"].float()[:, :, None]
    assert parts["codes"].dtype == torch.int8 and parts["codes"].abs().max() == 2 ** (bits - 1) - 1
    slack = 2**-10 * w_BOI.abs().amax(2, keepdim=True)  # the step itself is rounded to fp16
    assert ((row_int(bits).decode(parts, (7, 33)) - w_BOI).abs() <= step_BO1 / 2 + slack).all()


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_codes_are_made_with_the_step_that_is_stored(bits: int) -> None:
    """Of the step before it is rounded to fp16, codes near the limit would be those of other values."""
    w_BOI = gaussian(7, 4096)
    parts = row_int(bits).encode(w_BOI)
    limit = 2 ** (bits - 1) - 1
    expected = (w_BOI / parts["scale"].float()[:, :, None]).round().clamp(-limit, limit)
    assert torch.equal(parts["codes"].float(), expected)


def test_encoding_what_was_decoded_changes_nothing() -> None:
    once = there_and_back(row_int(), gaussian(5, 40))
    assert torch.equal(there_and_back(row_int(), once), once)


def test_zero_rows_floor_clip_and_small_tensors() -> None:
    w_BOI = gaussian(4, 50)
    w_BOI[:, 1] = 0
    assert torch.equal(there_and_back(row_int(), w_BOI)[0, 1], torch.zeros(50))
    floored = row_int(8, MaxAbsConfig(floor=1 / 127)).encode(w_BOI * 1e-3)
    assert torch.allclose(floored["scale"].float(), torch.tensor(1 / 127), rtol=1e-3)
    assert floored["codes"].abs().max() <= 1
    clipped, whole = (row_int(6, steps).encode(w_BOI) for steps in (QuantileConfig(quantile=0.9, floor=None), None))
    assert clipped["scale"].dtype == torch.float16 and clipped["scale"][0, 0] < whole["scale"][0, 0]
    assert clipped["codes"].abs().max() == 31 and (clipped["codes"].abs() == 31).sum() > 3 * 5
    assert set(row_int(half_below=200).encode(w_BOI)) == {"half"}
    assert set(row_int(half_below=199).encode(w_BOI)) == {"codes", "scale"}
    assert FloatConfig(dtype="fp16").encode(torch.tensor([1e9]))["value"].item() == 65504


@pytest.mark.parametrize("per,group,steps", [("row", None, 6), ("group", 8, 18), ("tensor", None, 1)])
def test_steps_are_shared_as_asked(per: str, group: int | None, steps: int) -> None:
    chosen = IntConfig(bits=6, steps=MaxAbsConfig(floor=None), per=per, group=group, half_below=None)
    w_BOI = gaussian(6, 24, stack=3)
    parts = chosen.encode(w_BOI)
    assert parts["scale"].shape == (3, steps)
    assert {name: (v.dtype, tuple(v.shape[1:])) for name, v in parts.items()} == chosen.layout((6, 24))
    step_BR1 = parts["scale"].float()[:, :, None]
    error_BRC = (chosen.decode(parts, (6, 24)) - w_BOI).reshape(3, steps, -1).abs()
    assert (error_BRC <= 0.52 * step_BR1).all() and (error_BRC.amax(2) > 0.3 * step_BR1[..., 0]).float().mean() > 0.6


def test_groups_that_do_not_divide_a_row_are_refused() -> None:
    chosen = IntConfig(bits=6, steps=MaxAbsConfig(floor=None), per="group", group=7, half_below=None)
    with pytest.raises(UserError, match="groups of 7 columns"):
        chosen.layout((6, 24))
    with pytest.raises(ValueError, match="goes with per=group"):
        IntConfig(bits=6, steps=MaxAbsConfig(floor=None), per="row", group=7, half_below=None)


def squared_error(steps: StepConfig, w_BOI: Tensor, bits: int = 4) -> Tensor:
    """error_BO of each row."""
    return (there_and_back(row_int(bits, steps), w_BOI) - w_BOI).square().sum(2)


def test_searched_steps_err_no_more_than_any_candidate() -> None:
    w_BOI = gaussian(9, 200, stack=2)
    w_BOI[:, :, 3] *= 6
    levels = [0.9, 0.97, 0.999, 1.0]
    each = torch.stack([squared_error(QuantileConfig(quantile=q, floor=None), w_BOI) for q in levels])
    by_row = squared_error(SearchConfig(quantiles=levels, over="row", floor=None), w_BOI)
    torch.testing.assert_close(by_row, each.amin(0))
    by_matrix = squared_error(SearchConfig(quantiles=levels, over="matrix", floor=None), w_BOI)
    torch.testing.assert_close(by_matrix.sum(1), each.sum(2).amin(0))
    assert (by_row.sum(1) < by_matrix.sum(1)).all()
    finest = squared_error(LeastErrorConfig(candidates=100), w_BOI)
    assert (finest <= by_row * 1.02).all() and finest.sum() < 0.99 * by_row.sum()


def test_quantiles_of_more_rows_than_torch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    w_BOI = gaussian(9, 20, stack=3)
    whole = steps_module.quantiles(w_BOI, [0.9, 1.0])
    torch.testing.assert_close(whole[1], w_BOI.amax(2, keepdim=True))
    torch.testing.assert_close(whole[0], w_BOI.quantile(0.9, dim=2, keepdim=True))
    monkeypatch.setattr(steps_module, "MOST_AT_ONCE", 70)
    assert torch.equal(steps_module.quantiles(w_BOI, [0.9, 1.0]), whole)


def test_sdclip_sets_the_entropy_whatever_the_spread() -> None:
    """2.05 + log2(31 / k) bits a weight: the documented 3.32 for k = 12.85."""
    for spread in (0.01, 1.0):
        parts = row_int(6, SDClipConfig(k=12.85, by_hessian=0.0)).encode(gaussian(64, 1024, spread))
        share = torch.bincount(parts["codes"].flatten().long() + 31).double() / parts["codes"].numel()
        entropy = -torch.special.xlogy(share, share).sum() / math.log(2)
        assert entropy == pytest.approx(3.327, abs=0.01)
    assert gaussian_entropy(12.85 / 31, 31) == pytest.approx(3.327, abs=0.002)


def test_rows_on_strong_inputs_get_wider_steps() -> None:
    w_BOI = torch.ones(1, 2, 8)
    w_BOI[0, 0, 4:], w_BOI[0, 1, :4] = 0.1, 0.1
    w_BOI[..., ::2] *= -1
    power_I = torch.tensor([9.0] * 4 + [1.0] * 4)
    chosen = row_int(6, SDClipConfig(k=10.0, by_hessian=0.2))
    with_hessian = chosen.encode(w_BOI, How(NearestConfig(), torch.diag(power_I)[None]))["scale"][0].float()
    without = chosen.encode(w_BOI)["scale"][0].float()
    strong = (4 * 9 * 1 + 4 * 1 * 0.1) / (4 * 9 * 0.1 + 4 * 1 * 1)  # the first row's importance over the second's
    expected = torch.tensor([2 * strong / (1 + strong), 2 / (1 + strong)])
    torch.testing.assert_close(with_hessian / without, 1 + 0.2 * (expected - 1), atol=2e-3, rtol=0)


def test_rows_without_spread_are_not_lost() -> None:
    """One column, or equal weights: their deviation from 0 counts, not that from their mean."""
    config = IntConfig(bits=6, steps=SDClipConfig(k=12.85, by_hessian=0.0), per="row", group=None, half_below=None)
    for w_B in (torch.linspace(-1, 1, 6).view(1, 6, 1) + 0.05, torch.full((1, 2, 64), 0.5)):
        error = (config.decode(config.encode(w_B), tuple(w_B.shape[1:])) - w_B).abs()
        assert (error <= 0.21 * w_B.abs()).all(), "half a step of 12.85 / 31 of the row's size"


def test_encode_is_pure() -> None:
    w_BOI = gaussian(4, 9)
    before = w_BOI.clone()
    row_int().encode(w_BOI)
    assert torch.equal(w_BOI, before)


def test_a_stack_is_stored_as_its_members_alone() -> None:
    w_BOI = gaussian(6, 24, stack=3)
    for steps in (None, SDClipConfig(k=9.0, by_hessian=0.0), LeastErrorConfig(candidates=20)):
        stacked = row_int(5, steps).encode(w_BOI)
        for index in range(3):
            alone = row_int(5, steps).encode(w_BOI[index : index + 1])
            assert all(torch.equal(alone[part][0], stacked[part][index]) for part in stacked)


@pytest.fixture(scope="module")
def sound(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a sound artifact, which a reader takes."""
    path, _ = written_artifact(copy_of(toy), tmp_path_factory.mktemp("sound"))
    read_artifact(path)
    return path.read_bytes()


@pytest.fixture
def path(sound: bytes, tmp_path: Path) -> Path:
    """A sound artifact in a folder of its own."""
    path = tmp_path / "artifact.golf"
    path.write_bytes(sound)
    return path


def assert_round_trips(run: Run, folder: Path) -> None:
    path, expected = written_artifact(run, folder)
    artifact = read_artifact(path)
    assert artifact.size_bytes == path.stat().st_size
    assert plain(rebuild(artifact.header["model"], LMConfig, CONFIG_PACKAGES)) == plain(run.model)
    for name, parameter in artifact.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert torch.isfinite(artifact.model.log_probs(torch.zeros(1, 4, dtype=torch.long))).all()


def small(toy: Toy) -> Run:
    """A run of one block, whose vocabulary is as small as its other matrices."""
    run = copy_of(toy)
    return replace(run, model=replace(run.model, vocab_size=96, layers=1, stack=load_part("model/stack/plain")))


@pytest.mark.parametrize("quant", QUANTS)
def test_artifacts_of_every_quantiser_round_trip(quant: str, toy: Toy, tmp_path: Path) -> None:
    assert_round_trips(replace(small(toy), quant=quant_of(quant)), tmp_path)


@pytest.mark.parametrize("codec", CODECS)
def test_artifacts_of_every_codec_round_trip(codec: str, toy: Toy, tmp_path: Path) -> None:
    assert_round_trips(replace(small(toy), codec=load_part(f"codec/{codec}")), tmp_path)


def test_a_run_has_the_quantiser_and_the_codec_that_it_names(toy: Toy) -> None:
    run = toy("quant=int8", "codec=lzma")
    assert run.quant == quant_of("int8") and run.chosen_codec == load_part("codec/lzma") != run.quant.codec


@pytest.mark.slow
@pytest.mark.parametrize("track", ["tiny", "laptop"])
@pytest.mark.parametrize("quant", QUANTS)
def test_quantisers_of_these_tests_are_those_of_runs(quant: str, track: str) -> None:
    run = composed(f"track={track}", f"quant={quant}", "quant/rounding=nearest")
    assert run.quant == quant_of(quant, track=track, rounding="nearest")


def test_same_weights_same_bytes(toy: Toy, tmp_path: Path, sound: bytes) -> None:
    again, _ = written_artifact(copy_of(toy), tmp_path)
    assert again.read_bytes() == sound


FOREIGN = ("hydra", "omegaconf", "wandb")  # what composes and logs runs


def test_a_reader_needs_the_file_alone(path: Path) -> None:
    """In a fork that has torch, but nothing of golf, and in which nothing that composes runs can be imported."""
    ids = torch.arange(12)[None]
    here = read_artifact(path).model.log_probs(ids)

    def read() -> float:
        for name in list(sys.modules):
            if name.split(".")[0] in ("golf", *FOREIGN):
                del sys.modules[name]
        sys.modules.update(dict.fromkeys(FOREIGN))
        model = importlib.import_module("golf.artifact.file").read_artifact(path).model
        return float(model.log_probs(ids).double().sum())

    assert in_a_fork(read) == pytest.approx(here.double().sum().item(), abs=1e-6)


@pytest.mark.slow
def test_a_new_process_needs_the_file_alone(path: Path) -> None:
    ids = torch.arange(12)[None]
    here = read_artifact(path).model.log_probs(ids).double().sum().item()
    code = (
        "import sys, torch; from pathlib import Path; from golf.artifact.file import read_artifact;"
        "torch.set_num_threads(1); m = read_artifact(Path(sys.argv[1])).model;"
        "print(repr(m.log_probs(torch.arange(12)[None]).double().sum().item()));"
        f"assert not any(name in sys.modules for name in {FOREIGN}), 'a heavy import'"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=CONF.parent)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(here, abs=1e-6)


def seal(rest: bytes) -> bytes:
    """Magic and the right checksum before whatever stands in `rest`."""
    return MAGIC + hashlib.sha256(rest).digest() + rest


def repack(path: Path, change: Callable[[dict], None]) -> None:
    """Rewrite an artifact's header and make its checksum right again."""
    blob = path.read_bytes()
    _, _, size = PREFIX.unpack_from(blob)
    header = json.loads(zlib.decompress(blob[PREFIX.size : PREFIX.size + size]))
    change(header)
    packed = zlib.compress(dumped(header).encode())
    rest = struct.pack("<I", len(packed)) + packed + blob[PREFIX.size + size :]
    path.write_bytes(seal(rest))


LOOP = {"_target_": "golf.models.loops.LoopConfig", "span": "all", "positions": None, "own_scales": False}
MTP = {"_target_": "golf.models.mtp.MultiTokenConfig", "heads": 2, "weight": 0.1, "softcap": None}
SEEDED = {"_target_": "golf.models.seeded.SeededConfig", "k": 2**16, "seed": 1}
SEEDED_DENSE = {
    "_target_": "golf.models.seeded.SeededDenseConfig",
    "k": 256,
    "seed": 1,
    "std": 1,
    "p_std": 1,
    "phi_std": 1,
}
TRAIN = {"_target_": "golf.models.tensor_train.TensorTrainConfig", "bond": 2}
HEADS = {"heads": 1, "kv_heads": 1}


def deep(levels: int) -> dict:
    """Dicts in dicts."""
    node: dict = {}
    for _ in range(levels):
        node = {"a": node}
    return node


def made_of(linear: dict, dim: int, **more: int) -> Callable[[dict], None]:
    """A header whose model has matrices of another make, and this width."""

    def lie(h: dict) -> None:
        model = h["model"]
        model.update(dim=dim, linear={**linear, "dense": model["linear"]}, **more)
        model["mixer"].update(HEADS)

    return lie


LIES: dict[str, Callable[[dict], None]] = {
    "seeded numbers": made_of(SEEDED, 2**12, layers=4),
    "a dense projection": made_of(SEEDED_DENSE, 2**10),
    "a train of endless modes": made_of(TRAIN, 2**50),
    "a train of many modes": made_of(TRAIN, 2**30),
    "a train of large matrices": made_of(TRAIN, 2**14),
    "wide channels": lambda h: (made_of(TRAIN, 64)(h), h["model"]["mlp"].update(expand=2.0**44)),
    "a deep tree": lambda h: h["model"].update(mixer=deep(5000)),
    "a deep tree in a format": lambda h: h["formats"].update(int6=deep(900)),
    "foreign class": lambda h: h["model"].update(_target_="os.path.Evil"),
    "a run's own class that is no model": lambda h: h["model"].update(_target_="golf.config.Run"),
    "format for model": lambda h: h.update(model=h["formats"]["int6"]),
    "unknown field": lambda h: h["model"].update(extra=1),
    "missing field": lambda h: h["model"].pop("dim"),
    "wrong type": lambda h: h["model"].update(dim="64"),
    "other width": lambda h: h["model"].update(dim=48),
    "tensor left out": lambda h: h["tensors"].pop(),
    "tensor named twice": lambda h: h["tensors"].append(h["tensors"][0]),
    "other shape": lambda h: h["tensors"][0][2][0].__setitem__(2, [1, 1]),
    "payload size": lambda h: h.update(payload_bytes=10),
    "no codec": lambda h: h.update(codec=None),
    "heads": lambda h: h["model"]["mixer"].update(heads=5),
    "many layers": lambda h: h["model"].update(layers=10**9),
    "infinite width": lambda h: h["model"]["mlp"].update(expand=float("inf")),
    "no number": lambda h: h["model"]["mixer"].update(qk_gain=float("nan")),
    "negative size": lambda h: (h["tensors"][0][2][0].__setitem__(2, [-1]), h.update(payload_bytes=-1)),
    "huge size": lambda h: (h["tensors"][0][2][0].__setitem__(2, [10**30]), h.update(payload_bytes=10**30)),
    "huge vocabulary": lambda h: h["model"].update(vocab_size=10**15),
    "parts of training": lambda h: h["model"].update(auxiliary={"mtp": MTP}),
    "many heads": lambda h: h["model"].update(auxiliary={"mtp": MTP | {"heads": 10**9}}),
    "deep loop": lambda h: h["model"]["stack"].update(loop=LOOP | {"again": [0.0] * 10**5}),
    "endless layers": lambda h: h["model"]["stack"].update(loop=LOOP | {"span": "1," * 10**6 + "1"}),
    "layers beyond counting": lambda h: h["model"]["stack"].update(
        loop=LOOP | {"span": "first:1000000000 of 1000000000", "again": [0.0]}
    ),
    "texts for starts": lambda h: h["model"]["stack"].update(loop=LOOP | {"again": ["0.0"]}),
    "other contents": lambda h: h.update(payload_crc32=h["payload_crc32"] ^ 1),
    "no tokenizer": lambda h: h.pop("tokenizer_sha256"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lying_headers_are_refused_without_an_import(lie: Callable[[dict], None], path: Path) -> None:
    repack(path, lie)
    modules = set(sys.modules)
    with pytest.raises(UserError, match="not a sound artifact"):
        read_artifact(path)
    assert {name for name in set(sys.modules) - modules if not name.startswith(("torch", "golf"))} == set()


def dumped(header: dict) -> str:
    """JSON of a dict of any depth."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        return json.dumps(header)
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("choice", ["model=seeded", "model/linear=tensor_train", "model/stack=mps", "model=baseline"])
def test_what_is_trained_can_be_read_back(choice: str, toy: Toy) -> None:
    """The reader's bounds are asked before training, of what shapes tell; a stack without blocks has no layers."""
    run = toy(choice)
    check_readable(run.model, run.model.build_on_meta(), run.quant, run.chosen_codec)


BOUNDS = {
    "MAX_PAYLOAD_BYTES": "bytes before the codec",
    "MAX_HEADER_BYTES": "header has over",
    "MAX_PARAMETERS": "parameters",
    "MAX_LAYERS": "layers can't be made",
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_what_could_not_be_read_back_is_not_trained(bound: str, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, bound, 1)
    with pytest.raises(UserError, match=rf"^model: no artifact of it could be read back: .*{BOUNDS[bound]}"):
        check(toy())


@pytest.mark.parametrize("lie", [made_of(SEEDED, 2**10), made_of(TRAIN, 2**14)], ids=["buffers", "matrices"])
def test_what_is_made_and_not_stored_is_counted_before_it_is_made(
    lie: Callable[[dict], None], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repack(path, lie)
    drawn: list[Any] = []
    monkeypatch.setattr("golf.models.seeded.Drawn.draw", drawn.append)
    with pytest.raises(UserError, match=r"numbers that are not stored but made, over|weights or more, over"):
        read_artifact(path)
    assert not drawn


def test_a_header_packed_again_is_taken(path: Path) -> None:
    """What the lies do beside lying is no reason to refuse a file."""
    repack(path, lambda header: None)
    read_artifact(path)


@pytest.mark.parametrize("bound", ["MAX_PAYLOAD_BYTES", "MAX_HEADER_BYTES", "MAX_PARAMETERS"])
def test_sizes_beyond_a_bound_are_refused(bound: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, bound, 1000)
    with pytest.raises(UserError, match="not a sound artifact"):
        read_artifact(path)


def test_damaged_files_are_refused(path: Path) -> None:
    blob = path.read_bytes()
    for damaged in (
        b"",
        blob[:30],
        blob[:-1],
        blob + b"x",
        b"PK" + blob[2:],
        blob[:200] + bytes([blob[200] ^ 1]) + blob[201:],
        blob[:8] + bytes([blob[8] ^ 1]) + blob[9:],  # of the digest itself
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a sound artifact"):
            read_artifact(path)
    path.write_bytes(seal(struct.pack("<I", 4) + b"junk"))
    with pytest.raises(UserError, match="not a sound artifact"):
        read_artifact(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_artifact(path.with_name("absent.golf"))


@pytest.mark.parametrize("quant", quick(("int6", "int8", "ternary"), QUANTS))
def test_predicted_bytes_are_near(quant: str, tmp_path: Path) -> None:
    """Gaussian weights at laptop size: the prediction that plans print is within a tenth of the file."""
    run = replace(copy_of(composed, "track=laptop", "log=none"), quant=quant_of(quant, track="laptop"))
    path, _ = written_artifact(run, tmp_path)
    model = run.model.build_on_meta()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    predicted = run.quant.predict_bytes(shapes, roles_of(model), run.chosen_codec)
    if quant != "int8" and not quant.endswith("_floor"):
        assert predicted == pytest.approx(path.stat().st_size, rel=0.1)
    else:
        assert predicted >= 0.9 * path.stat().st_size, "a floor on the step only saves bytes"
    assert math.prod(shapes["embed.table_VD"]) == 1024 * 192


@pytest.mark.parametrize("quant", QUANTS)
def test_no_floor_of_steps_ruins_factors_and_what_generates(quant: str) -> None:
    """Their entries are small: in steps of at least 1/127 most would vanish (upstream's rule for matrices)."""
    chosen: Any = quant_of(quant)
    for role in ("factor", "generator"):
        steps = getattr(chosen.formats[chosen.roles.get(role, chosen.default)], "steps", None)
        assert getattr(steps, "floor", None) is None
    stored = {"stack.blocks.0.mlp.up.weight": "matrix", "stack.blocks.0.mlp.up.row_On": "generator"}
    found = chosen.assign(stored)["stack.blocks.0.mlp.up.row_On"]
    assert found == chosen.roles.get("generator", chosen.default), "names are of matrices, not of what makes them"
