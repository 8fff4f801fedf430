"""The report's door: what sweeps say, with honest statistics.

    python golf/report.py outputs/SWEEP [outputs/OTHER ...]

prints the tables and writes report.md, report.csv and report.html into the first folder.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # it held golf/ itself

from golf.arguments import Parser
from golf.door import in_one_line
from golf.errors import UserError
from golf.files import path_of
from golf.reports import dashboard, grids, page
from golf.reports.analysis import MARGIN_NATS, Agreement, Analysis, agreement, analyse
from golf.reports.load import Sweep, load
from golf.reports.verdict import Facts, provenance_of, verdict_of
from golf.rundir import write_atomic
from golf.terminal import console


def arguments(line: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="golf/report.py", description="Compare the rows of sweeps.")
    parser.add_argument("folders", nargs="+", type=path_of, metavar="FOLDER", help="of a sweep, such as outputs/smoke")
    parser.add_argument("--control", metavar="ROW", help="the row to compare with (default: what the sweep file says)")
    parser.add_argument(
        "--margin",
        type=float,
        default=MARGIN_NATS,
        metavar="NATS",
        help=f"the gain to show, in nats per token (default {MARGIN_NATS:g}, the rule for records)",
    )
    parser.add_argument("--bar", type=float, metavar="BPB", help="also test each row against this fixed score")
    parser.add_argument("--wandb", action="store_true", help="create the W&B dashboard (offline: write its definition)")
    return parser.parse_args(line)


def tracked_as(sweeps: list[Sweep]) -> tuple[str, str | None]:
    """(project, entity) that the sweeps' runs were logged with. UserError where they were not, or with several."""
    projects = {sweep.tracker for sweep in sweeps}
    if len(projects) > 1 or None in projects:
        raise UserError("--wandb: needs sweeps whose runs were all tracked (log=wandb) in one project")
    return projects.pop()  # type: ignore[return-value]


def show(analyses: list[Analysis], agreements: list[Agreement], about: Facts) -> None:
    out = console()
    for analysis in analyses:
        out.print(f"\n{analysis.sweep.label}", style="bold", soft_wrap=True)
        out.print(verdict_of(analysis), style="bold", soft_wrap=True)
        if analysis.sweep.purpose:
            out.print(analysis.sweep.purpose, soft_wrap=True)
        out.print(page.summary_of(analysis), soft_wrap=True)
        for name, said in about if analysis is analyses[0] else ():
            out.print(f"{name}: {said}", style="dim", soft_wrap=True)
        for note in grids.notes_of(analysis):
            out.print(f"- {note}", soft_wrap=True)
        for grid in page.grids_of(analysis):
            grids.to_terminal(grid)
    for found in agreements:
        grids.to_terminal(grids.agreement_grid(found))


@in_one_line
def main(line: list[str] | None = None) -> int:
    chosen = arguments(line)
    if not 0 <= chosen.margin < 10:
        raise UserError(f"--margin {chosen.margin}: nats per token, from 0 up; the rule for records is 0.005")
    sweeps = [load(folder.resolve(), chosen.control) for folder in chosen.folders]
    analyses = [analyse(sweep, margin_nats=chosen.margin, bar=chosen.bar) for sweep in sweeps]
    pairs = [(other, agreement(analyses[0], other)) for other in analyses[1:]]
    agreements = [found for _, found in pairs if found is not None]
    folder = sweeps[0].folder
    about = provenance_of(analyses, sys.argv[1:] if line is None else line)
    texts = {
        "report.md": page.to_markdown(analyses, agreements, about),
        "report.csv": page.to_csv(analyses),
        "report.html": page.to_html(analyses, agreements, about),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text)
    show(analyses, agreements, about)
    for other, found in pairs:
        if found is None:
            print(f"{sweeps[0].label} and {other.sweep.label} compare no row of the same name with their controls")
    print(f"\nwritten: {', '.join(str(folder / name) for name in texts)}")
    if chosen.wandb:
        project, entity = tracked_as(sweeps)
        print("\n".join(dashboard.create(folder, [sweep.label for sweep in sweeps], [], project, entity)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
