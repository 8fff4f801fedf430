"""Formats, the role table, codecs and the artifact file, over every quantiser in conf/."""

import hashlib
import json
import math
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from golf.artifact.file import MAGIC, PREFIX, config_classes, read_artifact, write_artifact
from golf.compose import CONF, compose
from golf.config import Run
from golf.errors import UserError
from golf.nodes import plain, rebuild
from golf.quant.formats import FloatConfig, RowIntConfig
from golf.quant.grid import round_to_grid, row_scales
from golf.roles import roles_of

QUANTS = sorted(path.stem for path in (CONF / "quant").glob("*.yaml"))
CODECS = sorted(path.stem for path in (CONF / "codec").glob("*.yaml"))


def row_int(bits: int = 6, **fields: object) -> RowIntConfig:
    return RowIntConfig(**{"bits": bits, "clip_quantile": None, "scale_floor": None, "half_below": None, **fields})


def gaussian(rows: int, cols: int, spread: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, cols, generator=generator) * torch.rand(rows, 1, generator=generator) * spread


@pytest.mark.parametrize("bits", range(2, 9))
def test_rows_come_back_within_half_a_step(bits: int) -> None:
    w_OI = gaussian(7, 33)
    parts = row_int(bits).encode(w_OI)
    step_O1 = parts["scale"].float()[:, None]
    assert parts["codes"].dtype == torch.int8 and parts["codes"].abs().max() == 2 ** (bits - 1) - 1
    slack = 2**-10 * w_OI.abs().amax(1, keepdim=True)  # the step itself is rounded to fp16
    assert ((row_int(bits).decode(parts) - w_OI).abs() <= step_O1 / 2 + slack).all()


def test_encoding_what_was_decoded_changes_nothing() -> None:
    once = row_int().decode(row_int().encode(gaussian(5, 40)))
    assert torch.equal(row_int().decode(row_int().encode(once)), once)


def test_zero_rows_floor_clip_and_small_tensors() -> None:
    w_OI = gaussian(4, 50)
    w_OI[1] = 0
    assert torch.equal(row_int().decode(row_int().encode(w_OI))[1], torch.zeros(50))
    floored = row_int(8, scale_floor=1 / 127).encode(w_OI * 1e-3)
    assert (
        torch.allclose(floored["scale"].float(), torch.tensor(1 / 127), rtol=1e-3) and floored["codes"].abs().max() <= 1
    )
    clipped = row_scales(w_OI, 31, 0.9, None)
    assert torch.equal(clipped, clipped.half().float()), "codes are made with the step that is stored"
    assert (clipped[0] < row_scales(w_OI, 31, None, None)[0]).all()
    assert round_to_grid(w_OI, clipped, 31).abs().max() == 31
    assert set(row_int(half_below=200).encode(w_OI)) == {"half"} and set(row_int(half_below=199).encode(w_OI)) == {
        "codes",
        "scale",
    }
    assert FloatConfig(dtype="fp16").encode(torch.tensor([1e9]))["value"].item() == 65504


def test_encode_is_pure() -> None:
    w_OI = gaussian(4, 9)
    before = w_OI.clone()
    row_int().encode(w_OI)
    assert torch.equal(w_OI, before)


@pytest.fixture(params=[(quant, None) for quant in QUANTS] + [("int6", codec) for codec in CODECS])
def written(
    request: pytest.FixtureRequest, toy: Callable[..., Run], tmp_path: Path
) -> tuple[Run, Path, dict[str, Tensor]]:
    quant, codec = request.param
    run = toy(f"quant={quant}", *([f"codec={codec}"] if codec else []))
    return make(run, tmp_path)


