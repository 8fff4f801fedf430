"""The Hydra door: compose, type, check, name the run's folder, and become its worker (or torchrun). Hydra ends here."""

import os
import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
sys.path[0] = ROOT
os.environ["GOLF_ROOT"] = ROOT
os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to main(), which prints one line

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf import checks, plan, result, rundir
from golf.config import Run, register_resolvers, typed
from golf.errors import RunError, UserError
from golf.launcher import jobs

register_resolvers()
composed: list[Run] = []


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def compose(cfg: DictConfig) -> None:
    """Hydra's task: nothing but typing. What runs is decided in main(), after Hydra has let go of the process."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError("-m (multirun): this version runs one configuration at a time; start each by itself")
    node = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(node, dict)
    if node["label"] is None:
        choices = HydraConfig.get().runtime.choices
        node["label"] = choices.get("experiment") or f"{choices['model']}-{choices['quant']}"
    composed.append(typed(node, "", Run))


def refuse_repeats(arguments: list[str]) -> None:
    """A key given twice is a slip: Hydra would silently take the last."""
    seen: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides([a for a in arguments if not a.startswith("-")]):
        key = override.get_key_element().lstrip("+~")
        if key in seen:
            raise UserError(f"{key} is given twice ({seen[key]} and {override.input_line}); keep one")
        seen[key] = str(override.input_line)


def start(run: Run) -> int:
    """Plan, show a finished result, or become the worker."""
    checks.check(run)
    data_dir, outputs = Path(run.data_dir).resolve(), Path(run.outputs).resolve()
    if run.plan:
        plan.show(run, run.data.find(data_dir))
        return 0
    for folder, key in ((data_dir, "data_dir"), (outputs, "outputs")):
        rundir.require_writable(folder, key)
    prepared = run.data.prepare(data_dir)
    checks.check_data(run, prepared)
    folder, finished = jobs.open_run(run, prepared, outputs, sys.argv)
    if finished is not None:
        result.show(finished)
        print(f"\nfinished before: {folder.path} (rerun=true trains it again)")
        if not rundir.same_code(finished):
            print("note: made by other code (git commit or diff) than what stands here")
        return 0
    sys.stdout.flush()
    command, environment = jobs.worker_command(run, folder)
    os.execve(command[0], command, environment)


def main() -> int:
    """Exit code 2 and one line for bad input; the worker's own code otherwise."""
    try:
        refuse_repeats(sys.argv[1:])
        compose()
        return start(composed[0]) if composed else 0
    except (HydraException, OmegaConfBaseException, UserError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"golf: {' '.join(lines[:3])}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"golf: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
