"""Sweeps of many cells against a SLURM that only pretends: does what a cell costs grow with their number?

    python benchmarks/scale.py [--rows 100] [--seeds 10 100]

For each number of seeds, in a process of its own: the cells are composed through Hydra, listed (dry run), submitted to
a scheduler that finishes half of them and cancels the rest, submitted again, started once more when all are done, shown
(status), and reported. Nothing is trained: the pretended jobs write results of equal size. Printed are the processor
seconds of the launcher for a cell, beside those of the smallest sweep, and the largest memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode

from golf import report
from golf.compose import VERSION_BASE, set_up_hydra
from golf.conf_files import CONF
from golf.launcher import sweep
from golf.launcher.cells import Cell, collect
from golf.launcher.grid import Plan
from hydra_plugins.golf_launcher import GolfLauncher
from tests.helpers.runs import toy_overrides
from tests.reports import helpers
from tests.tokens.helpers import toy_data

# Every second run of an array ends as the file `ends` says; the others are done.
SBATCH = """
import json, pathlib, re, sys
place = pathlib.Path(sys.argv[1])
batch = pathlib.Path(sys.argv[-1])
name = batch.parent.name
array = 1 + len(list(place.glob("array-*")))
(place / f"array-{array}").touch()
template = json.loads((place / "template.json").read_text())
metrics, rest = (place / "metrics.jsonl").read_text(), (place / "ends").read_text()
lines = []
for index, folder in enumerate((batch.parent / "folders.txt").read_text().splitlines()):
    state = rest if index % 2 else "COMPLETED"
    lines.append(f"{name}|{index}|{array}|{state}\\n")
    if state == "COMPLETED":
        config = json.loads(pathlib.Path(folder, "config.json").read_text())
        run = config["run"]
        own = {"seed": run["seed"], "label": run["label"]}
        own |= {key: config[key] for key in ("fingerprint", "config_hash")}
        own["val_bpb"] = template["val_bpb"] + run["seed"] % 7 / 1000 + run["cap_bytes"] % 100 / 10000
        pathlib.Path(folder, "metrics.jsonl").write_text(metrics)
        pathlib.Path(folder, "result.json").write_text(json.dumps(template | own))
with open(place / "queue.txt", "a") as file:
    file.writelines(lines)
print(array)
"""


def pretend(place: Path) -> None:
    """SLURM's commands, first on PATH."""
    (place / "bin").mkdir(parents=True)
    (place / "sbatch.py").write_text(SBATCH)
    scripts = {
        "sbatch": f'exec {sys.executable} {place / "sbatch.py"} {place} "$@"',
        "squeue": f"cat {place / 'queue.txt'}",
        "scancel": "exit 0",
        "scontrol": "exit 1",
    }
    for name, body in scripts.items():
        (place / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (place / "bin" / name).chmod(0o755)
    (place / "queue.txt").touch()
    (place / "template.json").write_text(json.dumps(helpers.result(0, 1.5)))
    steps = ({"step": step, "loss": 6 - step / 100, "train_seconds": step / 10} for step in range(1, 201, 10))
    (place / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    os.environ["PATH"] = f"{place / 'bin'}:{os.environ['PATH']}"


def compose(overrides: list[list[str]]) -> list[Cell]:
    """Through Hydra and golf's launcher, as a sweep from the command line."""
    set_up_hydra()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=VERSION_BASE):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", [], run_mode=RunMode.MULTIRUN)
        launcher = GolfLauncher()
        context = HydraContext(config_loader=loader, callbacks=None)  # type: ignore[arg-type]
        launcher.setup(hydra_context=context, task_function=None, config=master)  # type: ignore[arg-type]
        return collect(overrides, launcher._run_of)


def timed(what: str, cells: int, act: Callable[[], object], found: dict[str, float]) -> object:
    """Processor milliseconds a cell, of this process; what it prints is not shown."""
    began = time.process_time()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        done = act()
    found[what] = 1000 * (time.process_time() - began) / cells
    found[f"{what}: peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"    {what}: {found[what]:.2f} ms a cell", file=sys.stderr, flush=True)
    return done


def one(rows: int, seeds: int, place: Path) -> dict[str, float]:
    pretend(place / "slurm")
    toy_data(place, documents=600)
    launch_by = ["launch=slurm", "compute.device=cpu", "launch.poll_seconds=0.5", "sweep_label=many"]
    common = toy_overrides(place, launch_by)
    names = [f"row{index}" for index in range(rows)]
    overrides = [
        [*common, f"label={name}", f"cap_bytes={500_000 + index}", f"seed={seed}"]
        for seed in range(seeds)
        for index, name in enumerate(names)
    ]
    plan = Plan("does it scale", "row0", tuple(range(seeds)), {name: [] for name in names})
    found: dict[str, float] = {}
    count = len(overrides)
    cells = timed("compose", count, lambda: compose(overrides), found)
    assert isinstance(cells, list)

    def launch(**settings: object) -> list[sweep.Outcome]:
        told = [Cell(replace(c.run, launch=replace(c.run.launch, **settings)), c.overrides) for c in cells]
        return sweep.launch(told, plan)

    def done(**settings: object) -> int:
        return sum(outcome.error is None for outcome in launch(**settings))

    cells[0].run.data.prepare(Path(cells[0].run.data_dir), log=lambda line: None)
    timed("dry run", count, lambda: launch(dry_run=True), found)
    (place / "slurm" / "ends").write_text("CANCELLED")
    assert timed("half of it", count, done, found) == count / 2
    (place / "slurm" / "ends").write_text("COMPLETED")
    assert timed("the rest", count, done, found) == count
    assert timed("all done before", count, done, found) == count
    timed("status", count, lambda: launch(status=True), found)
    folder = sweep.sweep_folder(cells)
    assert timed("report", count, lambda: report.main([str(folder)]), found) == 0
    found["report.html, MB"] = (folder / "report.html").stat().st_size / 1e6
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--one", action="store_true", help="this size, in this process; its numbers as JSON")
    chosen = parser.parse_args()
    if chosen.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(one(chosen.rows, chosen.seeds[0], Path(folder))))
        return
    tables = []
    for seeds in chosen.seeds:
        print(f"{chosen.rows * seeds:,} cells: {chosen.rows} rows x {seeds} seeds", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--one", "--rows", str(chosen.rows), "--seeds", str(seeds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        tables.append(json.loads(done.stdout))
    sizes = [f"{chosen.rows * seeds:,}" for seeds in chosen.seeds]
    print(f"{'cells':24}" + "".join(f"{size:>12}" for size in sizes) + "  last over first")
    for what in tables[0]:
        values = [table[what] for table in tables]
        print(f"{what:24}" + "".join(f"{value:12.2f}" for value in values) + f"{values[-1] / values[0]:17.2f}")


if __name__ == "__main__":
    main()
