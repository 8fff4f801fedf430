"""A worker that does as its label says, for the failure matrix: the same folder, files and exit codes, no training."""

import json
import os
import signal
import sys
import time
from pathlib import Path

BEGUN = time.time()
ODD = {
    "garbage": '{"status": "done", "val_b',
    "no_result": '{"status": "done", "val_bpb": NaN, "fingerprint": "?"}',
    "half_a_result": '{"status": "done", "val_bpb": 1.5, "fingerprint": "x"}',
}


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
        "environment": {
            "devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "threads": os.environ["OMP_NUM_THREADS"],
            "from": BEGUN,
            "to": time.time(),
        },
    }
    (folder / "result.json").write_text(json.dumps(result))


def stop(folder: Path) -> None:
    """Save and end, as a worker does."""
    status = {"state": "stopped", "pid": os.getpid(), "code": 130, "message": "stopped by SIGTERM at step 3; saved"}
    (folder / "status.json").write_text(json.dumps(status))
    sys.exit(130)


def main() -> int:
    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    rank = os.environ.get("RANK", "0")
    if config["run"]["label"] == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
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
        time.sleep(1000)
    if behaviour in ("slow", "slow2", "rank_killed", "rank_exits_7"):
        time.sleep(1000)
    if behaviour == "patient" and (folder.parent / "starts.txt").read_text().count("patient") == 1:
        signal.signal(signal.SIGTERM, lambda *_: stop(folder))
        (folder / "ready").touch()
        time.sleep(1000)
    if behaviour == "disk_full":
        status = {"state": "failed", "pid": os.getpid(), "code": 1, "message": "disk full at step 3; free some space"}
        (folder / "status.json").write_text(json.dumps(status))
        return 1
    if behaviour == "bad_input":
        return 2
    if behaviour in ODD:
        (folder / "result.json").write_text(ODD[behaviour])
        return 0
    if behaviour == "foreign_result":
        write_result(folder, config | {"fingerprint": "of another run"})
        return 0
    if behaviour == "odd_metrics":
        (folder / "metrics.jsonl").write_text('7\n[1]\n{"step": 3}\nnull\n')
        (folder / "status.json").write_text('{"state": "running"}')
        time.sleep(1.5)
        return 1
    if behaviour == "flaky" and (folder.parent / "starts.txt").read_text().count("flaky") == 1:
        sys.exit(1)
    time.sleep(0.3 if behaviour == "takes_a_while" else 0)
    if rank == "0":
        write_result(folder, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
