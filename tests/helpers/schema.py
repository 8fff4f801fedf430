"""What the result of each run names, and what the folder of a run holds."""

# fmt: off
SCHEMA_KEYS = [
    "schema", "status", "label", "fingerprint", "config_hash", "seed", "sweep", "row", "parent", "data", "track",
    "val_bpb", "val_loss", "evals", "raw_bpb", "pre_quant_bpb", "post_quant_bpb", "quant_gap_bpb", "artifact_bytes",
    "code_bytes", "total_bytes", "cap_bytes", "fits", "bits_per_param", "params", "params_stored",
    "params_repeated", "blocks_stored", "effective_depth", "phases",
    "steps", "train_tokens", "train_seconds", "quant_seconds", "eval_seconds", "wall_seconds", "step_ms",
    "step_ms_mean", "tokens_per_second", "peak_memory_bytes", "deterministic", "world_size", "device", "precision",
    "legal", "legality", "environment",
]
FILES = [
    "config.json", "config.yaml", "command.txt", "status.json", "metrics.jsonl", "log", "checkpoint",
    "weights.safetensors", "artifact.golf", "result.json", "environment.json", "diff.patch",
]
# fmt: on
