"""What holds for every model YAML: it builds, starts near log(vocab), is causal, and trains all that it should."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from golf.artifact.file import read_artifact, write_artifact
from golf.conf_files import load_part
from golf.config import Run
from golf.models.lm import LM
from golf.quant.formats import FloatConfig
from golf.roles import roles_of
from tests.helpers.model_choices import CHOICES, FIRST
from tests.helpers.models import built, ids_for, moved
from tests.helpers.parts import toy_of
from tests.helpers.tiers import slow

# two factors in a row that begin at zero: what stands before them lives from the second step on
LATER = {"model/head=untied", "model/linear=shared_lora", "model/linear=nca"}
SLOTS = {  # which of the test files tries a group
    "attention": ("mixer", "rope", "window", "input", "value", "output"),
    "channels": ("embed", "features", "mlp", "residual", "head", "auxiliary"),
    "linear": ("linear",),
    "stack": ("stack",),
    "whole": ("",),
}


QUICK_CODEC = load_part("codec/zlib", level=1)
SHORTER = {  # loops whose length decides what a step takes
    "model/linear=nca": "model.linear.steps=2",
    "model/linear=nca_pr": "model.linear.steps=2",
    "model/stack=universal_pr": "model.stack.most=4",
}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A toy run of a choice, its model after two steps (three of LATER), which no test changes, and what it gave."""

    run: Run
    shell: LM  # on the meta device
    model: LM
    first_loss: float
    dead: list[str]  # what had no gradient in the last step
    ids: Tensor
    loss: float  # of predicting ids[:, 1:]
    log_probs: Tensor  # after each of ids


def tried(choice: str) -> Tried:
    shorter = [SHORTER[choice]] if choice in SHORTER else []
    if choice.split("=")[0] in ("model/linear", "model/mlp", "model/features", "model/head"):
        shorter.append("model.layers=2")  # of which none is unlike another
    run = toy_of(choice, "scale.seq=0.03125", "data.vocab_size=64", *shorter)  # sizes by length as for texts of 32
    losses, dead = list[float](), list[list[str]]()
    model = moved(run, 3 if choice in LATER else 2, dead, losses)
    ids = ids_for(run)
    with torch.no_grad():
        loss, log_probs = model(ids[:, :-1], ids[:, 1:])["nll"].item(), model.log_probs(ids)
    return Tried(
        run=run,
        shell=run.model.build_on_meta(),
        model=model,
        first_loss=losses[0],
        dead=dead[-1],
        ids=ids,
        loss=loss,
        log_probs=log_probs,
    )


def choices_for(file: str) -> list[object]:
    """Return the choices that a test file tries: one of each set of classes, in the tier `slow` the others."""
    groups = {f"model/{slot}".rstrip("/") for slot in SLOTS[file]}
    choices = [choice for choice in CHOICES if choice.split("=")[0] in groups]
    return [choice if choice in FIRST.values() else slow(choice) for choice in choices]


class Checks:
    """Tests of a choice; the fixture `case` gives what was tried."""

    def test_initial_loss_is_log_vocab(self, case: Tried) -> None:
        assert case.first_loss == pytest.approx(math.log(case.run.model.vocab_size), abs=0.05)

    def test_log_probs_are_normalised_and_agree_with_the_loss(self, case: Tried) -> None:
        with torch.no_grad():
            last = case.model.log_probs(case.ids, last=5)
        assert torch.allclose(case.log_probs.exp().sum(-1), torch.ones(2, 24), atol=1e-5)
        nll = -case.log_probs[:, :-1].gather(-1, case.ids[:, 1:, None]).mean()
        assert nll.item() == pytest.approx(case.loss, abs=1e-5)
        assert torch.equal(last, case.log_probs[:, -5:])

    def test_causal(self, case: Tried) -> None:
        changed = case.ids.clone()
        changed[:, 10] = (changed[:, 10] + 1) % case.run.model.vocab_size
        with torch.no_grad():
            before, after = case.log_probs, case.model.log_probs(changed)
        assert torch.equal(before[:, :10], after[:, :10])
        assert not torch.allclose(before[:, 10:], after[:, 10:])

    def test_every_parameter_gets_a_gradient_after_one_step(self, case: Tried) -> None:
        assert not case.dead

    def test_every_parameter_is_claimed_once_by_optimizer_and_quantiser(self, case: Tried) -> None:
        names = {name for name, _ in case.shell.named_parameters()}
        assert set(case.run.optimizer.assign(case.shell)) == names
        kept = case.run.model.exported().build_on_meta() if case.run.model.auxiliary else case.shell
        stored = {name for name, _ in kept.named_parameters()}
        assert set(case.run.quant.assign(roles_of(kept))) == stored <= names

    @pytest.mark.wide  # a compiler for each
    def test_no_graph_breaks(self, case: Tried) -> None:
        torch.compiler.reset()  # models of other tests count towards the limit of recompilations
        whole = torch.compile(built(case.run), fullgraph=True, backend="eager")
        assert torch.isfinite(whole(case.ids[:, :-1], case.ids[:, 1:])["nll"])

    def test_bf16_stays_close(self, case: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(case.model, "compute_dtype", torch.bfloat16)
        with torch.no_grad():
            loss = case.model(case.ids[:, :-1], case.ids[:, 1:])["nll"].item()
        assert loss == pytest.approx(case.loss, abs=0.02) and loss != case.loss

    def test_the_artifact_holds_what_scores_need(self, case: Tried, tmp_path: Path) -> None:
        """Stored as fp32 and read back into a fresh model, every model scores as it did in memory."""
        run, kept = case.run, case.run.model.exported()
        roles, weights = case.model.stored_roles(), dict(case.model.named_parameters())
        exact = replace(run.quant, formats={"fp32": FloatConfig(dtype="fp32")}, roles={}, names={}, default="fp32")
        stored = exact.quantize({name: weights[name] for name in roles}, roles)
        path = tmp_path / "artifact.golf"
        write_artifact(path, model=kept, stored=stored, weights="", quant=exact, codec=QUICK_CODEC, tokenizer="")
        with torch.no_grad():
            assert torch.equal(read_artifact(path).model.log_probs(case.ids), case.log_probs)

    def test_meta_model_has_the_shapes_of_the_real_one(self, case: Tried) -> None:
        shapes = [{n: p.shape for n, p in model.named_parameters()} for model in (case.shell, case.model)]
        assert shapes[0] == shapes[1]
