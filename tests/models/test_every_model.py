"""Every model YAML: builds, starts near log(vocab), is causal, and trains all that it should."""

import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from golf.artifact.file import read_artifact, write_artifact
from golf.compose import compose
from golf.config import Run
from golf.models.kernels import choose_backend, sdpa
from golf.models.lm import LM
from golf.models.norms import norm
from golf.models.rope import rotary_tables, rotate
from golf.models.slots import Context, Frame, Heads, OutputPartConfig, ValuePartConfig
from golf.models.tiled import tiled
from golf.optim.optimizer import OptimizerConfig
from golf.quant.formats import FloatConfig
from golf.roles import roles_of
from tests.helpers.model_choices import CHOICES, FEW, FIRST, SAME
from tests.helpers.models import built, ids_for, moved
from tests.helpers.tiers import quick


@pytest.fixture(scope="module", params=quick(FIRST.values(), CHOICES))
def chosen_model(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def run(chosen_model: str, toy: Callable[..., Run]) -> Run:
    return toy(chosen_model, "scale.seq=0.03125")  # sizes by length as for texts of 32


# two factors in a row that begin at zero: what stands before them lives from the second step on
LATER = {"model/head=untied", "model/linear=shared_lora", "model/linear=nca"}


@dataclass(frozen=True)
class Trained:
    """A model after two steps (three of LATER), which no test changes, and what had no gradient in the last of them."""

    model: LM
    dead: list[str]


@pytest.fixture(scope="module")
def trained(chosen_model: str, run: Run) -> Trained:
    dead: list[list[str]] = []
    model = moved(run, 3 if chosen_model in LATER else 2, dead)
    return Trained(model, dead[-1])


@pytest.mark.parametrize("left_out", quick(FEW, SAME))
def test_what_is_not_tried_is_one_that_is(left_out: str, toy: Callable[..., Run]) -> None:
    assert set(SAME.values()) <= set(CHOICES) and toy(left_out).model == toy(SAME[left_out]).model


def test_initial_loss_is_log_vocab(run: Run) -> None:
    ids = ids_for(run, rows=8)
    assert built(run)(ids[:, :-1], ids[:, 1:])["nll"].item() == pytest.approx(math.log(run.model.vocab_size), abs=0.05)


def test_log_probs_are_normalised_and_agree_with_the_loss(run: Run, trained: Trained) -> None:
    model, ids = trained.model, ids_for(run)
    log_probs = model.log_probs(ids[:, :-1])
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(2, 23), atol=1e-5)
    nll = -log_probs.gather(-1, ids[:, 1:, None]).mean()
    assert nll.item() == pytest.approx(model(ids[:, :-1], ids[:, 1:])["nll"].item(), abs=1e-5)
    assert torch.equal(model.log_probs(ids[:, :-1], last=5), log_probs[:, -5:])


