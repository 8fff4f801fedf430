"""Makespan of equal cells on two slots, over the ideal: golf's launcher beside Hydra's basic and joblib launchers.

    python benchmarks/launchers.py [--cells 8] [--seconds 10] [--hydra-python PYTHON]

A cell is a tiny run on the wall clock (training --seconds, then quantising, writing and scoring), one thread each.
Bare: worker processes started by hand, two at a time; the ideal is cells / 2 such pairs. The other launchers start the
same lone command for each cell; joblib's needs a Python with hydra-joblib-launcher, and is left out where it has none.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from golf.compose import compose
from golf.launcher import jobs
from golf.launcher.slots import whole_machine

TRAIN = [sys.executable, str(ROOT / "golf" / "train.py")]
APP = """
import hydra, subprocess
@hydra.main(version_base="1.3", config_path=None, config_name=None)
def main(cfg):
    return subprocess.run({command!r} + [f"seed={{cfg.seed}}"], check=True, stdout=subprocess.DEVNULL).returncode
main()
"""


def timed(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def bare_pair(cell: list[str], outputs: Path) -> float:
    """Seconds of two workers started at once, without a launcher."""
    ready = []
    for seed in (101, 102):
        run = compose([*cell, f"outputs={outputs}", f"seed={seed}"])
        prepared = run.data.prepare(Path(run.data_dir))
        folder, _ = jobs.open_run(run, prepared, [])
        ready.append(jobs.worker_command(run, folder, whole_machine()))
    begun = time.perf_counter()
    workers = [subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) for command, env in ready]
    assert [worker.wait() for worker in workers] == [0, 0]
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--hydra-python", default=sys.executable)
    chosen = parser.parse_args()
    budget = ["budget.clock=seconds", "budget.max_steps=null", f"budget.max_seconds={chosen.seconds}"]
    cell = ["track=tiny", *budget, f"data_dir={Path(chosen.data_dir).resolve()}", "log=none", "launch.threads=1"]
    seeds = ",".join(str(seed) for seed in range(1, chosen.cells + 1))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bare = statistics.mean(bare_pair(cell, place / f"bare{turn}") for turn in range(2))
        ideal = bare * chosen.cells / 2
        print(
            f"bare pair of workers: {bare:.1f} s; ideal for {chosen.cells} cells on 2 slots: {ideal:.1f} s", flush=True
        )
        golf = timed([*TRAIN, "-m", *cell, f"outputs={place / 'golf'}", f"seed={seeds}", "launch.slots=2"])
        print(f"golf    {golf:6.1f} s  {golf / ideal:.2f} of the ideal", flush=True)
        app = place / "app.py"
        for name, extra in (("joblib", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]), ("basic", [])):
            app.write_text(APP.format(command=[*TRAIN, *cell, f"outputs={place / name}"]))
            command = [
                chosen.hydra_python,
                str(app),
                "-m",
                f"+seed={seeds}",
                f"hydra.sweep.dir={place / 'hydra'}",
                *extra,
            ]
            if (
                name == "joblib"
                and subprocess.run(
                    [chosen.hydra_python, "-c", "import hydra_plugins.hydra_joblib_launcher"], capture_output=True
                ).returncode
            ):
                print("joblib  not installed")
                continue
            took = timed(command)
            print(f"{name:7} {took:6.1f} s  {took / ideal:.2f} of the ideal", flush=True)


if __name__ == "__main__":
    main()
