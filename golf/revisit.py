"""Doors that take finished runs up again: what may change, a cell for each combination, one table of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from golf import result as results
from golf.arguments import print_help
from golf.checks import check_scored, check_scorers, check_storage
from golf.command_line import SEARCH_PATH, check, parsed
from golf.compose import compose, compose_whole
from golf.conf_files import no_variables
from golf.door import in_one_line
from golf.errors import UserError
from golf.files import paths_of
from golf.launcher.grid import Axis, Plan, expand, key_of, slug, sweep_label, value_of
from golf.requantise import Source, changed, open_source
from golf.rundir import RunDir, marks
from golf.sinks import ConsoleSink
from golf.suggestions import hint
from golf.terminal import Column, show_table, words
from hydra_plugins.golf_sweeper import plan_of

OWN = ("run", "inspect", "sweep", "rerun")
NOT_PASSED = ("label", "sweep", "sweep_label", "hydra", "plan", "rerun", "resume", "outputs", "data_dir", "launch")


@dataclass(frozen=True, slots=True)
class Door:
    """name: the script; changeable: groups that its arguments may set; prefix: of the folder of cells; act: makes a
    cell's folder and result out of (source, run, sinks, command); columns: of the table at the end, by title; artifact:
    whether the run must have an artifact and a result, not just trained weights."""

    name: str
    usage: str
    changeable: tuple[str, ...]
    prefix: str
    act: Callable[..., tuple[RunDir, dict[str, Any]]]
    columns: dict[str, Callable[[dict[str, Any]], str]]
    artifact: bool = True

    @in_one_line
    def main(self, arguments: list[str], other: Callable[[list[str]], bool] = lambda given: False) -> int:
        """Exit code 2 and one line for bad input. other: deals with arguments of another kind, if they are one."""
        flags = [argument for argument in arguments if argument.startswith("-")]
        given = [argument for argument in arguments if argument not in flags]
        if print_help(arguments, self.usage):
            return 0 if arguments else 2
        if unknown := [flag for flag in flags if flag not in ("-m", "--multirun")]:
            raise UserError(f"{unknown[0]}: is no option; -m takes several values, and keys are written without dashes")
        if not given or not other(given):
            self.run_cells(given, bool(flags))
        return 0

    def run_cells(self, given: list[str], several: bool) -> None:
        """Compose and type every cell, then do one after another; a table of all at the end."""
        own = {key_of(argument): value_of(argument) for argument in given if key_of(argument) in OWN}
        if "run" not in own:
            raise UserError("run=(none): name the folder of a finished run, such as run=outputs/single/RUN")
        for argument in given:
            if "=" not in argument or (root_of(argument) not in self.changeable and key_of(argument) not in OWN):
                near = hint(root_of(argument), [*self.changeable, *OWN])
                raise UserError(f"{argument}: only {', '.join(self.changeable)} can change without training{near}")
        changes = [argument for argument in given if root_of(argument) in self.changeable]
        check(changes)
        axes = [axis_of(argument) for argument in changes]
        if not several and (many := [axis for axis in axes if axis.swept]):
            raise UserError(f"{many[0].key}: several values; add -m to make a cell of each")
        sources = [open_source(folder, artifact=self.artifact) for folder in paths_of(own["run"])]
        plan = Plan(None, None, (), {})
        if "sweep" in own:
            with no_variables():
                plan = plan_of(compose_whole([*folders_of(words_of(sources[0])), f"+sweep={own['sweep']}"]))
        cells = []
        for source in sources:
            for overrides in expand(plan, axes):
                label = next((value_of(o) for o in overrides if key_of(o) == "label"), None)
                name = label or "-".join(slug(o) for o in overrides) or "again"
                started = [*overrides, *(["rerun=true"] if own.get("rerun") == "true" else [])]
                new = [override for override in started if key_of(override) != "label"]
                with no_variables():
                    composed = compose(with_overrides(source, self.changeable, new))
                folder = sweep_label(own.get("sweep") or f"{self.prefix}-{source.folder.path.name}", [])
                run = changed(source, composed, f"{source.run.label}-{name}"[:100], folder)
                model = run.model.build_on_meta()
                check_storage(run, model)
                check_scorers(run, model)
                check_scored(run, source.prepared)
                cells.append((source, run, [self.name, f"run={source.folder.path}", *new]))
        rows = [self.act(source, run, ConsoleSink(None), command) for source, run, command in cells]
        if len(rows) == 1:
            results.show(rows[0][1])
            print(f"\n{rows[0][0].path}")
            return
        self.show_table(cells[0][0], [found for _, found in rows])
        print(rows[0][0].path.parent)

    def show_table(self, source: Source, rows: list[dict[str, Any]]) -> None:
        lines = []
        for found in rows:
            name = found["label"].removeprefix(f"{source.run.label}-") + "".join(f" ({mark})" for mark in marks(found))
            lines.append([name, *(show(found) for show in self.columns.values())])
        title = f"{source.folder.path.name}: before quantisation {source.result['pre_quant_bpb']:.4f} BPB"
        first, *others = self.columns
        show_table([words("cell"), Column(first), *(Column(name, spare=1) for name in others)], lines, title)


def root_of(override: str) -> str:
    return key_of(override).replace("/", ".").split(".")[0]


def axis_of(argument: str) -> Axis:
    """An argument and its values, as a sweep has them."""
    override = parsed(argument)
    key = override.get_key_element()
    if not override.is_sweep_override():
        return Axis(key.lstrip("+~"), (argument,))
    if not override.is_discrete_sweep():
        raise UserError(f"{argument}: cannot be listed; use values with commas, or range(...)")
    return Axis(key.lstrip("+~"), tuple(f"{key}={value}" for value in override.sweep_string_iterator()))


def with_overrides(source: Source, changeable: tuple[str, ...], new: list[str]) -> list[str]:
    """The overrides that the run was started with, these over them: a group chosen anew drops what was set in it."""
    words = words_of(source)
    old = [word for word in words if "=" in word and not word.startswith("-") and root_of(word) not in NOT_PASSED]
    keys = {key_of(override) for override in new}
    groups = [key for key in keys if key in changeable or "/" in key]
    within = tuple(key.replace("/", ".") + mark for key in groups for mark in (".", "/", "@"))
    kept = [word for word in old if key_of(word) not in keys and not key_of(word).replace("/", ".").startswith(within)]
    return [*folders_of(words), *kept, *new]


def words_of(source: Source) -> list[str]:
    """Return the command line that a run was started with."""
    return source.folder.command()[1:]


def folders_of(words: Sequence[str]) -> list[str]:
    """Return the overrides that add folders of YAML files to conf/."""
    return [word for word in words if key_of(word) == SEARCH_PATH]
