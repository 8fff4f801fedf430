"""The quantiser's door: other artifacts out of a finished run, without training; and what an artifact holds.

    python golf/quantize.py run=outputs/single/RUN quant=int6_gptq quant.rounding.damping=0.02
    python golf/quantize.py -m run=outputs/single/RUN quant=int6,int6_gptq codec=zstd,entropy
    python golf/quantize.py -m run=outputs/single/RUN +sweep=gptq_grid
    python golf/quantize.py inspect=outputs/single/RUN/artifact.golf

run: a folder that golf/train.py made, or several with commas. What may change is quant, codec and eval; the rest is as
the run was started. Each cell is a run folder of its own beside the source's, with the source as its parent.
"""

import shlex
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # it held golf/ itself

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console
from rich.table import Table

from golf import result as results
from golf.artifact.contents import contents
from golf.checkpoint import load_tensors
from golf.checks import check_storage
from golf.compose import compose, compose_whole
from golf.errors import RunError, UserError
from golf.launcher.grid import Axis, Plan, expand, key_of, slug, sweep_label, value_of
from golf.requantise import Source, changed, open_source, requantise
from golf.sinks import ConsoleSink
from hydra_plugins.golf_sweeper import plan_of

CHANGEABLE = ("quant", "codec", "eval")
OWN = ("run", "inspect", "sweep", "rerun")
NOT_PASSED = ("label", "sweep", "sweep_label", "hydra", "plan", "rerun", "resume", "outputs", "launch")


def root_of(override: str) -> str:
    return key_of(override).replace("/", ".").split(".")[0]


def main(arguments: list[str]) -> int:
    """Exit code 2 and one line for bad input."""
    try:
        flags = [argument for argument in arguments if argument.startswith("-")]
        given = [argument for argument in arguments if argument not in flags]
        if not given or set(flags) - {"-m", "--multirun"}:
            print(__doc__)
            return 0 if set(flags) <= {"-h", "--help"} else 2
        if given[0].startswith("inspect="):
            show_contents(Path(value_of(given[0])))
            return 0
        run_cells(given, bool(flags))
    except UserError as error:
        print(f"golf: {error}", file=sys.stderr)
        return 2
    except (RunError, OSError) as error:
        print(f"golf: {error}", file=sys.stderr)
        return 1
    return 0


def run_cells(given: list[str], several: bool) -> None:
    """Compose and type every cell, then do one after another; a table of all at the end."""
    own = {key_of(argument): value_of(argument) for argument in given if key_of(argument) in OWN}
    if "run" not in own:
        raise UserError("run=(none): name the folder of a finished run, such as run=outputs/single/RUN")
    for argument in given:
        if "=" not in argument or (root_of(argument) not in CHANGEABLE and key_of(argument) not in OWN):
            raise UserError(f"{argument}: only {', '.join(CHANGEABLE)} can change without training")
    axes = [axis_of(argument) for argument in given if root_of(argument) in CHANGEABLE]
    if not several and (many := [axis for axis in axes if axis.swept]):
        raise UserError(f"{many[0].key}: several values; add -m to make a cell of each")
    plan = plan_of(compose_whole([f"+sweep={own['sweep']}"])) if "sweep" in own else Plan(None, None, (), {})
    cells = []
    for source in [open_source(Path(folder)) for folder in own["run"].split(",")]:
        for overrides in expand(plan, axes):
            label = next((value_of(o) for o in overrides if key_of(o) == "label"), None)
            name = label or "-".join(slug(o) for o in overrides) or "again"
            started = [*overrides, *(["rerun=true"] if own.get("rerun") == "true" else [])]
            composed = compose(with_overrides(source, [o for o in started if key_of(o) != "label"]))
            folder = sweep_label(own.get("sweep") or f"requantised-{source.folder.path.name}", [])
            run = changed(source, composed, f"{source.run.label}-{name}"[:100], folder)
            check_storage(run, run.model.build_on_meta())
            cells.append((source, run))
    rows = [requantise(source, run, ConsoleSink(None), ["golf/quantize.py", *given]) for source, run in cells]
    if len(rows) == 1:
        results.show(rows[0][1])
        print(f"\n{rows[0][0].path}")
        return
    show_table(cells[0][0], rows)


def axis_of(argument: str) -> Axis:
    """An argument and its values, as a sweep has them."""
    override = OverridesParser.create().parse_override(argument)
    key = override.get_key_element()
    if not override.is_sweep_override():
        return Axis(key.lstrip("+~"), (argument,))
    if not override.is_discrete_sweep():
        raise UserError(f"{argument}: cannot be listed; use values with commas, or range(...)")
    return Axis(key.lstrip("+~"), tuple(f"{key}={value}" for value in override.sweep_string_iterator()))


def with_overrides(source: Source, new: list[str]) -> list[str]:
    """The overrides that the run was started with, these over them: a group chosen anew drops what was set in it."""
    words = shlex.split((source.folder.path / "command.txt").read_text())[1:]
    old = [word for word in words if "=" in word and not word.startswith("-") and root_of(word) not in NOT_PASSED]
    keys = {key_of(override) for override in new}
    groups = {key for key in keys if key in CHANGEABLE}
    kept = [word for word in old if key_of(word) not in keys and root_of(word) not in groups]
    return [*kept, *new]


def show_table(source: Source, rows: list) -> None:
    table = Table(title=f"{source.folder.path.name}: before quantisation {source.result['pre_quant_bpb']:.4f} BPB")
    for column in ("cell", "BPB", "quant gap", "bytes", "bits a weight", "of the cap", "seconds"):
        table.add_column(column, justify="left" if column == "cell" else "right")
    for _, found in rows:
        table.add_row(
            found["label"].removeprefix(f"{source.run.label}-"),
            f"{found['val_bpb']:.4f}",
            f"{found['quant_gap_bpb']:+.4f}",
            f"{found['artifact_bytes']:,}",
            f"{found['bits_per_param']:.3f}",
            f"{found['total_bytes'] / found['cap_bytes']:.1%}" + ("" if found["fits"] else " OVER"),
            f"{found['quant_seconds']:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(rows[0][0].path.parent)


def show_contents(path: Path) -> None:
    """A line for each tensor; the error where the run's weights lie beside the file."""
    beside = path.parent / "weights.safetensors"
    weights = load_tensors(beside)[0] if beside.exists() else None
    artifact, lines = contents(path, weights)
    total = sum(line.stored_bytes for line in lines)
    table = Table(title=f"{path}: {artifact.size_bytes:,} bytes, codec {type(artifact.codec).__name__}")
    for column in ("tensor", "shape", "format", "bits", "entropy", "bytes", "share", "error"):
        table.add_column(column, justify="left" if column in ("tensor", "format") else "right")
    for line in lines:
        table.add_row(
            line.name,
            " x ".join(map(str, line.shape)),
            line.format,
            f"{line.stored_bits:.3f}",
            f"{line.entropy_bits:.3f}",
            f"{line.stored_bytes:,}",
            f"{line.stored_bytes / total:.1%}",
            "" if line.error is None else f"{line.error:.2e}",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"bits: a weight as stored alone, steps included; entropy: order 0, of its codes; {total:,} bytes in all")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
