"""Rounding seen by training: the exporter's own, alive under torch.compile, on when it should be."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from golf.averaging import weights_of
from golf.checks import check
from golf.conf_files import CONF, load_part
from golf.config import Run
from golf.errors import UserError
from golf.loop import as_it_is
from golf.models.lm import LM
from golf.nodes import configs
from golf.qat import Rounded, rounding_formats
from golf.quant.formats import FloatConfig, FormatConfig, IntConfig, decode_one
from golf.schedules import Tick
from tests.helpers.quant import QUANTS, copy_of, quant_of, shaken
from tests.helpers.tiers import slow


def integers(formats: dict[str, FormatConfig]) -> list[str]:
    """Those of a quantiser's formats that round matrices."""
    return [name for name, chosen in formats.items() if chosen.rounds((512, 512))]


def grids(formats: dict[str, FormatConfig]) -> list[str]:
    """Those with bits to set."""
    return [name for name, chosen in formats.items() if isinstance(chosen, IntConfig)]


BEFORE, AFTER = Tick(0, 0.0, 100, 1.0), Tick(99, 0.99, 1, 0.01)
Toy = Callable[..., Run]


def moved(run: Run) -> LM:
    return shaken(run, by=0.1)


def late(toy: Toy) -> Run:
    """A toy run with qat=late."""
    return replace(copy_of(toy), qat=load_part("qat/late"))


def batch(run: Run, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(run.model.vocab_size, (rows, 17), generator=torch.Generator().manual_seed(1))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
@pytest.mark.parametrize("quant", QUANTS)
def test_training_sees_bitwise_what_the_artifact_gives_back(quant: str, bits: int, toy: Toy) -> None:
    run = replace(copy_of(toy), quant=quant_of(quant))
    whole = run.quant.formats
    if not integers(whole):
        with pytest.raises(UserError, match="this quantiser stores no integers"):
            rounding_formats(run.model.build_on_meta(), run.quant)
        return
    run.quant.formats |= {name: replace(whole[name], bits=bits) for name in grids(whole)}
    for _, config in configs(run.quant):
        if isinstance(config, IntConfig):
            config.half_below = None  # a toy's matrices are small
    model = moved(run)
    roles = model.stored_roles()
    weights = weights_of(model)
    stored = run.quant.quantize({name: weights[name] for name in roles}, roles)
    back = {
        name: decode_one(run.quant.formats[kept.format], kept.parts, tuple(weights[name].shape))
        for name, kept in stored.items()
    }
    seen = Rounded(model, rounding_formats(model, run.quant)).weights()
    whole_embedding = run.quant.formats[run.quant.roles["embedding"]]
    assert ("embed.table_VD" in seen) == (not isinstance(whole_embedding, FloatConfig))
    assert "stack.blocks.0.mlp.up.weight" in seen
    for name, weight in seen.items():
        assert torch.equal(weight, back[name]), name
    assert any(not torch.equal(weight, weights[name]) for name, weight in seen.items())


def test_the_whole_forward_is_that_of_a_model_with_the_stored_weights(toy: Toy) -> None:
    run = late(toy)
    model = moved(run)
    rounded = Rounded(model, rounding_formats(model, run.quant))
    other = run.model.build()
    other.load_state_dict(weights_of(model) | {name: w.detach() for name, w in rounded.weights().items()})
    x_BT, y_BT = batch(run)
    assert rounded(x_BT, y_BT)["nll"].item() == other(x_BT, y_BT)["nll"].item() != model(x_BT, y_BT)["nll"].item()


def test_gradients_pass_as_they_are_and_strength_mixes(toy: Toy) -> None:
    run = late(toy)
    model = moved(run)
    rounded = Rounded(model, rounding_formats(model, run.quant))
    name = "stack.blocks.0.mlp.up.weight"
    weight = dict(model.named_parameters())[name]
    full = rounded.weights()[name]
    pull = torch.randn_like(weight)
    full.backward(pull)
    assert torch.equal(weight.grad, pull)
    rounded.strength.fill_(0.25)
    assert torch.allclose(rounded.weights()[name], 0.75 * weight + 0.25 * full, atol=1e-6)
    rounded.strength.fill_(0.0)
    assert torch.equal(rounded.weights()[name], weight)


def assert_both_passes_are_alive(run: Run, compiled: Callable[[nn.Module], Callable]) -> None:
    """The losses of plain and rounded steps, at full and at half strength, are those of models that hold the weights
    that each of them is to see."""
    model = moved(run)
    qat = run.qat.build(model, run.quant, compiled)
    x_BT, y_BT = batch(run)

    def expected(strength: float) -> float:
        rounded = Rounded(model, rounding_formats(model, run.quant))
        rounded.strength.fill_(strength)
        other = run.model.build()
        other.load_state_dict(weights_of(model) | {name: w.detach() for name, w in rounded.weights().items()})
        return other(x_BT, y_BT)["nll"].item()

    losses = [qat.forward(tick)(x_BT, y_BT, 0)["nll"].item() for tick in (BEFORE, AFTER, BEFORE, AFTER)]
    assert losses == pytest.approx([expected(0.0), expected(1.0)] * 2, abs=1e-6) and abs(losses[0] - losses[1]) > 1e-5
    qat.strength.fill_(0.5)
    assert qat.rounded(x_BT, y_BT, 0)["nll"].item() == pytest.approx(expected(0.5), abs=1e-6)


def test_both_passes_see_their_weights(toy: Toy) -> None:
    assert_both_passes_are_alive(late(toy), as_it_is)


def small(toy: Toy) -> Run:
    """A run of one block that rounds the table alone, for the compiler."""
    run = late(toy)
    run.quant.roles |= {"matrix": "fp16", "embedding": "int6"}
    return replace(run, model=replace(run.model, layers=1, stack=load_part("model/stack/plain", loop=None)))


@pytest.mark.parametrize("size", [small, slow(late)])
def test_compile_does_not_drop_it(size: Callable[[Toy], Run], toy: Toy) -> None:
    """The pass is chosen per step and its strength is a tensor: one graph, and both are alive in it."""
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable:
        graphs.append(graph)
        return graph.forward

    def compiled(module: nn.Module) -> Callable:
        return torch.compile(module, dynamic=False, fullgraph=True, backend=backend)

    torch.compiler.reset()
    assert_both_passes_are_alive(size(toy), compiled)
    assert len(graphs) == 2, "one graph for each pass, none for a strength"


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "qat").glob("*.yaml")))
def test_every_qat_is_off_at_first_and_on_at_the_end(name: str, toy: Toy) -> None:
    run = replace(copy_of(toy), qat=load_part(f"qat/{name}"))
    qat = run.qat.build(moved(run), run.quant, as_it_is)
    assert qat.forward(BEFORE) is qat.plain and qat.forward(AFTER) is qat.rounded and qat.strength == 1.0


def test_a_quantiser_without_integers_is_refused(toy: Toy) -> None:
    run = late(toy)
    run.quant.roles = dict.fromkeys(run.quant.roles, "fp16")
    with pytest.raises(UserError, match="stores no integers"):
        check(run)
