"""What a tracker is told of a made-up run."""

from golf.sinks import WandbConfig

RECORD = {"step": 3, "loss": 2.5, "step_ms": 12.0, "seconds_left": 61.0, "val_bpb": 1.5}
FACTS = {
    "name": "row+a-s1",
    "label": "row+a",
    "sweep": "table",
    "tags": ["tiny", "table", "row+a", "tiny", None, "x" * 100],
    "config": {"seed": 1, "model": {"dim": 32}},
}
RESULT = {
    "val_bpb": 1.0,
    "step_ms": 11.0,
    "artifact_bytes": 9,
    "cap_bytes": 10,
    "fingerprint": "f00",
    "evals": {"sliding": {"val_bpb": 1.0, "notes": None}},
    "sweep": None,
    "legal": None,
    "environment": {"python": "3.11"},
}
SUMMARY = {key: value for key, value in RESULT.items() if key != "environment"}
WANDB = WandbConfig(every_steps=1, project="golf-test", entity=None, mode="auto")
