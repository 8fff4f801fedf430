"""A product of matrices: absorbs the token before it predicts, and equals the product written out."""

from collections.abc import Callable

import pytest
import torch

from golf.config import Run
from golf.errors import UserError
from golf.models.mps import states
from golf.models.norms import norm
from tests.helpers.models import built, ids_for, stirred


def test_equals_the_product_written_out(toy: Callable[..., Run]) -> None:
    """h of a token is h0 A[x_0] ... A[x_t], normed: the norms on the way change its length only."""
    run = toy("model=mps")
    model, ids = stirred(run), ids_for(run, rows=1, length=6)
    D = run.model.dim
    h = model.stack.start_D.double()
    with torch.no_grad():
        for t, token in enumerate(ids[0]):
            h = h @ model.stack.core_VF[token].view(D, D).double()
            assert torch.allclose(model.hidden(ids)[0, t].double(), norm(h), atol=1e-4)


def test_the_last_token_counts(toy: Callable[..., Run]) -> None:
    """At once, but in the PR's form, which reads its logits before the token is absorbed."""
    for stack, late in (("mps", 0), ("mps_pr", 1)):
        run = toy("model=mps", f"model/stack={stack}")
        model, ids = stirred(run), ids_for(run)
        changed = ids.clone()
        changed[:, -2] = (changed[:, -2] + 1) % run.model.vocab_size
        same = (model.log_probs(ids) - model.log_probs(changed)).abs().amax(dim=(0, 2)) < 1e-3
        assert same[: late - 2].all() and not same[late - 2]


def test_detach_cuts_the_gradient_and_nothing_else(toy: Callable[..., Run]) -> None:
    ids = ids_for(toy("model=mps"), length=16)
    models = [built(toy("model=mps", f"model.stack.detach={n}")) for n in ("null", "8")]
    scores = [model.hidden(ids)[:, -1].sum() for model in models]
    assert torch.equal(scores[0], scores[1])
    slopes = [
        torch.autograd.grad(s, m.stack.start_D, allow_unused=True)[0] for s, m in zip(scores, models, strict=True)
    ]
    assert slopes[0].abs().sum() > 0 and not slopes[1].any()


@pytest.mark.parametrize("detach", [None, 2])
def test_its_gradient_is_that_of_the_product_written_out(detach: int | None) -> None:
    torch.manual_seed(0)
    start, a, upstream = torch.randn(4).requires_grad_(), torch.randn(2, 5, 4, 4).requires_grad_(), torch.randn(2, 5, 4)
    h, found = start.expand(2, -1), []
    for t in range(5):
        h = h.detach() if detach and t and t % detach == 0 else h
        h = norm(torch.einsum("bd,bde->be", h, a[:, t]))
        found.append(h)
    slopes = [torch.autograd.grad(y, [start, a], upstream) for y in (states(start, a, detach), torch.stack(found, 1))]
    torch.testing.assert_close(slopes[0], slopes[1], atol=1e-5, rtol=1e-4)


def test_its_size_is_the_table_the_cores_and_the_start(toy: Callable[..., Run]) -> None:
    run = toy("model=mps")
    V, D = run.model.vocab_size, run.model.dim
    assert sum(p.numel() for p in built(run).parameters()) == V * D + V * D * D + D


def test_features_that_it_would_not_read_are_refused(toy: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"features=bigram: MPS reads tokens alone; set model/features=\[\]"):
        built(toy("model=mps", "model/features=[bigram]"))
