"""Weight generators: sine networks, hypernetworks, random subspaces, cellular automata."""

import copy
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from golf.artifact.file import read_artifact, write_artifact
from golf.conf_files import load_part
from golf.config import Run
from golf.models.automaton import Automaton, AutomatonPR
from golf.models.generated import Generated, standardised
from golf.models.lm import LM
from golf.models.norms import norm
from golf.models.seeded import Drawn, Seeded, SeededDense
from golf.roles import roles_of
from tests.helpers.models import built, ids_for, stirred
from tests.helpers.parts import full_size, run_of_line, toy_of

RECOMMENDED = ["siren", "hypernetwork", "seeded", "nca"]
FORMS = [*RECOMMENDED, "siren_pr", "hypernetwork_pr", "seeded_dense", "nca_pr"]
GENERATED = 16_515_072  # weights of the baseline's matrices at full size
KINDS = 6

Toy = Callable[..., Run]


def shell(form: str, *more: str) -> LM:
    """A model at full size, without values."""
    return full_size(f"model/linear={form}", *more).model.build_on_meta()


@cache
def wide_model(form: str) -> LM:
    """A model of two layers at a part of the full width, fresh. Only to be read."""
    torch.manual_seed(0)
    fewer = ["scale.width=0.5"]
    if form == "nca":
        fewer = ["scale.width=0.25", "model.linear.steps=1"]  # the rule begins at zero
    return full_size(f"model/linear={form}", "model.layers=2", *fewer).model.build()


def small(form: str) -> Run:
    fewer = ["model.linear.steps=2"] * form.startswith("nca")
    return toy_of(f"model/linear={form}", "model.layers=2", "data.vocab_size=64", *fewer)


@cache
def lively(form: str) -> LM:
    """A small model whose every weight does something. Only to be read."""
    return stirred(small(form))


