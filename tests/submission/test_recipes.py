"""Lines of the public threads come to the experiments that stand for them."""

import pytest

from golf import submit
from golf.compose import compose
from golf.config import identity
from golf.errors import UserError
from golf.submission.recipes import from_environment
from tests.helpers.tiers import slow

PR401 = (
    "SEED=1337 NUM_LAYERS=11 MLP_MULT=3.0 XSA_LAST_N=4 ROPE_DIMS=16 LN_SCALE=1 SWA_ENABLED=1 SWA_EVERY=50 "
    "LATE_QAT_THRESHOLD=0.15 WARMDOWN_ITERS=3500 VE_ENABLED=1 VE_DIM=128 VE_LAYERS=9,10 EMA_ENABLED=1 EMA_DECAY=0.997 "
    "BIGRAM_VOCAB_SIZE=2048 BIGRAM_DIM=128 ADAM_WD=0.04 MUON_WD=0.04 MATRIX_LR=0.025 SCALAR_LR=0.025 "
    "TIED_EMBED_LR=0.035 torchrun --standalone --nproc_per_node=8 pr374_throne/train_gpt.py"
)
PR675 = (
    "TRAIN_ON_VAL=1 NUM_LAYERS=10 MLP_MULT=2 LAWA_INTERVAL=50 EVAL_STRIDE=0 TTT_STEPS=0 SEED=1337 "
    "torchrun --nproc_per_node=1 train_gpt.py"
)
PR584 = "SEED=1337 torchrun --standalone --nproc_per_node=8 ablations/baseline.py"


@pytest.mark.parametrize(
    ("line", "base", "track", "experiment"),
    [
        (PR401, None, "h100x8", "pr401"),
        slow(PR675, "pr675_legal", "h100x1", "pr675"),
        slow(PR584, None, "h100x8", "pr584_baseline"),
        slow("SW_WINDOW_SIZE=256 SW_NUM_LAYERS=5 python ablation2_sliding_window.py", None, "h100x8", "pr584_window"),
        slow("NUM_REGISTERS=4 torchrun ablation3_register_tokens.py", None, "h100x8", "pr584_registers"),
    ],
    ids=["PR 401", "PR 675", "PR 584", "window", "registers"],
)
def test_a_published_line_is_its_experiment(line: str, base: str | None, track: str, experiment: str) -> None:
    found = from_environment(line, base)
    assert found.unknown == []
    named = compose([f"track={track}", f"experiment={experiment}"])
    assert identity(compose(found.overrides), "text") == identity(named, "text")


def test_each_value_arrives() -> None:
    line = "NUM_LAYERS=12 XSA_LAST_N=3 EMA_ENABLED=1 EMA_DECAY=0.99 MUON_MOMENTUM=0.98 EVAL_STRIDE=32"
    more = " BIGRAM_VOCAB_SIZE=512 MODEL_DIM=640 NUM_HEADS=10 NUM_KV_HEADS=5 ROPE_DIMS=32"
    run = compose(from_environment(line + more).overrides)
    assert run.model.layers == 12 and run.model.mixer.output["xsa"].layers == "last:3 of 12"
    assert run.average.horizon_steps == pytest.approx(100) and run.optimizer.groups["matrices"].momentum.end == 0.98
    assert run.eval.evaluators["sliding"].stride == 32 and run.model.embed.features["bigram"].buckets == 512
    assert run.model.dim == 640 and run.model.mixer.heads == 10 and run.model.mixer.rope.part == 0.5


def test_what_is_not_known_is_named_and_nothing_is_guessed(capsys: pytest.CaptureFixture) -> None:
    assert submit.main(["from_env=SEED=3 FROBNICATE=1 TTT_STEPS=5 XSA_LAST_N=0"]) == 1
    out, err = capsys.readouterr()
    assert out.strip() == "track=h100x8 experiment=baseline_naive seed=3"
    assert "FROBNICATE=1" in err and "TTT_STEPS=5" in err and "XSA_LAST_N" not in err


@pytest.mark.parametrize(
    ("line", "base", "message"),
    [
        ("SEED=1 SEED=2", None, "SEED is given twice"),
        ("EMA_ENABLED=1 EMA_DECAY=much", None, "EMA_DECAY=much: is no number"),
        ("EMA_ENABLED=1 EMA_DECAY=1", None, "EMA_DECAY=1: is no number"),
        ("SEED='1", None, "is no command line"),
        ("SEED=1", "pr0", "base=pr0: no such experiment"),
    ],
)
def test_nonsense_is_one_line(line: str, base: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_environment(line, base)
