"""A worker whose score depends on its learning rate alone; it logs, saves and stops as the real one does."""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

GOOD = 0.04


def main() -> int:
    folder = Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    run = config["run"]
    lr = run["optimizer"]["groups"]["matrices"]["lr"]
    away, steps, saved = abs(math.log10(lr / GOOD)), run["budget"]["max_steps"], folder / "saved"
    with open(folder.parent / "starts.txt", "a") as file:
        file.write(f"{run['label']}\n")

    def status(state: str, **facts: object) -> None:
        (folder / "status.json").write_text(json.dumps({"state": state, "pid": os.getpid(), **facts}))

    def stop(signum: int, frame: object) -> None:
        status("stopped", code=130, message="stopped by SIGTERM")
        sys.exit(130)

    signal.signal(signal.SIGTERM, stop)
    status("running")
    if lr > 1.0 and (folder.parent / "breaks").exists():
        return 1
    diverges = lr > 1.0 and (folder.parent / "diverges").exists()
    for step in range(int(saved.read_text()) + 1 if saved.exists() else 1, steps + 1):
        time.sleep(0.1)
        score = math.nan if diverges else 2.0 + away + 1 / step
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "train_seconds": step / 10, "val_bpb": score}) + "\n")
        folder.joinpath("saving").write_text(str(step))
        os.replace(folder / "saving", saved)
        if step == 4 and away > 1.0 and (wait := folder.parent / "wait").exists():
            time.sleep(float(wait.read_text()))  # however late the launcher looks
    if diverges:
        return 1
    result = {"schema": 1, "status": "done", "fingerprint": config["fingerprint"], "steps": steps, "fits": True}
    result |= {"val_bpb": 2.0 + away, "quant_gap_bpb": 0.0, "artifact_bytes": 1, "total_bytes": 1, "cap_bytes": 2}
    (folder / "result.json").write_text(json.dumps(result | {"environment": {}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
