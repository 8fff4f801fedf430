"""The quantiser: a table that maps parameter roles to storage formats. Pure: weights in, parts out."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from golf.artifact.codecs import CodecConfig
from golf.errors import RunError
from golf.fields import between
from golf.quant.allocation import AllocationConfig
from golf.quant.calibration import CalibrationConfig
from golf.quant.formats import FormatConfig, Parts
from golf.quant.grid import TooLargeError
from golf.quant.rounding import How, RoundingConfig
from golf.roles import assign, check_table

MOST_STACKED = 2**26  # numbers: stacks of like tensors are cut there, to bound memory


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as it will be written: the name of its format and the parts."""

    format: str
    parts: Parts


@dataclass(kw_only=True, slots=True)
class QuantConfig:
    """formats by name; roles and names (patterns) map parameters to formats; how weights go to a format's grid; the
    text that shows what they meet; which tensors get the finer steps; the codec that suits them.

    fit: steps are widened or refined, all by one factor, until the file fills the cap but for fit_margin of it.
    """

    formats: dict[str, FormatConfig]
    roles: dict[str, str]
    names: dict[str, str]
    default: str | None
    rounding: RoundingConfig
    calibration: CalibrationConfig
    allocation: AllocationConfig
    fit: bool
    fit_margin: float
    codec: CodecConfig

    def __post_init__(self) -> None:
        check_table(self.roles, self.names, self.default, self.formats)
        between(0, 0.1, fit_margin=self.fit_margin)

    @property
    def reads_hessians(self) -> bool:
        """Whether a calibration is to run; else the text that it would take is not touched."""
        return self.rounding.reads_hessians or any(chosen.reads_hessians for chosen in self.formats.values())

    def dialled(self, shapes: Mapping[str, tuple[int, ...]], roles: dict[str, str]) -> list[str]:
        """The parameters whose steps can have any width."""
        claimed = self.assign(roles)
        return [name for name in roles if self.formats[claimed[name]].dials(shapes[name])]

    def assign(self, roles: dict[str, str]) -> dict[str, str]:
        """parameter name -> format name, every parameter once."""
        return assign(roles, roles=self.roles, names=self.names, default=self.default, path="quant")

    def quantize(
        self,
        weights: dict[str, Tensor],
        roles: dict[str, str],
        hessians: Mapping[str, Tensor] | None = None,
        widen: Mapping[str, float] | None = None,
    ) -> dict[str, Stored]:
        """Store every weight by its role's format; nothing is changed in place. All by parameter name.

        hessians: mean of x x^T over a matrix's inputs, where they were measured; widen: what steps are multiplied by.
        Raises RunError where a weight is no number, or beyond what its format can hold.
        """
        claimed, measured, widths = self.assign(roles), hessians or {}, widen or {}
        stored: dict[str, Stored] = {}
        for names in self._stacks(weights, claimed, measured):
            chosen = claimed[names[0]]
            w_B = torch.stack([weights[name].detach().cpu() for name in names])
            hessian_BII = torch.stack([measured[name].cpu() for name in names]) if names[0] in measured else None
            widen_B = torch.tensor([widths.get(name, 1.0) for name in names])
            how = How(self.rounding, hessian_BII, widen_B, strict=True)
            parts = self._encoded(names, chosen, w_B, how)
            for index, name in enumerate(names):
                stored[name] = Stored(chosen, {part: value[index] for part, value in parts.items()})
        return {name: stored[name] for name in weights}

    def _encoded(self, names: list[str], chosen: str, w_B: Tensor, how: How) -> Parts:
        """Return the parts of a stack. Raises RunError, with the name of the tensor, for what can't be stored."""
        for name, weight in zip(names, w_B, strict=True):
            if not weight.isfinite().all():
                raise RunError(f"{name} holds infinite numbers, or what is no number; lower the learning rates")
        try:
            return self.formats[chosen].encode(w_B, how)
        except TooLargeError as error:
            raise RunError(
                f"{names[error.index]} can't be stored as quant.formats.{chosen}, which needs {error}; lower the "
                "learning rates, or give it a format of fp32 in quant.names"
            ) from None

    def _stacks(
        self, weights: dict[str, Tensor], claimed: dict[str, str], measured: Mapping[str, Tensor]
    ) -> list[list[str]]:
        """Names of tensors that are alike in format, shape and what was measured, in stacks that fit memory."""
        alike: dict[tuple, list[list[str]]] = {}
        for name, weight in weights.items():
            key = (claimed[name], weight.dtype, tuple(weight.shape), name in measured)
            stacks = alike.setdefault(key, [[]])
            size = max(weight.numel(), weight.shape[-1] ** 2 if name in measured else 0)
            if len(stacks[-1]) >= max(1, MOST_STACKED // max(1, size)):
                stacks.append([])
            stacks[-1].append(name)
        return [names for stacks in alike.values() for names in stacks]

    def predict_bytes(self, shapes: dict[str, tuple[int, ...]], roles: dict[str, str], codec: CodecConfig) -> int:
        """Artifact bytes expected from shapes alone (Gaussian weights), before a weight is trained."""
        claimed = self.assign(roles)
        bits = sum(self.formats[claimed[name]].predict_bits(shape) for name, shape in shapes.items())
        return round(bits / 8 * codec.overhead)
