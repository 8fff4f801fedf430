"""Hydra's sweeper: rows x seeds from a sweep file, times what the command line sweeps. The work is golf.launcher's."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GolfSweeper(Sweeper):
    """purpose, control, seeds, rows: conf/hydra/sweeper/golf.yaml."""

    def __init__(self, purpose: Any, control: Any, seeds: Any, rows: Any):
        self.fields = {"purpose": purpose, "control": control, "seeds": seeds, "rows": rows}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from golf.errors import RunError
        from golf.launcher.grid import expand, sweep_label

        plan = plan_of(self.config.hydra.sweeper)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        axes = [_axis(override) for override in parser.parse_overrides(arguments)]
        cells = expand(plan, axes)
        if not any(axis.key == "sweep_label" for axis in axes):
            name = self.config.hydra.runtime.choices.get("sweep")
            cells = [[*cell, f"sweep_label={sweep_label(name, axes)}"] for cell in cells]
        returns = self.launcher.launch(cells, 0)
        failed = sum(job.status != JobStatus.COMPLETED for job in returns)
        if failed:
            raise RunError(f"{failed} of {len(cells)} runs failed; the same command tries only those again")
        return returns


def plan_of(node: DictConfig) -> Any:
    """The Plan in a sweep file's `hydra.sweeper`. UserError where it is no such thing."""
    from golf.errors import UserError
    from golf.launcher.grid import Plan

    fields: Any = OmegaConf.to_container(node, resolve=True)
    for key, kind in (("rows", dict), ("seeds", list)):
        if not isinstance(fields[key], kind):
            raise UserError(f"hydra.sweeper.{key}={fields[key]!r}: must be a {kind.__name__}")
    rows = {str(name): line.split() if isinstance(line, str) else line for name, line in fields["rows"].items()}
    for name, line in rows.items():
        if not isinstance(line, list) or not all(isinstance(override, str) for override in line):
            raise UserError(f"hydra.sweeper.rows.{name}={line!r}: must be overrides, as key=value key=value")
    return Plan(fields["purpose"], fields["control"], tuple(fields["seeds"]), rows)


def _axis(override: Override) -> Any:
    from golf.errors import UserError
    from golf.launcher.grid import Axis

    key = override.get_key_element()
    if not override.is_sweep_override():
        return Axis(key.lstrip("+~"), (str(override.input_line),))
    if not override.is_discrete_sweep():
        raise UserError(f"{override.input_line}: cannot be listed; use values with commas, or range(...)")
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise UserError(f"{override.input_line}: matches nothing")
    return Axis(key.lstrip("+~"), tuple(values))
