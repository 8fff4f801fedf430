"""The late stage: what is replayed was trained on, and the teacher is the average."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from golf.averaging import EMAConfig, weights_of
from golf.config import Run
from golf.curriculum import Shape
from golf.late import Distill, DistillConfig, Replay, ReplayConfig
from golf.loop import as_it_is
from golf.schedules import Start, Tick
from golf.tokens.loader import Loader
from golf.tokens.shards import TokenStream
from tests.helpers.quant import shaken

Toy = Callable[..., Run]
SHAPE = Shape(2, 16)
MIDDLE, LOW, END = Tick(5, 0.5, 10, 0.9), Tick(9, 0.9, 2, 0.1), Tick(12, 1.0, 0, 0.0)


@pytest.fixture
def loader(toy: Toy) -> Loader:
    run = toy("loader=shuffled", "loader.prefetch=false")
    prepared = run.data.prepare(Path(run.data_dir), log=lambda line: None)
    return run.loader.open(
        TokenStream(prepared.splits["train"].shards), bos_id=prepared.bos_id, seed=1, rank=0, world=1
    )


def replay(count: int) -> Replay:
    start = Start(progress=None, rate_below=0.2)
    return Replay(ReplayConfig(share=0.1, rate=0.1, start=start, count=count))


def test_what_is_replayed_are_the_last_batches_in_their_order(loader: Loader) -> None:
    late = replay(count=3)
    for _ in range(2):
        late.batch(loader, SHAPE, MIDDLE)
    before = [late.batch(loader, SHAPE, LOW)[0] for _ in range(5)]
    again = [late.batch(loader, SHAPE, END)[0] for _ in range(6)]
    assert all(torch.equal(a, b) for a, b in zip(again, before[2:] * 2, strict=True))
    assert late.multiplier(0.7, LOW) == 0.7 and late.multiplier(0.0, END) == 0.1


def test_a_replay_goes_on_where_it_was(loader: Loader) -> None:
    whole, broken = replay(count=3), replay(count=3)
    for late in (whole, broken):
        loader.seek(dict.fromkeys(loader.state(), 0))
        for _ in range(4):
            late.batch(loader, SHAPE, LOW)
        late.batch(loader, SHAPE, END)
    again = replay(count=3)
    again.load(broken.state(), {})
    for _ in range(4):
        assert torch.equal(again.batch(loader, SHAPE, END)[0], whole.batch(loader, SHAPE, END)[0])


def test_without_a_start_nothing_is_replayed(loader: Loader) -> None:
    late = replay(count=3)
    first = late.batch(loader, SHAPE, MIDDLE)[0]
    assert not torch.equal(late.batch(loader, SHAPE, END)[0], first), "it reads on"


def distill(run: Run) -> tuple[Distill, torch.nn.Module]:
    model = shaken(run, by=0.1)
    config = DistillConfig(share=0.1, rate=0.05, weight=0.7, temperature=2.0)
    return config.build(model, as_it_is), model


def test_distillation_is_its_formula_and_the_teacher_is_the_average_at_the_start(toy: Toy) -> None:
    run = toy()
    late, model = distill(run)
    averager = EMAConfig(horizon_steps=2, bias_correction=True).build(weights_of(model))
    averager.update(weights_of(model), LOW)
    teacher = run.model.build()
    teacher.load_state_dict(averager.averages(weights_of(model)))
    model.embed.table_VD.data.mul_(1.3)  # the student has gone on
    assert late.forward(model, averager, LOW) is model, "not yet"
    ids_BT = torch.randint(run.model.vocab_size, (3, 17))
    x_BT, y_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    losses = late.forward(model, averager, END)(x_BT, y_BT, 0)
    log_s, log_t = model.log_probs(x_BT).flatten(0, 1), teacher.log_probs(x_BT).flatten(0, 1)
    s, t = (torch.softmax(z / 2.0, -1) for z in (log_s, log_t))
    kl = (t * (t.log() - s.log())).sum(-1).mean()
    nll = F.nll_loss(log_s, y_BT.flatten())
    assert losses["nll"].item() == pytest.approx(nll.item(), abs=1e-5)
    assert losses["objective"].item() == pytest.approx((0.7 * 4 * kl + 0.3 * nll).item(), abs=1e-5)
    losses["objective"].backward()
    assert all(p.grad is None for p in late.pair.teacher.parameters())
    averager.update({name: w + 1 for name, w in weights_of(model).items()}, END)
    again = late.forward(model, averager, END)(x_BT, y_BT, 0)
    assert again["objective"].item() == losses["objective"].item(), "the teacher stays as it was"


def test_a_teacher_comes_back_from_a_checkpoint(toy: Toy) -> None:
    late, model = distill(toy())
    averager = EMAConfig(horizon_steps=2, bias_correction=True).build(weights_of(model))
    averager.update({name: w + 0.5 for name, w in weights_of(model).items()}, LOW)
    assert late.tensors() == {}
    late.forward(model, averager, END)
    again, _ = distill(toy())
    again.load(late.state(), {name: tensor.clone() for name, tensor in late.tensors().items()})
    averager.update(weights_of(model), END)
    again.forward(model, averager, END)
    for name, weight in late.tensors().items():
        assert torch.equal(weight, again.tensors()[name])
