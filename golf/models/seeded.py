"""Weight matrices in a random subspace: fixed numbers that a seed gives, and few that are trained. Shapes:
golf/models/slots.py; k: trained numbers."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from golf.errors import UserError
from golf.fields import between, positive
from golf.models.generated import Generated
from golf.models.slots import Frame, LinearConfig

MAX_PROJECTION = 2_000_000_000  # numbers in the dense projection of a whole model: 8 GB


class Drawn(nn.Module):
    """`values`: fixed Gaussian numbers that `key` names, the same in every process (intrinsic dimension, arXiv
    1804.08838). No artifact, checkpoint or state_dict holds them: they are drawn again where the module is built, or
    loaded after having been built on the meta device."""

    values: Tensor

    def __init__(self, key: str, *shape: int, std: float):
        super().__init__()
        self.key, self.shape, self.std = key, shape, std
        self.register_buffer("values", torch.empty(shape), persistent=False)
        self.register_load_state_dict_post_hook(_fill)
        if not self.values.is_meta:
            self.values.copy_(self.draw())

    def draw(self) -> Tensor:
        """The numbers, on the CPU whatever the model's device: generators of other devices give others."""
        seed = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:7], "big")
        numbers = torch.empty(self.shape, device="cpu")
        return numbers.normal_(std=self.std, generator=torch.Generator("cpu").manual_seed(seed))


def _fill(module: nn.Module, _: Any) -> None:
    assert isinstance(module, Drawn)
    if module.values.is_meta:
        module.values = module.draw()


def key_of(seed: int, frame: Frame) -> str:
    """Names a matrix of a model for Drawn."""
    return f"{seed} {frame.layer} {frame.kind}"


@dataclass(kw_only=True, slots=True)
class SeededConfig(LinearConfig):
    """W = W0 + A diag(phi) B, phi_k of its own for each matrix (PR 1589, made structured).

    W0 ~ N(0, 1/inputs), none where the matrix writes to the residual stream; A ~ N(0, 1/k), B ~ N(0, 1/inputs), all
    from `seed`; phi begins at 0. dense: matrices outside of layers.
    """

    k: int
    seed: int
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 2**16, k=self.k)
        between(0, 2**31 - 1, seed=self.seed)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        return Seeded(key_of(self.seed, frame), inputs, outputs, self.k, residual=residual, gain=gain)


class Seeded(Generated):
    """x_..I -> gain * (W0 + A diag(phi) B) x; the gain is a constant."""

    roles = {"phi_k": "scalar"}

    def __init__(self, key: str, inputs: int, outputs: int, k: int, *, residual: bool, gain: float):
        super().__init__(inputs, outputs, gain=gain, learned=False)
        self.phi_k = nn.Parameter(torch.zeros(k))
        self.left = Drawn(f"{key} left", outputs, k, std=k**-0.5)
        self.right = Drawn(f"{key} right", k, inputs, std=inputs**-0.5)
        self.start = None if residual else Drawn(f"{key} start", outputs, inputs, std=inputs**-0.5)

    def matrix_OI(self) -> Tensor:
        change_OI = (self.left.values * self.phi_k) @ self.right.values
        return change_OI if self.start is None else self.start.values + change_OI


@dataclass(kw_only=True, slots=True)
class SeededDenseConfig(LinearConfig):
    """theta = theta0 + P phi for all matrices of all layers in a row, one phi_k for the model (PR 1589).

    theta0 ~ N(0, std^2), in the residual stream's matrices too; P ~ N(0, p_std^2), the PR's columns of norm 1 in every
    10,000 rows without the exact division; phi ~ N(0, phi_std^2). P is kept, which bounds the model's size.
    """

    k: int
    seed: int
    std: float
    p_std: float
    phi_std: float
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 256, k=self.k)
        between(0, 2**31 - 1, seed=self.seed)
        positive(std=self.std, p_std=self.p_std, phi_std=self.phi_std)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        weights = frame.memo["projected"] = frame.memo.get("projected", 0) + inputs * outputs
        if weights * self.k > MAX_PROJECTION:
            raise UserError(
                f"model.linear.k={self.k}: a dense projection to {weights:,} weights or more takes over "
                f"{MAX_PROJECTION:,} numbers; lower k or the model's size, or use model/linear=seeded"
            )
        name = frame.share("generator", "seeded_dense", lambda: Phi(self.k, self.phi_std))
        return SeededDense(frame.shared[name], self, key_of(self.seed, frame), inputs, outputs, gain)


class Phi(nn.Module):
    """What is trained of all matrices."""

    roles = {"phi_k": "generator"}

    def __init__(self, k: int, std: float):
        super().__init__()
        self.phi_k = nn.Parameter(torch.empty(k).normal_(std=std))


class SeededDense(Generated):
    """x_..I -> gain * W x, W this matrix's part of theta0 + P phi; the gain is a constant."""

    def __init__(self, phi: nn.Module, config: SeededDenseConfig, key: str, inputs: int, outputs: int, gain: float):
        super().__init__(inputs, outputs, gain=gain, learned=False, net=phi)
        self.start = Drawn(f"{key} start", outputs, inputs, std=config.std)
        self.projection = Drawn(f"{key} projection", outputs * inputs, config.k, std=config.p_std)

    def matrix_OI(self) -> Tensor:
        (phi,) = self.held
        assert isinstance(phi, Phi)
        return self.start.values + (self.projection.values @ phi.phi_k).view_as(self.start.values)
