#!/usr/bin/env python3
"""The scorer's door: a finished run's artifact through other evaluators, without training or quantising again.

    python golf/evaluate.py run=outputs/single/RUN eval=sliding
    python golf/evaluate.py -m run=outputs/single/RUN eval=plain,sliding,ttt_sgd eval.split=tune
    python golf/evaluate.py -m run=outputs/single/RUN +sweep=pr401_ttt_grid

run: a folder that golf/train.py made, or several with commas. Only eval may change. Settings are chosen on
eval.split=tune (training documents held out for it); every pass over the validation text, in training too, is entered
in validation_passes.jsonl beside the runs. Each cell is a run folder of its own beside the source's.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # it held golf/ itself

from golf.requantise import rescore
from golf.revisit import Door

DOOR = Door(
    name="golf/evaluate.py",
    usage=__doc__ or "",
    changeable=("eval",),
    prefix="rescored",
    act=rescore,
    columns={
        "evaluator": lambda found: found["eval_main"],
        "split": lambda found: found["data"]["split"],
        "BPB": lambda found: f"{found['val_bpb']:.4f}",
        "plain": lambda found: f"{found['post_quant_bpb']:.4f}",
        "seconds": lambda found: f"{found['evals'][found['eval_main']]['seconds']:.1f}",
        "legal": lambda found: "yes" if found["evals"][found["eval_main"]]["legal"] else "NO",
    },
)


def main(arguments: list[str]) -> int:
    """Exit code 2 and one line for bad input."""
    return DOOR.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
