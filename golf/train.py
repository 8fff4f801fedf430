"""The Hydra door: compose, type, check, name the run's folder, and become its worker (or torchrun). Hydra ends here."""

import contextlib
import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    sys.path[0] = ROOT  # it held golf/ itself, whose file names would shadow others
    gc.disable()  # to the end of composing: a quarter of it would go into looking for garbage among objects that stay
os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to main(), which prints one line

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from golf import checks, plan, result, rundir
from golf.compose import VERSION_BASE, compose_whole, composing, run_of, run_of_whole, set_up_hydra
from golf.conf_files import CONF
from golf.config import Run
from golf.errors import UserError, in_one_line
from golf.launcher import jobs
from golf.launcher.slots import whole_machine

set_up_hydra()


@dataclass(frozen=True, slots=True)
class Composed:
    """What Hydra's task hands over: typing waits until Hydra has let go, since it adds a line to every error within."""

    config: DictConfig
    choices: dict[str, str | None]


handed_over: list[Composed] = []


@hydra.main(version_base=VERSION_BASE, config_path=str(CONF), config_name="config")
def hydra_main(config: DictConfig) -> None:
    """Hydra's task: keep the composed configuration."""
    handed_over.append(Composed(config, dict(HydraConfig.get().runtime.choices)))


def run_of_line(arguments: list[str]) -> Run | None:
    """Return the run of a command line; None where there is no run to start: a sweep has run, or --help has printed.

    Hydra's own main composes twice, so it gets only what needs it: sweeps, and lines with an option such as --cfg. It
    also says what is wrong with a line that does not compose, which may be a sweep of several values.
    """
    config = None
    if not any(argument.startswith("-") for argument in arguments):
        with contextlib.suppress(UserError):
            config = compose_whole(arguments)
    with composing(arguments):
        if config is not None and config.hydra.mode != RunMode.MULTIRUN:
            return run_of_whole(config)
        gc.enable()
        hydra_main()
        if not handed_over:
            return None
        done = handed_over.pop()
        return run_of(done.config, done.choices)


def check_arguments(arguments: list[str]) -> None:
    """Refuse what Hydra would take silently: a key given twice (the last would win), a launcher that runs the task."""
    parsed, rest = get_args_parser().parse_known_args(arguments)
    if split := [argument for argument in rest if not argument.startswith("-")]:
        raise UserError(f"{split[0]}: stands behind an option; options such as -m go before or after all overrides")
    seen: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(parsed.overrides):
        key = override.get_key_element().lstrip("+~")
        if key in seen:
            raise UserError(f"{key} is given twice ({seen[key]} and {override.input_line}); keep one")
        if key in ("hydra/launcher", "hydra/sweeper") and override.value() != "golf":
            raise UserError(f"{override.input_line}: cannot run these cells; leave it out, golf has its own")
        seen[key] = str(override.input_line)


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
    for place, key in ((data_dir, "data_dir"), (outputs, "outputs")):
        rundir.require_writable(place, key)
    gc.enable()  # what follows may take long
    prepared = run.data.prepare(data_dir)
    checks.check_data(run, prepared)
    folder, finished = jobs.open_run(run, prepared, sys.argv)
    if finished is not None:
        result.show(finished)
        print(f"\nfinished before: {folder.path} (rerun=true trains it again)")
        if not rundir.same_code(finished["environment"], rundir.environment()):
            print("note: made by other code (git commit or diff) than what stands here")
        return 0
    sys.stdout.flush()
    command, environment = jobs.worker_command(run, folder, whole_machine())
    if run.launch.nproc > 1:
        return jobs.supervise(command, environment, folder)
    os.execve(command[0], command, environment)


@in_one_line
def main() -> int:
    """Exit code 2 and one line for bad input; the worker's own code otherwise."""
    try:
        with composing(sys.argv[1:]):
            check_arguments(sys.argv[1:])
        run = run_of_line(sys.argv[1:])
        if run is None:
            return 0
        return start(run)
    except KeyboardInterrupt:
        print("golf: stopped by SIGINT before training began", file=sys.stderr)
        return 130


if __name__ == "__main__":
    gc.freeze()  # what was imported stays, and is not looked at again
    sys.exit(main())
