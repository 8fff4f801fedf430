"""Hydra's sweeper: rows x seeds from a sweep file, times what the command line sweeps; or a search. The work is done by
golf.launcher and golf.search."""

from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class GolfSweeper(Sweeper):
    """conf/hydra/sweeper/golf.yaml. What Hydra passes here is resolved already; plan_of reads rows as they stand."""

    def __init__(self, purpose: Any, control: Any, seeds: Any, rows: Any, search: Any):
        pass

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from golf.command_line import check_files

        check_files(config)
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        from golf.errors import UserError
        from golf.launcher.grid import Axis, expand, quoted, sweep_label

        plan = plan_of(self.config)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        axes = [_axis(override) for override in parser.parse_overrides(arguments)]
        if swept := [axis for axis in axes if axis.key == "sweep" and axis.swept]:
            raise UserError(f"{' '.join(swept[0].options)}: one command runs one sweep file; start them one by one")
        if not any(axis.key == "sweep_label" for axis in axes):
            label = sweep_label(self.config.hydra.runtime.choices.get("sweep"), axes)
            axes.append(Axis("sweep_label", (f"sweep_label={quoted(label)}",)))
        if self.config.hydra.sweeper.search is not None:
            return self._search(plan, axes)
        return self._run(expand(plan, axes), plan)

    def _run(self, cells: list[list[str]], plan: Any) -> Any:
        from golf.errors import RunError

        returns = self.launcher.run(cells, plan)
        if bad := sum(job.status != JobStatus.COMPLETED for job in returns):
            raise RunError(f"{bad} of {len(cells)} runs have no result; the same command does what is missing")
        return returns

    def _search(self, plan: Any, axes: list[Any]) -> Any:
        """Run the trials, then the best of them against the control on seeds of its own."""
        from golf.errors import RunError
        from golf.launcher.grid import value_of
        from golf.search import confirm, drive
        from golf.search.space import search_of
        from hydra_plugins.golf_launcher import not_bad_input

        search = search_of(OmegaConf.to_container(self.config.hydra.sweeper.search, resolve=True))
        (label,) = [value_of(axis.options[0]) for axis in axes if axis.key == "sweep_label"]
        base = confirm.base_of(search, plan, axes)
        with not_bad_input():
            found = drive.launch(search, plan, base, label, lambda line: self.launcher.cells([line])[0])
        if found is None:
            return []
        returns = []
        if found.untuned:
            print("the best trial is the untuned configuration itself: there is nothing to confirm")
        else:
            registered, cells = confirm.confirmation(found, plan, axes, label)
            returns = self._run(cells, registered)
            print(f"whether it is better: python golf/report.py {found.folder}")
        if found.failed:
            raise RunError(f"{found.failed} of {search.trials} trials failed; the same command tries them again")
        return returns


def plan_of(config: DictConfig) -> Any:
    """The Plan of a master configuration. UserError where its `hydra.sweeper` is none."""
    from golf.errors import UserError
    from golf.launcher.grid import Plan
    from golf.suggestions import means_null

    fields: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=False)  # rows are resolved in their cells
    for key, kind in (("rows", dict), ("seeds", list)):
        if not isinstance(fields[key], kind):
            raise UserError(f"hydra.sweeper.{key}={fields[key]!r}: must be a {kind.__name__}")
    if means_null(fields["purpose"]):
        raise UserError(f"hydra.sweeper.purpose={fields['purpose']}: is a text; write null for none")
    rows = {name: _row(name, line) for name, line in fields["rows"].items()}
    return Plan(fields["purpose"], _control(fields["control"], rows), tuple(fields["seeds"]), rows)


def _control(value: Any, rows: dict[str, list[str]]) -> str | None:
    """Return the name of the row that is the control.

    A file may give it without quotes, so that it was read as a number (1e3) or as a truth value (on).
    """
    from golf.conf_files import parse
    from golf.errors import UserError

    if value is None or isinstance(value, str):
        return value
    meant = [name for name in rows if parse(name) == value and type(parse(name)) is type(value)]
    if len(meant) != 1:
        raise UserError(f"hydra.sweeper.control={value}: is no text; put the name of a row in quotes")
    return meant[0]


def _row(name: Any, line: Any) -> list[str]:
    """A row's overrides: a text of them, or a list where one holds blanks; null and [] are a row without any."""
    from golf.errors import UserError

    if not isinstance(name, str):
        raise UserError(f"hydra.sweeper.rows: {name} is no text; name such a row as hydra.sweeper.rows.NAME=LINE")
    at = f"hydra.sweeper.rows.{name}={line!r}"
    overrides = [] if line is None else line.split() if isinstance(line, str) else line
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise UserError(f"{at}: must be overrides, as key=value key=value, or a list of them")
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        raise UserError(f"{at}: cannot be read as key=value key=value; write a list where values hold blanks") from None
    if several := [override.input_line for override in parsed if override.is_sweep_override()]:
        raise UserError(f"{at}: {several[0]} has several values, and a row is one cell; write a row for each")
    return overrides


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
