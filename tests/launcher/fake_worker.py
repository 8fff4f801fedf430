"""A worker that does as its label says, for the failure matrix: the same folder, files and exit codes, no training."""

import json
import os
import signal
import sys
import time
from pathlib import Path


def write_result(folder: Path, config: dict) -> None:
    result = {
        "schema": 1,
        "status": "done",
        "fingerprint": config["fingerprint"],
        "val_bpb": 2.0 + config["run"]["seed"] / 1000,
        "quant_gap_bpb": 0.001,
        "total_bytes": 1000,
        "artifact_bytes": 1000,
        "cap_bytes": 2000,
        "fits": True,
        "steps": 6,
        "environment": {"devices": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ["OMP_NUM_THREADS"]},
    }
    (folder / "result.json").write_text(json.dumps(result))


def main() -> int:
    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    rank = os.environ.get("RANK", "0")
    with open(folder.parent / "starts.txt", "a") as file:
        file.write(f"{config['run']['label']} {rank} {time.time()}\n")
    behaviour = "ok" if (folder.parent / "mended").exists() else config["run"]["label"]
    print(f"{behaviour} was here", flush=True)
    if behaviour == "raise":
        raise ValueError("a bug in an idea")
    if behaviour == "exit3":
        sys.exit(3)
    if behaviour in ("sigkill", "oom") or (behaviour == "rank_killed" and rank == "1"):
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "rank_exits_7" and rank == "1":
        sys.exit(7)
    if behaviour == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if behaviour in ("slow", "slow2", "rank_killed", "rank_exits_7"):
        time.sleep(1000)
    if behaviour == "disk_full":
        status = {"state": "failed", "pid": os.getpid(), "code": 1, "message": "disk full at step 3; free some space"}
        (folder / "status.json").write_text(json.dumps(status))
        return 1
    if behaviour == "bad_input":
        return 2
    if behaviour == "garbage":
        (folder / "result.json").write_text('{"status": "done", "val_b')
        return 0
    if behaviour == "no_result":
        (folder / "result.json").write_text('{"status": "done", "val_bpb": NaN, "fingerprint": "?"}')
        return 0
    if behaviour == "flaky" and (folder.parent / "starts.txt").read_text().count("flaky") == 1:
        sys.exit(1)
    time.sleep(0.3 if behaviour == "takes_a_while" else 0)
    if rank == "0":
        write_result(folder, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
