"""The data door: prepare, list and check what runs train on.

python golf/data.py prepare data=sotu data.vocab_size=1024
python golf/data.py prepare data=text data.path=my_texts/
python golf/data.py prepare data=fineweb_sp1024 --train-shards 10
python golf/data.py list
python golf/data.py check data=sotu            (or the path of a prepared folder)
"""

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # for a script, Python puts golf/ itself here

from golf.arguments import Parser
from golf.command_line import check
from golf.compose import compose
from golf.conf_files import CONF
from golf.door import in_one_line
from golf.errors import UserError
from golf.files import path_of
from golf.suggestions import did_you_mean
from golf.terminal import Column, show_table, words
from golf.tokens.prepare import DataConfig, Prepared
from golf.tokens.verify import verify_prepared


@in_one_line
def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr."""
    options = _parser().parse_args(arguments)
    options.run(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python golf/data.py", description="Prepare, list and check data.")
    commands = parser.add_subparsers(required=True, metavar="prepare | list | check")
    prepare = commands.add_parser("prepare", help="download, tokenise and cache; again is free")
    prepare.add_argument("overrides", nargs="+", metavar="data=NAME data.KEY=VALUE")
    prepare.add_argument("--train-shards", type=int, help="the same as data.train_shards=N")
    prepare.set_defaults(run=run_prepare)
    listing = commands.add_parser("list", help="what is prepared")
    listing.set_defaults(run=run_list)
    check = commands.add_parser("check", help="hashes, ids, bytes against decoded text, splits disjoint")
    check.add_argument("overrides", nargs="+", metavar="FOLDER | data=NAME data.KEY=VALUE")
    check.set_defaults(run=run_check)
    for command in (prepare, listing, check):
        command.add_argument("--data-dir", type=path_of, default=Path("data"), help="default: data/")
    return parser


def run_prepare(options: argparse.Namespace) -> None:
    """Prepare one choice of conf/data and say what came of it."""
    shards = [] if options.train_shards is None else [f"data.train_shards={options.train_shards}"]
    config, start = data_of([*options.overrides, *shards]), time.monotonic()
    show(config.prepare(options.data_dir))
    print(f"{time.monotonic() - start:.1f} s")


def run_list(options: argparse.Namespace) -> None:
    """One line for each prepared folder."""
    folders = sorted(path.parent for path in (options.data_dir / "prepared").glob("[!.]*/manifest.json"))
    if not folders:
        raise UserError(f"--data-dir={options.data_dir}: nothing is prepared; run golf/data.py prepare data=sotu")
    for folder in folders:
        show(Prepared.load(folder))


def run_check(options: argparse.Namespace) -> None:
    """Check one prepared folder in depth."""
    first = options.overrides[0]
    if "=" not in first:
        prepared: Prepared | None = Prepared.load(path_of(first))
    else:
        config = data_of(options.overrides)
        prepared = config.find(options.data_dir)
        if prepared is None:
            folder = config.folder(options.data_dir)
            raise UserError(f"{first}: not prepared ({folder}); run golf/data.py prepare first")
    assert prepared is not None
    verify_prepared(prepared)
    print(f"{prepared.folder}: sound")


def show(prepared: Prepared) -> None:
    """A table of the splits, under the folder and its digest."""
    rows = []
    for name, split in prepared.splits.items():
        ratio = "-" if split.bytes is None else f"{split.bytes / split.tokens:.3f}"
        counts = (len(split.shards), split.documents, split.tokens, split.bytes)
        rows.append([name, *("-" if count is None else f"{count:,}" for count in counts), ratio])
    print(f"{prepared.folder}\ndigest {prepared.digest}")
    columns = [Column("tokens"), Column("bytes", spare=2), Column("bytes/token", spare=1)]
    show_table([words("split"), Column("shards", spare=3), Column("documents", spare=4), *columns], rows)


def data_of(overrides: list[str]) -> DataConfig:
    """What the overrides of a run's command line make of its data; UserError with the key for anything wrong."""
    if not any(item.startswith("data=") for item in overrides):
        choices = ", ".join(sorted(path.stem for path in (CONF / "data").glob("*.yaml")))
        near = did_you_mean(overrides[0].split("=")[0], ["data"])
        raise UserError(f"data=(none): name one of {choices}; {near}it was {' '.join(overrides)}")
    check(overrides)
    return compose(overrides).data


if __name__ == "__main__":
    sys.exit(main())