def made(model: nn.Module) -> dict[str, Generated]:
    """The generated matrices by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Generated)}


def stored(model: LM) -> int:
    """Numbers that the generated matrices are made of."""
    owned = {id(p): p.numel() for module in made(model).values() for p in module.parameters()}
    return sum(owned.values()) + sum(p.numel() for p in model.shared.parameters())


def participation(w_OI: Tensor) -> float:
    """Effective rank."""
    energy_R = torch.linalg.svdvals(w_OI.double()).square()
    return (energy_R.sum().square() / energy_R.square().sum()).item()


def weights_of(model: LM) -> dict[str, Tensor]:
    with torch.no_grad():
        return {name: module.matrix_OI() for name, module in made(model).items()}


# ---------------------------------------------------------------- all of them


def codes_and_net(codes: int, inputs: int, hidden: int, outputs: int) -> int:
    return codes + inputs * hidden + hidden + hidden**2 + hidden + hidden * outputs + outputs


SIDES = 512 + 512 + 2 * (512 + 256) + 2 * (512 + 1024) + 512 + 512  # inputs + outputs of a layer's six matrices
SIZES = {
    "siren": 2 * codes_and_net(0, 2 * 32 + 16, 256, 128) + 8 * (9 + KINDS) + 9 * 2,
    "siren_pr": 135_041,
    "hypernetwork": codes_and_net(16 * (9 + 2 * KINDS + 1024), 48, 256, 128) + 9 * 2,
    "hypernetwork_pr": 109_561_408,
    "seeded": 9 * KINDS * 1024,
    "nca": 24 * 24 + 24 + 24 * 8 + 8 + 24 * (12 + 4) + 4 * (9 + KINDS) + 9 * (4 * SIDES + 2),
    "nca_pr": 24_832,
}


def predicted(model: LM) -> int:
    """Bytes of its artifact, quantised as by default."""
    run, roles = full_size(), model.stored_roles()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return run.quant.predict_bytes({name: shapes[name] for name in roles}, roles, run.chosen_codec)


@pytest.mark.wide
@pytest.mark.parametrize("form", SIZES)
def test_sizes_at_full_size(form: str) -> None:
    model, dense = shell(form), shell("dense")
    assert sum(module.inputs * module.outputs for module in made(model).values()) == GENERATED
    assert stored(model) == SIZES[form]
    assert model.repeated_params() == GENERATED
    whole = sum(p.numel() for p in model.parameters())
    assert whole == 17_059_912 - GENERATED + SIZES[form], "all else is the baseline's"
    assert (stored(model) < GENERATED) == (form != "hypernetwork_pr")
    assert (predicted(model) < predicted(dense) / 3) == (form != "hypernetwork_pr"), "in bytes of the artifact too"


@pytest.mark.parametrize("form", RECOMMENDED)
def test_matrices_begin_as_a_dense_model_wants_them(form: str) -> None:
    model = wide_model(form)
    for name, module in made(model).items():
        to_stream = name.endswith(("out", "down"))
        with torch.no_grad():
            w_OI = module.matrix_OI()
            unit = torch.eye(module.inputs)
            assert torch.allclose(module(unit), module.gain * w_OI.T, atol=1e-6)
            assert (module(unit).abs().max() == 0) == to_stream, "only what writes to the stream begins at zero"
        if form != "seeded":
            assert isinstance(module.gain, nn.Parameter) == to_stream
        if form != "seeded" or not to_stream:
            assert w_OI.std().item() * math.sqrt(module.inputs) == pytest.approx(1, abs=0.2)
            assert abs(w_OI.mean().item()) * math.sqrt(module.inputs) < 0.2


@pytest.mark.parametrize("form", FORMS)
def test_layers_and_kinds_differ(form: str) -> None:
    all_of = list(weights_of(lively(form)).values())
    for number, w_OI in enumerate(all_of):
        assert w_OI.dtype == torch.float32 and w_OI.abs().max() > 0
        assert not any(torch.equal(w_OI, other) for other in all_of[:number])


@pytest.mark.parametrize("form", FORMS)
def test_a_seed_decides_and_copies_are_apart(form: str) -> None:
    run = small(form)
    first, second = built(run), built(run)
    twin = copy.deepcopy(first)
    before = weights_of(first)
    for other in (weights_of(second), weights_of(twin)):
        assert all(torch.equal(before[name], w_OI) for name, w_OI in other.items())
    with torch.no_grad():
        for p in [*first.shared.parameters(), *(p for m in made(first).values() for p in m.parameters())]:
            p.add_(torch.randn(p.shape))
    changed, kept = weights_of(first), weights_of(twin)
    assert all(torch.equal(before[name], kept[name]) for name in kept), "a copy has a generator of its own"
    assert not any(torch.equal(before[name], w_OI) for name, w_OI in changed.items())


@pytest.mark.parametrize("form", FORMS)
def test_nothing_expanded_is_stored(form: str, tmp_path: Path) -> None:
    run, model = small(form), lively(form)
    roles = roles_of(run.model.build_on_meta())
    assert set(model.state_dict()) == set(roles) == set(dict(model.named_parameters()))
    matrices = {tuple(w_OI.shape) for w_OI in weights_of(model).values()}
    generated = [n for n in roles if n.startswith("shared.") or any(n.startswith(f"{m}.") for m in made(model))]
    assert generated and not any(tuple(model.get_parameter(n).shape) in matrices for n in generated if "net" not in n)
    kept = run.quant.quantize(dict(model.named_parameters()), roles)
    codec = load_part("codec/zlib", level=1)
    write_artifact(tmp_path / "a", model=run.model, stored=kept, weights="", quant=run.quant, codec=codec, tokenizer="")
    fresh = read_artifact(tmp_path / "a").model
    assert not any(buffer.is_meta for buffer in fresh.buffers()), "what a seed gives is drawn again"
    for buffer, own in zip(fresh.buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, own)


@pytest.mark.parametrize("form", FORMS)
def test_kept_weights_are_renewed(form: str) -> None:
    """Scoring keeps a matrix until something that it is made of changes, or is another tensor."""
    model, ids = copy.deepcopy(lively(form)), ids_for(small(form))
    module = next(iter(made(model).values()))
    with torch.no_grad():
        first = model.log_probs(ids)
        assert module.last is not None
        kept = module.last[1]
        assert torch.equal(model.log_probs(ids), first) and module.last[1] is kept
        others = {n: p + 0.1 * torch.randn_like(p) for n, p in model.named_parameters()}
        swapped = functional_call(model, others, (ids[:, :-1], ids[:, 1:]))["nll"]
        assert torch.equal(model.log_probs(ids), first), "and back again"
        for name, p in model.named_parameters():
            p.copy_(others[name])
        assert torch.equal(model(ids[:, :-1], ids[:, 1:])["nll"], swapped)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_those_of_the_tensors_in_use(form: str) -> None:
    """QAT calls the model with other tensors; a checkpoint that looked them up again would find the wrong ones."""
    model, ids = copy.deepcopy(lively(form)), ids_for(small(form))
    others = {n: (p + 0.1 * torch.randn_like(p)).detach().requires_grad_() for n, p in model.named_parameters()}
    called = functional_call(model, others, (ids[:, :-1], ids[:, 1:]))["nll"]
    seen = torch.autograd.grad(called, list(others.values()))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(others[name])
    wanted = torch.autograd.grad(model(ids[:, :-1], ids[:, 1:])["nll"], list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-4) for a, b in zip(seen, wanted, strict=True))


def test_matrices_outside_of_layers_are_dense(toy: Toy) -> None:
    for form in FORMS:
        names = made(toy(f"model/linear={form}", "model/features=[bigram]").model.build_on_meta())
        assert names and all(name.startswith("stack.") for name in names)


# ---------------------------------------------------------------- sine networks


def p_of(model: LM) -> dict[str, Tensor]:
    return {name.removeprefix("shared.generator."): p.detach() for name, p in model.named_parameters()}


def test_siren_against_its_formula() -> None:
    model = lively("siren")
    p, frequencies = p_of(model), model.shared["generator"].frequencies_F.values
    code = torch.cat((p["layers.codes_nC"][1], p["kinds.codes_nC"][4]))  # the MLP's first matrix of layer 1

    def factor(net: str, count: int) -> Tensor:
        rows = []
        for index in range(count):
            at = 2 * index / (count - 1) - 1
            x = torch.cat(((math.pi * at * frequencies).sin(), (math.pi * at * frequencies).cos(), code))
            for layer in (0, 1):
                x = torch.sin(p[f"{net}.layers.{layer}.w_OI"] @ x + p[f"{net}.layers.{layer}.b_O"])
            x = p[f"{net}.layers.2.w_OI"] @ x + p[f"{net}.layers.2.b_O"]
            rows.append(x / x.square().mean().sqrt())
        return torch.stack(rows)

    w_OI = weights_of(model)["stack.blocks.1.mlp.up"]
    wanted = factor("row", 64) @ factor("column", 32).T / math.sqrt(len(p["row.layers.2.b_O"]) * 32)
    assert torch.allclose(w_OI, wanted, atol=1e-4)


def test_siren_pr_against_its_formula(toy: Toy) -> None:
    model = stirred(toy("model/linear=siren_pr"))
    p = p_of(model)

    def f(o: float, i: float, layer: float) -> float:
        x = torch.cat((torch.tensor([o, i, layer]), p["kinds.codes_nC"][4]))
        for number in range(3):
            x = torch.sin(30 * (p[f"net.layers.{number}.w_OI"] @ x + p[f"net.layers.{number}.b_O"]))
        return (p["net.layers.3.w_OI"] @ x + p["net.layers.3.b_O"]).item()

    w_OI = weights_of(model)["stack.blocks.1.mlp.up"]
    for o, i in ((0, 0), (5, 31), (63, 2), (40, 17)):
        assert w_OI[o, i].item() == pytest.approx(f(o / 63, i / 31, 1 / 2), abs=1e-4)


def test_siren_has_rank_and_the_pr_form_has_none() -> None:
    ours = wide_model("siren")
    for w_OI in weights_of(ours).values():
        assert participation(w_OI) >= 16
        assert len(torch.unique(w_OI, dim=0)) == len(w_OI), "no two rows are identical"
    torch.manual_seed(0)
    small = run_of_line("track=tiny", "model/linear=siren_pr").model.build()
    for name, w_OI in weights_of(small).items():
        assert participation(w_OI) < 1.5, name
        assert w_OI.mean().abs() > 2 * w_OI.std(), "nearly one number"


# ---------------------------------------------------------------- hypernetworks


def test_hypernetwork_against_its_formula() -> None:
    model = lively("hypernetwork")
    p = p_of(model)

    def factor(side: int, count: int) -> Tensor:
        rows = []
        for index in range(count):
            codes = (p["layers.codes_nC"][1], p["sides.codes_nC"][side], p["indices.codes_nC"][index])
            x = torch.cat(codes)
            for layer in (0, 1):
                x = F.gelu(p[f"net.layers.{layer}.w_OI"] @ x + p[f"net.layers.{layer}.b_O"])
            rows.append(p["net.layers.2.w_OI"] @ x + p["net.layers.2.b_O"])
        return norm(torch.stack(rows) - torch.stack(rows).mean(0))

    w_OI = weights_of(model)["stack.blocks.1.mlp.down"]
    product = factor(10, 32) @ factor(11, 64).T
    assert torch.allclose(w_OI, (product - product.mean()) / product.std(correction=0) / 8, atol=1e-4)


def test_hypernetwork_is_not_of_rank_one() -> None:
    for w_OI in weights_of(wide_model("hypernetwork")).values():
        assert participation(w_OI) > 5


def test_hypernetwork_pr_against_its_formula() -> None:
    model = lively("hypernetwork_pr")
    p = p_of(model)
    x = p["layers.codes_nC"][1]
    for layer in (0, 1):
        x = F.gelu(p[f"trunk.layers.{layer}.w_OI"] @ x + p[f"trunk.layers.{layer}.b_O"])
    flat = p["heads.1.w_OI"] @ x + p["heads.1.b_O"]
    rank = len(flat) // (16 + 32)
    wanted = torch.zeros(16, 32)
    for o in range(16):
        for r in range(rank):
            wanted[o] += flat[o * rank + r] * flat[16 * rank + r * 32 :][:32]
    assert torch.allclose(weights_of(model)["stack.blocks.1.mixer.key"], wanted, atol=1e-6)


# ---------------------------------------------------------------- random subspaces


def test_seeded_against_its_formula(toy: Toy) -> None:
    model = stirred(toy("model/linear=seeded"))
    for name, module in made(model).items():
        assert isinstance(module, Seeded) and module.phi_k.abs().max() > 0
        a, b, phi = module.left.values, module.right.values, module.phi_k.detach()
        assert (module.start is None) == name.endswith(("out", "down"))
        wanted = a @ torch.diag(phi) @ b + (0 if module.start is None else module.start.values)
        assert torch.allclose(module(torch.eye(module.inputs)).T, wanted, atol=1e-6)


def test_drawn_numbers_are_named_by_their_key_alone() -> None:
    torch.manual_seed(1)
    first = Drawn("42 3 mixer 512x512 0", 3, 5, std=0.5).values
    torch.manual_seed(2)
    assert torch.equal(first, Drawn("42 3 mixer 512x512 0", 3, 5, std=0.5).values)
    assert not torch.equal(first, Drawn("42 4 mixer 512x512 0", 3, 5, std=0.5).values)
    assert first[0].tolist() == pytest.approx([-0.105943, 0.207890, -1.243665, -1.126440, -0.135151], abs=1e-5)
    assert Drawn("other", 400, 500, std=0.5).values.std().item() == pytest.approx(0.5, rel=0.02)


def test_drawn_numbers_come_back_where_a_shell_is_loaded(toy: Toy) -> None:
    run = toy("model/linear=seeded")
    model, shell = stirred(run), run.model.build_on_meta()
    assert all(buffer.is_meta for buffer in shell.buffers()) and list(shell.buffers())
    shell.load_state_dict(model.state_dict(), assign=True, strict=True)
    ids = ids_for(run)
    assert torch.equal(shell.log_probs(ids), model.log_probs(ids))
    moved_back = copy.deepcopy(shell).to(torch.float64).to("cpu")
    assert all(buffer.dtype == torch.float64 for buffer in moved_back.buffers()), "buffers move with the model"


def test_dense_subspace_gradient_is_the_projection_of_the_weights(toy: Toy) -> None:
    run = toy("model/linear=seeded_dense")
    model, ids = stirred(run), ids_for(run)
    parts = [module for module in made(model).values() if isinstance(module, SeededDense)]
    phi = model.shared["generator"].phi_k
    thetas = [module.matrix_OI().detach().requires_grad_() for module in parts]
    for module, theta in zip(parts, thetas, strict=True):
        wanted = module.start.values + (module.projection.values * phi).sum(-1).view(module.outputs, module.inputs)
        assert torch.allclose(theta, wanted, atol=1e-6)
    (direct,) = torch.autograd.grad(model(ids[:, :-1], ids[:, 1:])["nll"], [phi])
    for module, theta in zip(parts, thetas, strict=True):
        fixed: Any = module
        fixed.matrix_OI = lambda theta=theta: theta
    gradients = torch.autograd.grad(model(ids[:, :-1], ids[:, 1:])["nll"], thetas)
    pairs = zip(parts, gradients, strict=True)
    projected = sum(module.projection.values.T @ gradient.flatten() for module, gradient in pairs)
    assert torch.allclose(direct, projected, atol=1e-6, rtol=1e-4) and direct.abs().max() > 0


def test_dense_subspace_refuses_large_models() -> None:
    with pytest.raises(ValueError, match=r"model\.linear\.k=256: a dense projection .* use model/linear=seeded"):
        shell("seeded_dense")
    assert len(made(shell("seeded_dense", "model.linear.k=100"))) == 9 * KINDS
    with pytest.raises(ValueError, match=r"model\.linear\.k=257 must lie in 1 \.\. 256"):
        shell("seeded_dense", "model.linear.k=257")


# ---------------------------------------------------------------- cellular automata


def test_a_zero_rule_returns_the_seed() -> None:
    for module in made(built(small("nca"))).values():
        assert isinstance(module, Automaton)
        assert torch.allclose(module.matrix_OI(), standardised(module.seed.values), atol=1e-6)
    for module in made(built(small("nca_pr"))).values():
        assert isinstance(module, AutomatonPR)
        assert torch.equal(module.matrix_OI().flatten(), module.seed.values.flatten()[: module.borrowed])


def test_automaton_against_its_definition(toy: Toy) -> None:
    """Cell by cell, from the published formulas."""
    model = stirred(toy("model/linear=nca", "model.linear.steps=2", "model.linear.codes=2"))
    module = made(model)["stack.blocks.1.mixer.key"]
    assert isinstance(module, Automaton)
    p, height, width = p_of(model), 16, 32
    state = torch.zeros(height, width, 8)
    state[..., 0] = module.seed.values
    place = torch.cat((p["layers.codes_nC"][1], p["kinds.codes_nC"][1]))
    for _ in range(2):
        after = torch.empty_like(state)
        for o in range(height):
            for i in range(width):
                down = (state[(o + 1) % height, i] - state[o - 1, i]) / 2
                right = (state[o, (i + 1) % width] - state[o, i - 1]) / 2
                h = p["net.layers.0.w_OI"] @ torch.cat((state[o, i], down, right)) + p["net.layers.0.b_O"]
                h = h + p["row.w_OI"] @ torch.cat((module.row_On[o].detach(), place))
                h = h + p["column.w_OI"] @ module.column_In[i].detach()
                after[o, i] = state[o, i] + 0.5 * (p["net.layers.1.w_OI"] @ h.relu() + p["net.layers.1.b_O"])
        state = after
    w_OI = state[..., 0]
    wanted = (w_OI - w_OI.mean()) / w_OI.std(correction=0) / math.sqrt(width)
    assert torch.allclose(module.matrix_OI(), wanted, atol=1e-5)
    assert not torch.allclose(wanted, standardised(module.seed.values), atol=1e-3), "the rule has done something"


def test_ring_automaton_against_its_definition(toy: Toy) -> None:
    model = stirred(toy("model/linear=nca_pr", "model.linear.steps=3"))
    module = made(model)["stack.blocks.0.mlp.up"]
    assert isinstance(module, AutomatonPR)
    w1, b1, w2, b2, w3 = (p.detach() for p in model.shared.parameters())
    state = module.seed.values
    cells = len(state)
    assert state.shape == (64 * 32 // 16, 16) and state.std().item() == pytest.approx(0.02, rel=0.1)
    for _ in range(3):
        after = torch.empty_like(state)
        for z in range(cells):
            seen = torch.cat((state[z], state[z] - state[z - 1], state[z] - state[(z + 1) % cells]))
            after[z] = state[z] + 0.5 * w3 @ (w2 @ (w1 @ seen + b1).relu() + b2).relu()
        state = after
    assert torch.allclose(module.matrix_OI(), state.reshape(64, 32), atol=1e-6)
    assert not torch.allclose(state, module.seed.values, atol=1e-3)


def test_states_between_steps_are_all_that_training_keeps(toy: Toy) -> None:
    """A step's hidden values, the most of it, are made again: what is kept grows by a state a step."""

    def kept(form: str, steps: int) -> int:
        module = next(iter(made(built(toy(f"model/linear={form}", f"model.linear.steps={steps}"))).values()))
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module.matrix_OI()
        return sum(sizes.values())

    for form, channels in (("nca", 8), ("nca_pr", 1)):
        assert kept(form, 6) - kept(form, 2) <= 4 * channels * 32 * 32
