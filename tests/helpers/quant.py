"""Quantisers without Hydra, weights and formats to quantise with, and models and text to calibrate on."""

import copy
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from golf.artifact.file import write_artifact
from golf.conf_files import CONF, FULL_SIZE, load_part, parse, register_resolvers
from golf.config import Run
from golf.dist import ALONE, Ranks
from golf.models.lm import LM
from golf.quant.calibration import CalibrationConfig, Source
from golf.quant.formats import FormatConfig, IntConfig, decode_one
from golf.quant.quantizer import QuantConfig
from golf.quant.steps import MaxAbsConfig, StepConfig
from golf.roles import roles_of
from golf.typed import typed

QUANTS = sorted(path.stem for path in (CONF / "quant").glob("*.yaml"))
CODECS = sorted(path.stem for path in (CONF / "codec").glob("*.yaml"))
# A finished run with another loss and a calibration on training text, for tests of either.
OTHER_LOSS_AND_CALIBRATION = (
    "loss=[entropy_weighted,z_loss]",
    "quant=int6_gptq",
    "quant.calibration.tokens=512",
    "budget.max_seconds=600",
)


# ---------------------------------------------------------------- quantisers of conf/


def scale_of(track: str) -> dict[str, float]:
    """Return the factors of a track, such as {"width": 0.1875, ...} of track=tiny."""
    return FULL_SIZE | parse((CONF / "track" / f"{track}.yaml").read_text())["scale"]


def quant_of(name: str, track: str = "tiny", **chosen: str) -> QuantConfig:
    """Return what `quant=name track=track` makes, in a few milliseconds; quant_of("int6", rounding="gptq")."""
    node = parse((CONF / "quant" / f"{name}.yaml").read_text())
    defaults = [entry for entry in node.pop("defaults") if isinstance(entry, dict)]
    options = {group.rpartition("@")[2]: option for entry in defaults for group, option in entry.items()} | chosen
    scale = scale_of(track)
    register_resolvers()
    whole = OmegaConf.create({"scale": scale, "quant": node})
    own: Any = OmegaConf.to_container(whole.quant, resolve=True)
    codec = load_part(f"codec/{options.pop('codec')}")
    parts = {slot: load_part(f"quant/{slot}/{option}", scale=scale) for slot, option in options.items()}
    return typed(own | parts | {"codec": codec}, "quant", QuantConfig)


@cache
def _made(make: Callable[..., Run], *overrides: str) -> Run:
    return make(*overrides)


def copy_of(make: Callable[..., Run], *overrides: str) -> Run:
    """Return a copy of make(*overrides), which is called once in a test process."""
    return copy.deepcopy(_made(make, *overrides))


def written_artifact(run: Run, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Write the artifact of a run's model with random weights; return its path and what its weights decode to."""
    torch.manual_seed(0)
    model = run.model.build()
    weights = {name: torch.randn_like(p) * 0.1 for name, p in model.named_parameters()}
    stored = run.quant.quantize(weights, roles_of(model))
    path = folder / "artifact.golf"
    write_artifact(
        path, model=run.model, stored=stored, weights="last", quant=run.quant, codec=run.chosen_codec, tokenizer="t"
    )
    expected = {
        name: decode_one(run.quant.formats[tensor.format], tensor.parts, tuple(weights[name].shape))
        for name, tensor in stored.items()
    }
    return path, expected


# ---------------------------------------------------------------- weights and formats


def row_int(bits: int = 6, steps: StepConfig | None = None, half_below: int | None = None) -> IntConfig:
    """Return an integer format with a step a row."""
    return IntConfig(bits=bits, steps=steps or MaxAbsConfig(floor=None), per="row", group=None, half_below=half_below)


def gaussian(rows: int, cols: int, spread: float = 0.3, stack: int = 1) -> Tensor:
    """Return w_BOI, normal weights whose rows differ in size."""
    generator = torch.Generator().manual_seed(0)
    rows_BO1 = torch.rand(stack, rows, 1, generator=generator)
    return torch.randn(stack, rows, cols, generator=generator) * rows_BO1 * spread


def there_and_back(chosen: FormatConfig, w_B: Tensor) -> Tensor:
    """Return what a format gives back of these weights."""
    return chosen.decode(chosen.encode(w_B), tuple(w_B.shape[1:]))


# ---------------------------------------------------------------- calibration


class Given(CalibrationConfig):
    """A calibration on these ids, whatever the source."""

    def __init__(self, *passes: Tensor):
        self.given = passes

    def passes(self, source: Source) -> Iterator[Tensor]:
        yield from self.given


def shaken(run: Run, by: float = 0.05) -> LM:
    """Return a run's model whose weights are all other than at the start."""
    torch.manual_seed(0)
    model = run.model.build()
    for parameter in model.parameters():
        parameter.data.add_(by * torch.randn_like(parameter))
    return model


def never() -> Any:
    raise AssertionError("training text was opened")


def source(model: LM, ranks: Ranks = ALONE, rows: int = 2, length: int = 16) -> Source:
    """Return a calibration's source without training text."""
    return Source(model=model, length=length, rows=rows, seed=5, ranks=ranks, open_training=never)


def ids(rows: int, seed: int = 0) -> Tensor:
    """Return random ids of a toy vocabulary."""
    return torch.randint(384, (rows, 16), generator=torch.Generator().manual_seed(seed))
