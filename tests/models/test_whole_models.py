"""Whole models of conf/model with quantisers: stored, read back and scored, or refused in one line."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from golf.artifact.file import read_artifact, write_artifact
from golf.conf_files import CONF
from golf.config import Run
from golf.dist import ALONE
from golf.errors import UserError
from golf.quant.calibration import RandomTextConfig, Source, measure
from tests.helpers.models import ids_for, moved
from tests.helpers.tiers import slow, tries_everything

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
QUANTS = sorted(path.stem for path in (CONF / "quant").glob("*.yaml"))
REFUSED = {
    ("int5_mlp_int6", "int6_lqer", "int7_embed"): "fits no parameter",  # they name matrices that some do not store
    ("ternary",): "can't be cut into groups of 32",  # widths of toys
}


def own_quantiser(name: str) -> str:
    """Return another quantiser for each next model, so that all have their turn."""
    return QUANTS[MODELS.index(name) % len(QUANTS)]


def formats_of(quant: str) -> frozenset[str]:
    """Return the classes of a quantiser but those of its steps, which store nothing."""
    found = re.findall(r"_target_: ([\w.]+)", (CONF / f"quant/{quant}.yaml").read_text())
    return frozenset(name for name in found if ".steps." not in name)


# The first model whose quantiser has these formats.
FIRST = {formats_of(own_quantiser(name)): name for name in reversed(MODELS)}.values()


@pytest.mark.parametrize("name", [name if name in FIRST else slow(name) for name in MODELS])
def test_every_quantiser_stores_it_or_says_why_not(
    name: str, toy: Callable[..., Run], tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    """Each model with one quantiser, in the tier `all` with every one."""
    shorter = ["model.linear.steps=2"] * (name == "nca")
    run = toy(f"model={name}", "data.vocab_size=64", *shorter)
    model, ids = moved(run), ids_for(run)
    roles, weights = model.stored_roles(), dict(model.named_parameters())
    source = Source(model, 24, 2, 0, ALONE, open_training=lambda: pytest.fail("random text needs no training text"))
    hessians = measure(RandomTextConfig(tokens=96), source)
    with torch.no_grad():
        before = model.log_probs(ids)
    for quant in QUANTS if tries_everything(pytestconfig) else [own_quantiser(name)]:
        chosen = toy(f"quant={quant}").quant
        try:
            chosen.assign(roles)
            stored = chosen.quantize({key: weights[key] for key in roles}, roles, hessians)
        except UserError as error:
            (reason,) = (text for quants, text in REFUSED.items() if quant in quants)
            assert reason in str(error)
            continue
        path = tmp_path / f"{quant}.golf"
        kept = run.model.exported()
        write_artifact(path, model=kept, stored=stored, weights="", quant=chosen, codec=chosen.codec, tokenizer="")
        with torch.no_grad():
            after = read_artifact(path).model.log_probs(ids)
        assert torch.isfinite(after).all(), quant
        assert (after - before).abs().mean() < (0.5 if quant in ("ternary", "int6_pruned") else 0.15), quant
