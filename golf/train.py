#!/usr/bin/env python3
"""The Hydra door: compose, type, check, name the run's folder, and become its worker (or torchrun). Hydra ends here."""

import contextlib
import gc
import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    sys.path[0] = ROOT  # it held golf/ itself, whose file names would shadow others
    gc.disable()  # to the end of composing: a quarter of it would go into looking for garbage among objects that stay
os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to main(), which prints one line

import hydra
from hydra.types import RunMode
from omegaconf import DictConfig

from golf import checks, plan, result, rundir
from golf.code_record import same_code
from golf.command_line import Line, check_arguments, check_lone
from golf.compose import VERSION_BASE, compose_whole, composer_of, composing, run_of_whole, set_up_hydra
from golf.conf_files import CONF
from golf.config import Run
from golf.door import in_one_line, ranks_asked
from golf.errors import UserError
from golf.launcher import jobs
from golf.launcher.slots import whole_machine

set_up_hydra()


@hydra.main(version_base=VERSION_BASE, config_path=str(CONF), config_name="config")
def hydra_main(config: DictConfig) -> None:
    """Hydra's task, which golf's own launcher never calls."""
    raise AssertionError("runs are started by golf.launcher")


def run_of_line(line: Line) -> Run | None:
    """Return the run of a command line; None where there is no run to start: a sweep has run, or --help has printed.

    Hydra's own main composes twice, so it gets only what needs it: sweeps, and lines with an option such as --cfg. It
    also says what is wrong with a line that does not compose, which may be a sweep of several values.
    """
    config = None
    if not line.options:
        with contextlib.suppress(UserError):
            config = compose_whole(line.overrides)
    with composing(line.overrides):
        if config is not None and config.hydra.mode != RunMode.MULTIRUN:
            check_lone(line.overrides)
            return run_of_whole(config, line.overrides)
        gc.enable()
        sys.argv[1:] = [*line.options, *composer_of(line.overrides).without_nulls(line.overrides)]
        hydra_main()
    return None


def start(run: Run) -> int:
    """Plan, show a finished result, or become the worker."""
    checks.check(run)
    if not run.plan:
        run.launch.check(run, lone=True)
    for key in ("dry_run", "status"):
        if getattr(run.launch, key):
            raise UserError(
                f"launch.{key}=true: lists the cells of a sweep; add -m (a sweep of one run) or leave it out"
            )
    data_dir, outputs = Path(run.data_dir).resolve(), Path(run.outputs).resolve()
    if run.plan:
        rundir.require_writable(outputs, "outputs")
        plan.show(run, run.data.find(data_dir))
        return 0
    rundir.require_writable(outputs, "outputs")
    gc.enable()  # what follows may take long
    prepared = run.data.prepare(data_dir)
    checks.check_data(run, prepared)
    folder, finished = jobs.open_run(run, prepared, sys.argv)
    if finished is not None:
        result.show(finished)
        print(f"\nfinished before: {folder.path} (rerun=true trains it again)")
        if not same_code(finished["environment"], rundir.environment()):
            print("note: made by other code (git commit or diff) than what stands here")
        return 0
    sys.stdout.flush()
    command, environment = jobs.worker_command(run, folder, whole_machine())
    if run.launch.nproc > 1:
        return jobs.supervise(command, environment, folder)
    os.execve(command[0], command, environment)


def as_many_ranks(words: list[str]) -> list[str]:
    """Return a command line that asks for the ranks that torchrun was to start, where it has started this door."""
    ranks = ranks_asked()
    given = ranks is None or any(word.lstrip("+").startswith("launch.nproc=") for word in words)
    return words if given else [*words, f"launch.nproc={ranks}"]


@in_one_line
def main() -> int:
    """Exit code 2 and one line for bad input; the worker's own code otherwise."""
    try:
        line = check_arguments(as_many_ranks(sys.argv[1:]))
        sys.argv[1:] = [*line.options, *line.overrides]
        run = run_of_line(line)
        return 0 if run is None else start(run)
    except KeyboardInterrupt:
        print("golf: stopped by SIGINT before training began", file=sys.stderr)
        return 130


if __name__ == "__main__":
    gc.freeze()  # what was imported stays, and is not looked at again
    sys.exit(main())
