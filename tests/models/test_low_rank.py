"""Matrices of low rank, shared bases and tensor trains against the products that they stand for."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from golf.conf_files import CONF
from golf.config import Run
from golf.errors import UserError
from golf.models.basis import BasisConfig
from golf.models.linear import Dense, DenseConfig
from golf.models.low_rank import EigenConfig
from golf.models.slots import Frame
from golf.models.tensor_train import TensorTrainConfig, modes
from golf.plan import outline
from tests.helpers.models import built, ids_for, stirred
from tests.helpers.parts import full_size, run_of_line, toy_of

DENSE = DenseConfig(init="uniform", residual="zero")
X = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
MODES = {512: (8, 8, 8), 256: (4, 8, 8), 1024: (8, 8, 16)}
CORES = sum(  # of a layer's six matrices, bond 64
    sum(a * o * i * b for a, o, i, b in zip((1, 64, 64), MODES[outputs], MODES[inputs], (64, 64, 1), strict=True))
    for outputs, inputs in ((512, 512), (256, 512), (256, 512), (512, 512), (1024, 512), (512, 1024))
)
FORMS = {
    "eigen": EigenConfig(ranks={"mixer": 6, "mlp": 4}, std=None, dense=DENSE),
    "eigen_pr": EigenConfig(ranks={"mixer": 6, "mlp": 4}, std=0.02, dense=DENSE),
    "basis": BasisConfig(rank=6, layers=None, std=None, dense=DENSE),
    "tensor_train": TensorTrainConfig(bond=4, dense=DENSE),
}


def frame_of(config: object, layers: int = 4) -> Frame:
    return Frame(64, 24, layers, config)  # type: ignore[arg-type]


def product(module: nn.Module) -> torch.Tensor:
    """W of a module, by what it makes of unit vectors."""
    with torch.no_grad():
        return module(torch.eye(24)).T


@pytest.mark.parametrize("name", list(FORMS))
def test_the_map_is_linear_of_its_rank_and_scale(name: str) -> None:
    torch.manual_seed(0)
    module = frame_of(FORMS[name]).at(1, "mixer").matrix(24, 40)
    w_OI = product(module)
    assert torch.allclose(module(X), X @ w_OI.T, atol=1e-5)
    if name != "tensor_train":
        assert torch.linalg.matrix_rank(w_OI) == 6
    if name in ("eigen", "basis"):  # what rank 6 keeps of a dense start of variance 1 / 72: the best part, or any
        kept = 72 * w_OI.square().mean().item()
        best = torch.linalg.svdvals(torch.randn(64, 40, 24))[:, :6].square().sum(dim=1).mean().item() / (40 * 24)
        assert kept == pytest.approx({"eigen": best, "basis": 6 / 40}[name], rel=0.15)
    if name == "tensor_train":
        draws = [product(frame_of(FORMS[name]).at(1, "mixer").matrix(24, 40)) for _ in range(40)]
        assert torch.stack(draws).square().mean().item() == pytest.approx(1 / 24, rel=0.3)
    writes = frame_of(FORMS[name]).at(1, "mlp").matrix(24, 24, residual=True)
    assert not product(writes).any()
    outside = frame_of(FORMS[name]).matrix(24, 40)
    assert isinstance(outside, Dense), "matrices outside of layers are dense"


def test_eigen_is_u_sigma_v_and_sigma_zero_still_learns() -> None:
    """dL/dsigma_j = u_j^T G v_j: a matrix that begins at zero is no fixed point."""
    torch.manual_seed(0)
    module = frame_of(FORMS["eigen"]).at(0, "mlp").matrix(24, 40, residual=True)
    u_OR, v_RI = module.u.weight, module.v.weight
    assert torch.allclose(u_OR.T @ u_OR, torch.eye(4), atol=1e-5) and torch.allclose(
        v_RI @ v_RI.T, torch.eye(4), atol=1e-5
    )
    slope_OI = torch.randn(40, 24)
    (module(torch.eye(24)).T * slope_OI).sum().backward()
    expected_R = torch.einsum("or,oi,ri->r", u_OR, slope_OI, v_RI)
    assert torch.allclose(module.sigma_R.grad, expected_R, atol=1e-4) and expected_R.abs().min() > 0
    module.sigma_R.data.normal_()
    assert torch.allclose(product(module), u_OR @ torch.diag(module.sigma_R) @ v_RI, atol=1e-5)


def test_a_basis_is_shared_by_the_layers_of_its_group_and_spans_them() -> None:
    torch.manual_seed(0)
    frame = frame_of(BasisConfig(rank=6, layers=2, std=None, dense=DENSE))
    frames = [frame.at(layer, "mixer") for layer in range(4)]
    wide = [f.matrix(24, 40) for f in frames]
    again = [f.matrix(24, 40) for f in frames]  # keys and values: alike in shape, each with a basis of its own
    bases = [module.held[0] for module in [*wide, *again]]
    assert [len({id(b) for b in bases[i : i + 2]}) for i in (0, 2, 4)] == [1, 1, 1]
    assert len({id(b) for b in bases}) == 4 == len(frame.shared)
    for module, basis in zip([*wide, *again], bases, strict=True):
        u_OR = basis.weight
        w_OI = product(module)
        assert torch.allclose(u_OR @ (u_OR.T @ w_OI), w_OI, atol=1e-5), "W lies in the span of U"


LINEAR = sorted(path.stem for path in (CONF / "model" / "linear").glob("*.yaml"))


def small(form: str) -> Run:
    shorter = ["model.linear.steps=2"] * form.startswith("nca")
    return toy_of(f"model/linear={form}", "model.layers=2", "data.vocab_size=64", *shorter)


@pytest.mark.parametrize("form", LINEAR)
def test_a_dense_model_with_the_same_matrices_is_the_same(form: str) -> None:
    """The identity test of every source of matrices: what it makes, copied into dense ones, gives the same scores."""
    ours, dense, ids = stirred(small(form)), built(small("dense")), ids_for(small("dense"))
    by_name = dict(ours.named_modules())
    with torch.no_grad():
        expected = ours.log_probs(ids)
        assert not torch.allclose(dense.log_probs(ids), expected, atol=1e-3)
        for name, module in dense.named_modules():
            if isinstance(module, Dense):
                module.weight.copy_(by_name[name](torch.eye(module.weight.shape[1])).T)
        rest = {n: p for n, p in ours.state_dict().items() if n in dict(dense.named_parameters())}
        dense.load_state_dict(rest, strict=False)
        torch.testing.assert_close(dense.log_probs(ids), expected, atol=1e-4, rtol=0)


def test_one_layer_of_full_rank_equals_a_dense_matrix(toy: Callable[..., Run]) -> None:
    """The identity test: factors that reproduce the base's matrices give the base's scores."""
    base = stirred(toy("model/linear=dense"))
    ids = ids_for(toy("model/linear=dense"))
    low = toy("model/linear=eigen", "model.linear.ranks={mixer: 512, mlp: 512}").model.build()
    with torch.no_grad():
        ours = dict(low.named_modules())
        for name, module in base.named_modules():
            if isinstance(module, Dense) and name.startswith("stack.blocks"):
                u, s, vh = torch.linalg.svd(module.weight, full_matrices=False)
                ours[name].u.weight.copy_(u)
                ours[name].sigma_R.copy_(s)
                ours[name].v.weight.copy_(vh)
        kept = {n: p for n, p in base.named_parameters() if n in dict(low.named_parameters())}
        low.load_state_dict(kept, strict=False)
        assert torch.allclose(low.log_probs(ids), base.log_probs(ids), atol=2e-4)


@pytest.mark.wide
@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["model=eigen"], 8_219_464),
        (["model=eigen", "model.linear.ranks={mixer: 64, mlp: 64}"], 4_382_152),
        (["model=eigen", "model.linear.ranks={mixer: 256, mlp: 256}"], 15_894_088),
        (["model=eigen", "model.linear.ranks={mixer: 32, mlp: 96}"], 4_234_120),
        (["model=eigen", "model.linear.ranks={mixer: 96, mlp: 32}"], 4_530_184),
        (["model=basis"], 5_066_824),
        (["model=basis", "model.linear.rank=64"], 2_805_832),
        (["model=recurrence"], 17_060_424),
        (["model=recurrence", "model.stack.loop.blocks='3,4,5 of 9'"], 17_060_936),
        (["model=recurrence", "model.stack.loop.times=3"], 17_060_936),
        (["model=universal", "model/stack=universal_pr"], 2_361_865),
        (["model=universal"], 2_361_865 + 6 * 512),  # a vector for each of its steps
        (["model=mps"], 1024 * 64 + 1024 * 64**2 + 64),
        (["model=tensor_train"], 17_059_912 - 16_515_072 + 9 * (CORES + 2)),
    ],
)
def test_full_size_has_the_published_parameters(overrides: list[str], expected: int) -> None:
    model = full_size(*overrides).model.build_on_meta()
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("name", ["eigen", "basis", "tensor_train"])
def test_what_is_stored_is_smaller_than_what_it_stands_for(name: str) -> None:
    """In bytes of the artifact, at full size: that of the matrices' shared basis included."""

    def predicted(*overrides: str) -> int:
        return outline(full_size(*overrides)).artifact_bytes

    assert predicted(f"model={name}") < predicted()