def test_causal(run: Run, trained: Trained) -> None:
    model, ids = trained.model, ids_for(run)
    changed = ids.clone()
    changed[:, 10] = (changed[:, 10] + 1) % run.model.vocab_size
    with torch.no_grad():
        before, after = model.log_probs(ids), model.log_probs(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


def test_every_parameter_gets_a_gradient_after_one_step(trained: Trained) -> None:
    assert not trained.dead


def test_every_parameter_is_claimed_once_by_optimizer_and_quantiser(run: Run) -> None:
    model = run.model.build_on_meta()
    names = {name for name, _ in model.named_parameters()}
    assert set(run.optimizer.assign(model)) == names
    kept = run.model.exported().build_on_meta()
    stored = {name for name, _ in kept.named_parameters()}
    assert set(run.quant.assign(roles_of(kept))) == stored <= names


@pytest.mark.wide  # a compiler for each
def test_no_graph_breaks(run: Run) -> None:
    torch.compiler.reset()  # models of other tests count towards the limit of recompilations
    ids = ids_for(run)
    whole = torch.compile(built(run), fullgraph=True, backend="eager")
    assert torch.isfinite(whole(ids[:, :-1], ids[:, 1:])["nll"])


def test_bf16_stays_close(run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = trained.model, ids_for(run)
    full = model(ids[:, :-1], ids[:, 1:])["nll"].item()
    monkeypatch.setattr(model, "compute_dtype", torch.bfloat16)
    assert model(ids[:, :-1], ids[:, 1:])["nll"].item() == pytest.approx(full, abs=0.02)


def test_the_artifact_holds_what_scores_need(run: Run, trained: Trained, tmp_path: Path) -> None:
    """Stored as fp32 and read back into a fresh model, every model scores as it did in memory."""
    model, ids, kept = trained.model, ids_for(run), run.model.exported()
    roles, weights = roles_of(kept.build_on_meta()), dict(model.named_parameters())
    exact = replace(run.quant, formats={"fp32": FloatConfig(dtype="fp32")}, roles={}, names={}, default="fp32")
    stored = exact.quantize({name: weights[name] for name in roles}, roles)
    path = tmp_path / "artifact.golf"
    write_artifact(path, model=kept, stored=stored, weights="", quant=exact, codec=run.chosen_codec, tokenizer="")
    fresh = read_artifact(path).model
    assert torch.equal(fresh.log_probs(ids), model.log_probs(ids))


def test_naive_baseline_has_the_published_size() -> None:
    full = compose(["track=h100x8", "model=baseline"])
    assert sum(p.numel() for p in full.model.build_on_meta().parameters()) == 17_059_912


def test_meta_model_has_the_shapes_of_the_real_one(run: Run) -> None:
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (run.model.build_on_meta(), built(run))]
    assert shapes[0] == shapes[1]


def test_baseline_against_its_definition(toy: Callable[..., Run]) -> None:
    """The whole forward pass, written again from the published formulas with plain tensor algebra."""
    run = toy("model.layers=5")
    model, ids = moved(run), ids_for(run, rows=1, length=9)
    p = {name: value.detach() for name, value in model.named_parameters()}
    x = x0 = norm(p["embed.table_VD"][ids[0]])
    T, heads, kv = 9, run.model.mixer.heads, run.model.mixer.kv_heads
    C = run.model.dim // heads
    mask = torch.full((T, T), float("-inf")).triu(1)
    outputs = []
    for i in range(run.model.layers):
        b = f"stack.blocks.{i}."
        if i >= run.model.layers // 2 and outputs:
            x = x + p["stack.skip_scale_JD"][i - run.model.layers // 2] * outputs.pop()
        x = p[b + "residual.mix_D"] * x + p[b + "residual.mix0_D"] * x0
        h = norm(x)
        q = norm((h @ p[b + "mixer.query.weight"].T).view(T, heads, C))
        k = norm((h @ p[b + "mixer.key.weight"].T).view(T, kv, C))
        v = (h @ p[b + "mixer.values.weight"].T).view(T, kv, C)
        angle = torch.arange(T)[:, None] * 10000.0 ** -(torch.arange(C // 2) * 2 / C)
        turn = torch.polar(torch.ones_like(angle), -angle)[:, None]
        pairs = [torch.complex(t[..., : C // 2], t[..., C // 2 :]) * turn for t in (q, k)]
        q, k = (torch.cat((z.real, z.imag), -1) for z in pairs)
        q = q * p[b + "mixer.gain_H"][:, None]
        y = torch.empty(T, heads, C)
        for head in range(heads):
            shared = head // (heads // kv)
            y[:, head] = ((q[:, head] @ k[:, shared].T) / math.sqrt(C) + mask).softmax(-1) @ v[:, shared]
        x = x + p[b + "residual.mixer_scale_D"] * (y.reshape(T, -1) @ p[b + "mixer.out.weight"].T)
        hidden = (norm(x) @ p[b + "mlp.up.weight"].T).clamp_min(0) ** 2
        x = x + p[b + "residual.mlp_scale_D"] * (hidden @ p[b + "mlp.down.weight"].T)
        if i < run.model.layers // 2:
            outputs.append(x)
    logits = 30 * torch.tanh(norm(x) @ p["embed.table_VD"].T / 30)
    with torch.no_grad():
        assert torch.allclose(model.log_probs(ids)[0], logits.log_softmax(-1), atol=1e-4)


def test_rotation_depends_on_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8)
    tables = rotary_tables(12, 8, 100.0, q.dtype, q.device)
    turned_q, turned_k = (rotate(t.expand(1, 12, 1, 8), tables)[0, :, 0] for t in (q, k))
    scores = turned_q @ turned_k.T
    assert torch.allclose(scores[3, 1], scores[9, 7], atol=1e-5) and torch.allclose(scores.diag(), (q * k).sum())


@dataclass(kw_only=True, slots=True)
class DoubleValueConfig(ValuePartConfig):
    def build(self, frame: Frame, shape: Heads) -> nn.Module | None:
        return Double() if frame.layer == frame.layers - 1 else None


@dataclass(kw_only=True, slots=True)
class HalveOutputConfig(OutputPartConfig):
    def build(self, frame: Frame, shape: Heads) -> nn.Module | None:
        return Halve() if frame.layer == frame.layers - 1 else None


class Double(nn.Module):
    def forward(self, v_BTKC: Tensor, h_BTD: Tensor, context: Context) -> Tensor:
        return 2 * v_BTKC


class Halve(nn.Module):
    def forward(self, y_BTHC: Tensor, v_BTKC: Tensor, h_BTD: Tensor) -> Tensor:
        return y_BTHC / 2


def test_value_and_output_parts_by_name_and_layer(toy: Callable[..., Run]) -> None:
    run = toy()
    plain, ids = moved(run), ids_for(run)
    run.model.mixer.value, run.model.mixer.output = {"twice": DoubleValueConfig()}, {"halve": HalveOutputConfig()}
    both = built(run)
    both.load_state_dict(plain.state_dict())
    assert torch.allclose(plain.log_probs(ids), both.log_probs(ids), atol=1e-5), "doubled values, halved outputs"
    run.model.mixer.output = {}
    doubled = built(run)
    doubled.load_state_dict(plain.state_dict())
    assert not torch.allclose(plain.log_probs(ids), doubled.log_probs(ids), atol=1e-3)
    assert [len(block.mixer.value_parts) for block in both.stack.blocks] == [0, 0, 1]
    run.model.mixer.value = {"double": DoubleValueConfig()}
    with pytest.raises(ValueError, match=r"model\.mixer\.value\.double: .*try double_part"):
        built(run)


def test_attention_backend_is_never_silently_another() -> None:
    cpu = torch.device("cpu")
    assert choose_backend("auto", cpu).attend is tiled
    with pytest.raises(ValueError, match=r"compute\.attention=flash3: not usable"):
        choose_backend("flash3", cpu)


def test_flash_kernels_are_found_by_their_function_and_get_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake Hopper with a package that rejects fp32, as the real ones do, and one that only shares a name."""

    def flash(
        q: Tensor, k: Tensor, v: Tensor, causal: bool, window_size: tuple[int, int] = (-1, -1)
    ) -> tuple[Tensor, None]:
        assert causal and q.dtype == k.dtype == v.dtype == torch.bfloat16
        return sdpa(q, k, v, window_size[0] if window_size[0] >= 0 else None), None

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda")
    monkeypatch.setitem(sys.modules, "flash_attn", types.ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    assert choose_backend("auto", gpu).name == "sdpa", "a module without the function is another package"
    interface = types.ModuleType("flash_attn_interface")
    interface.flash_attn_func = flash
    monkeypatch.setitem(sys.modules, "flash_attn_interface", interface)
    chosen = choose_backend("auto", gpu)
    assert chosen.name == "flash3" and "(9, 0)" in chosen.reason
    q, k, v = (torch.randn(1, 5, heads, 8) for heads in (4, 2, 2))
    assert chosen.attend(q, k, v).dtype == torch.float32
    assert torch.allclose(chosen.attend(q, k, v), sdpa(q, k, v), atol=0.05)


def test_undeclared_roles_are_a_bug(toy: Callable[..., Run]) -> None:
    model = built(toy())
    model.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="declares no role"):
        roles_of(model)


def test_optimizer_names_override_roles_and_must_fit(toy: Callable[..., Run]) -> None:
    run = toy()
    config: OptimizerConfig = run.optimizer
    config.names = {"*.mlp.down.weight": "scalars"}
    claimed = config.assign(run.model.build_on_meta())
    assert claimed["stack.blocks.0.mlp.down.weight"] == "scalars"
    assert claimed["stack.blocks.0.mlp.up.weight"] == "matrices"
    config.names = {"*.nope": "scalars"}
    with pytest.raises(ValueError, match=r"optimizer\.names\.\*\.nope: fits no parameter"):
        config.assign(run.model.build_on_meta())
