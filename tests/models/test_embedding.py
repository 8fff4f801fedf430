"""Features of the embedding and initial values against their formulas."""

from collections.abc import Callable

import pytest
import torch

from golf.config import Run
from golf.errors import UserError
from golf.models.init import power_law_spectrum_
from golf.models.slots import Frame
from golf.models.smear import GatedSmear, Smear
from tests.helpers.models import built, context_of, ids_for, moved, stirred
from tests.helpers.parts import run_of_line


def test_smear_does_not_cross_the_start_of_a_document() -> None:
    x = torch.randn(1, 6, 4)
    ids = torch.tensor([[5, 6, 1, 7, 8, 9]])
    for part in (Smear(4, 1), GatedSmear(4, 1)):
        for parameter in part.parameters():
            parameter.data.fill_(0.3)
        other = x.clone()
        other[0, :2] = torch.randn(2, 4)
        torch.testing.assert_close(part(x, ids)[:, 2:], part(other, ids)[:, 2:])
        part.bos_id = None
        assert not torch.allclose(part(x, ids)[:, 2], part(other, ids)[:, 2]), "without the mask it does"


def test_smears_are_their_formulas() -> None:
    x, ids = torch.randn(1, 4, 8), torch.tensor([[5, 6, 7, 8]])
    before = torch.cat((torch.zeros(1, 1, 8), x[:, :-1]), 1)
    old = Smear(8, 1)
    torch.testing.assert_close(old(x, ids), (x + before) / 2)
    new = GatedSmear(3, 1)
    torch.testing.assert_close(new(x, ids), x)
    new.weight_F.data, new.scale.data = torch.tensor([1.0, -2.0, 0.5]), torch.tensor(0.7)
    gate = torch.sigmoid((x[..., :3] * new.weight_F).sum(-1, keepdim=True))
    torch.testing.assert_close(new(x, ids), x + 0.7 * gate * before)


def test_bigram_buckets_are_the_published_hashes() -> None:
    frame = run_of_line("track=tiny").model
    ids = torch.tensor([[3, 1023, 0, 17]])
    xor = run_of_line("track=tiny", "model/features=bigram").model.embed.features["bigram"]
    hashed = xor.build(Frame(1024, 96, 2, frame.linear)).bucket(ids)
    expected = [2047] + [((36313 * a) ^ (27191 * b)) % 2047 for b, a in ((3, 1023), (1023, 0), (0, 17))]
    assert hashed[0].tolist() == expected
    linear = run_of_line("track=tiny", "model/features=bigram_linear").model.embed.features["bigram"]
    hashed = linear.build(Frame(1024, 96, 2, frame.linear)).bucket(ids)
    assert hashed[0].tolist() == [3, (1009 * 3 + 1023) % 8192, (1009 * 1023) % 8192, 17]


def test_bigram_settings_that_would_never_train_are_refused() -> None:
    with pytest.raises(UserError, match=r"features\.bigram\.table_std=0 and zero_projection=true would never train"):
        run_of_line("model/features=bigram", "model.embed.features.bigram.zero_projection=true")
    with pytest.raises(UserError, match=r"features\.bigram\.multiplier=None with hash=linear"):
        run_of_line("model/features=bigram", "model.embed.features.bigram.hash=linear")


def test_registers_are_seen_by_all_and_never_scored(toy: Callable[..., Run]) -> None:
    run = toy("model/features=[registers,bigram,smear]")
    model, ids = stirred(run), ids_for(run)
    assert model.embed.places(9).tokens == range(4, 13), "in front of the text"
    assert model.embed.parts()[-1].adds, "they come last, however they are listed"
    assert model.embed(ids, torch.float32).shape[1] == ids.shape[1] + 4
    assert model.log_probs(ids).shape[1] == ids.shape[1]
    before = model.log_probs(ids)
    model.embed.features["registers"].vectors_nD.data[0] += 1.0
    assert not torch.isclose(before, model.log_probs(ids)).all(dim=-1).any(), "every token sees the first register"


def test_value_embeddings_give_registers_the_first_id(toy: Callable[..., Run]) -> None:
    context = context_of(torch.zeros(1, 7, 4), torch.tensor([[5, 6, 7]]))
    assert context.places.count == 7 and context.padded_ids().tolist() == [[0, 0, 0, 0, 5, 6, 7]]


def test_spectral_start_has_its_power_law_and_keeps_the_size() -> None:
    torch.manual_seed(0)
    w = torch.randn(40, 12)
    before = w.norm()
    power_law_spectrum_(w, 0.5)
    s = torch.linalg.svdvals(w)
    torch.testing.assert_close(w.norm(), before)
    torch.testing.assert_close(s / s[0], torch.arange(1.0, 13) ** -0.5, atol=1e-4, rtol=1e-4)


def test_orthogonal_start_and_its_output_scaling(toy: Callable[..., Run]) -> None:
    zero, scaled = (built(toy(f"model/linear={name}")) for name in ("orthogonal", "orthogonal_scaled"))
    query = zero.stack.blocks[0].mixer.query.weight
    torch.testing.assert_close(query @ query.T, torch.eye(32), atol=1e-5, rtol=0)
    assert not zero.stack.blocks[0].mixer.out.weight.any()
    out = scaled.stack.blocks[0].mixer.out.weight
    torch.testing.assert_close(out @ out.T, torch.eye(32) / (2 * 3), atol=1e-5, rtol=0)


def test_bf16_tables_train_with_adam_in_bf16(toy: Callable[..., Run]) -> None:
    run = toy("model/embed=table_bf16", "optimizer=muon_decay")
    model = moved(run)
    assert model.embed.table_VD.dtype == torch.bfloat16 and torch.isfinite(model.embed.table_VD).all()
    state = run.optimizer.build(model, torch.float32).state()
    assert all(value.dtype == torch.bfloat16 for name, value in state.items() if "table_VD/exp" in name)