def test_a_tensor_train_has_the_cores_of_its_definition() -> None:
    """PR 1888: 512 x 512 in modes of 8 with bonds of 8 is 5,120 numbers."""
    torch.manual_seed(0)
    module = Frame(64, 512, 4, TensorTrainConfig(bond=8, dense=DENSE)).at(0, "mixer").matrix(512, 512)
    assert modes(512) == (8, 8, 8) and modes(96) == (4, 4, 6) and modes(7) == (1, 1, 7)
    assert sum(p.numel() for p in module.cores) == 8 * 8 * 8 + 8 * 8 * 8 * 8 + 8 * 8 * 8 == 5120
    w = module.matrix_OI().detach()
    g1, g2, g3 = (core.detach().view(shape) for core, shape in zip(module.cores, module.shapes, strict=True))
    for o, i in [(0, 0), (511, 3), (77, 400)]:
        parts = [(n // 64, n // 8 % 8, n % 8) for n in (o, i)]
        row = g1[:, parts[0][0], parts[1][0]] @ g2[:, parts[0][1], parts[1][1]] @ g3[:, parts[0][2], parts[1][2]]
        assert w[o, i].item() == pytest.approx(row.item(), abs=1e-6)


def test_ranks_must_name_the_parts() -> None:
    with pytest.raises(UserError, match=r"model\.linear\.ranks\.mlp=0 must lie in 1"):
        run_of_line("model=eigen", "model.linear.ranks.mlp=0")
    with pytest.raises(ValueError, match=r"ranks=.*must name mixer and mlp"):
        EigenConfig(ranks={"mixer": 4}, std=None, dense=DENSE)
