"""The data door: prepare, list and check what runs train on.

python golf/data.py prepare data=sotu data.vocab_size=1024
python golf/data.py prepare data=text data.path=my_texts/
python golf/data.py prepare data=fineweb_sp1024 --train-shards 10
python golf/data.py list
python golf/data.py check data=sotu            (or the path of a prepared folder)
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # for a script, Python puts golf/ itself here

from hydra.utils import get_class
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from golf.errors import UserError
from golf.tokens.prepare import DataConfig, Prepared
from golf.tokens.verify import verify_prepared

CHOICES = ROOT / "conf" / "data"


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on stderr."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python golf/data.py", description="Prepare, list and check data.")
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
        command.add_argument("--data-dir", type=Path, default=Path("data"), help="default: data/")
    return parser


def run_prepare(options: argparse.Namespace) -> None:
    """Prepare one choice of conf/data and say what came of it."""
    shards = [] if options.train_shards is None else [f"data.train_shards={options.train_shards}"]
    config, start = compose([*options.overrides, *shards]), time.monotonic()
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
        prepared: Prepared | None = Prepared.load(Path(first))
    else:
        config = compose(options.overrides)
        prepared = config.find(options.data_dir)
        if prepared is None:
            folder = config.folder(options.data_dir)
            raise UserError(f"{first}: not prepared ({folder}); run golf/data.py prepare first")
    assert prepared is not None
    verify_prepared(prepared)
    print(f"{prepared.folder}: sound")


def show(prepared: Prepared) -> None:
    """A table of the splits, under the folder and its digest."""
    table = Table(title=f"{prepared.folder}\ndigest {prepared.digest}", title_justify="left")
    for column in ("split", "shards", "documents", "tokens", "bytes", "bytes/token"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for name, split in prepared.splits.items():
        ratio = "-" if split.bytes is None else f"{split.bytes / split.tokens:.3f}"
        counts = (len(split.shards), split.documents, split.tokens, split.bytes)
        table.add_row(name, *("-" if count is None else f"{count:,}" for count in counts), ratio)
    # A pipe has no width of its own, and a folder's name must come out whole.
    Console(width=None if sys.stdout.isatty() else 200, soft_wrap=True).print(table)


def compose(overrides: list[str]) -> DataConfig:
    """The dataclass that `data=NAME data.KEY=VALUE ...` names; UserError with the key for anything wrong."""
    names = [item.removeprefix("data=") for item in overrides if item.startswith("data=")]
    settings = [item for item in overrides if not item.startswith("data=")]
    choices = sorted(path.stem for path in CHOICES.glob("*.yaml"))
    if len(names) != 1 or names[0] not in choices:
        raise UserError(f"data={','.join(names) or '(none)'}: name one of {', '.join(choices)}")
    for item in settings:
        if not item.startswith("data.") or "=" not in item:
            raise UserError(f"{item}: not of the form data.KEY=VALUE")
    node = OmegaConf.to_container(OmegaConf.load(CHOICES / f"{names[0]}.yaml"))
    assert isinstance(node, dict)
    return typed(node, OmegaConf.from_dotlist([item.removeprefix("data.") for item in settings]))


def typed(node: dict[Any, Any], settings: Any) -> DataConfig:
    """The dataclass named by `_target_`, from the node with the settings merged in."""
    cls = get_class(node.pop("_target_"))
    known = [field.name for field in dataclasses.fields(cls)]
    for key in settings:
        if key not in known:
            raise UserError(f"data.{key}={settings[key]}: no such key; this data has {', '.join(known)}")
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), node, settings))
    except (OmegaConfBaseException, ValueError) as error:
        reason = str(error).splitlines()[0]
        key = getattr(error, "full_key", None)
        raise UserError(f"data.{key}: {reason}" if key else f"data.{reason}") from None
    assert isinstance(config, DataConfig)
    return config


if __name__ == "__main__":
    sys.exit(main())