def make(run: Run, folder: Path) -> tuple[Run, Path, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = run.model.build()
    weights = {name: torch.randn_like(p) * 0.1 for name, p in model.named_parameters()}
    stored = run.quant.quantize(weights, roles_of(model))
    path = folder / "artifact.golf"
    write_artifact(
        path, model=run.model, stored=stored, weights="last", quant=run.quant, codec=run.chosen_codec, tokenizer="t"
    )
    expected = {name: run.quant.formats[tensor.format].decode(tensor.parts) for name, tensor in stored.items()}
    return run, path, expected


def test_artifact_round_trips(written: tuple[Run, Path, dict[str, Tensor]]) -> None:
    run, path, expected = written
    artifact = read_artifact(path)
    assert artifact.size_bytes == path.stat().st_size
    assert plain(rebuild(artifact.header["model"], config_classes())) == plain(run.model)
    for name, parameter in artifact.model.named_parameters():
        assert torch.equal(parameter, expected[name]), name
    assert torch.isfinite(artifact.model.log_probs(torch.zeros(1, 4, dtype=torch.long))).all()


def test_same_weights_same_bytes(toy: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    _, first, _ = make(toy(), tmp_path / "a")
    _, second, _ = make(toy(), tmp_path / "b")
    assert first.read_bytes() == second.read_bytes()


def test_a_new_process_needs_the_file_alone(toy: Callable[..., Run], tmp_path: Path) -> None:
    _, path, _ = make(toy(), tmp_path)
    ids = torch.arange(12)[None]
    here = read_artifact(path).model.log_probs(ids).double().sum().item()
    code = (
        "import sys, torch; from pathlib import Path; from golf.artifact.file import read_artifact;"
        "torch.set_num_threads(1); m = read_artifact(Path(sys.argv[1])).model;"
        "print(repr(m.log_probs(torch.arange(12)[None]).double().sum().item()));"
        "assert not any(name in sys.modules for name in ('hydra', 'omegaconf', 'wandb')), 'a heavy import'"
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
    packed = zlib.compress(json.dumps(header).encode())
    rest = struct.pack("<I", len(packed)) + packed + blob[PREFIX.size + size :]
    path.write_bytes(seal(rest))


LOOP = {"_target_": "golf.models.loops.LoopConfig", "span": "all", "positions": None, "own_scales": False}
MTP = {"_target_": "golf.models.mtp.MultiTokenConfig", "heads": 2, "weight": 0.1, "softcap": None}
LIES: dict[str, Callable[[dict], None]] = {
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
    "texts for starts": lambda h: h["model"]["stack"].update(loop=LOOP | {"again": ["0.0"]}),
    "no tokenizer": lambda h: h.pop("tokenizer_sha256"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lying_headers_are_refused_without_an_import(
    lie: Callable[[dict], None], toy: Callable[..., Run], tmp_path: Path
) -> None:
    _, path, _ = make(toy(), tmp_path)
    repack(path, lambda header: None)
    read_artifact(path)
    repack(path, lie)
    modules = set(sys.modules)
    with pytest.raises(UserError, match="not a sound artifact"):
        read_artifact(path)
    assert {name for name in set(sys.modules) - modules if not name.startswith(("torch", "golf"))} == set()


def test_damaged_files_are_refused(toy: Callable[..., Run], tmp_path: Path) -> None:
    _, path, _ = make(toy(), tmp_path)
    blob = path.read_bytes()
    for damaged in (
        b"",
        blob[:30],
        blob[:-1],
        blob + b"x",
        b"PK" + blob[2:],
        blob[:200] + bytes([blob[200] ^ 1]) + blob[201:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="not a sound artifact"):
            read_artifact(path)
    path.write_bytes(seal(struct.pack("<I", 4) + b"junk"))
    with pytest.raises(UserError, match="not a sound artifact"):
        read_artifact(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_artifact(tmp_path / "absent.golf")


@pytest.mark.parametrize("quant", QUANTS)
def test_predicted_bytes_are_near(quant: str, tmp_path: Path) -> None:
    """Gaussian weights at laptop size: the prediction that plans print is within a tenth of the file."""
    run = compose(["track=laptop", f"quant={quant}", "log=none"])
    _, path, _ = make(run, tmp_path)
    model = run.model.build_on_meta()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    predicted = run.quant.predict_bytes(shapes, roles_of(model), run.chosen_codec)
    if run.quant.formats[run.quant.roles["matrix"]].scale_floor is None:
        assert predicted == pytest.approx(path.stat().st_size, rel=0.1)
    else:
        assert predicted >= 0.9 * path.stat().st_size, "a floor on the step only saves bytes"
    assert math.prod(shapes["embed.table_VD"]) == 1024 * 192
