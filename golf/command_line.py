"""The command line of a door that composes: its options, its overrides, and what to type in place of a wrong word."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from golf.errors import UserError
from golf.files import path_of
from golf.suggestions import nearest

SEARCH_PATH = "hydra.searchpath"
QUOTES = "\"'"
KEY = re.compile(r"(\+\+|\+|~)?[\w./@:-]+", re.ASCII)
FLAGS = ("help", "hydra_help", "multirun", "resolve", "shell_completion")  # and --run, which is so anyway
VALUES = ("cfg", "package", "info")
REFUSED = {
    "config_name": "golf composes conf/config.yaml; name a whole configuration as conf/experiment/NAME.yaml",
    "config_path": "golf reads conf/; --config-dir FOLDER adds a folder of YAML files to it",
    "experimental_rerun": "command.txt in a run's folder is the command that repeats it",
}
# What Hydra would take and golf does not read: the beginning of a key, and what does it here.
UNREAD = {
    "hydra.run": "outputs=FOLDER says where runs are kept",
    "hydra.sweep.": "outputs=FOLDER says where runs are kept, sweep_label=NAME how the folder of a sweep is called",
    "hydra.output_subdir": "outputs=FOLDER says where runs are kept",
    "hydra.job.env": "set the variable before the command, NAME=VALUE python golf/train.py ...",
    "hydra.job.chdir": "a run stays in the folder where it was started",
    "hydra.job.name": "label=NAME names a run",
    "hydra.launcher": "launch.KEY=VALUE sets how runs are started",
    "hydra.verbose": "log.KEY=VALUE sets what is logged",
    "hydra.job_logging": "log.KEY=VALUE sets what is logged",
    "hydra.hydra_logging": "log.KEY=VALUE sets what is logged",
}
PLUGINS = ("hydra/launcher", "hydra/sweeper")
# As conf/config.yaml leaves them: what a file of conf/ says of them instead would be ignored.
LEFT: dict[str, Any] = {
    "run.dir": ".",
    "sweep.dir": ".",
    "output_subdir": None,
    "job.env_set": {},
    "job.chdir": False,
    "callbacks": {},
}
READ = ("hydra.mode", "hydra.sweeper.", SEARCH_PATH)


@dataclass(frozen=True, slots=True)
class Line:
    """options: as Hydra's own main takes them; overrides: key=value words, a folder of --config-dir among them."""

    options: list[str]
    overrides: list[str]


def check_arguments(words: Sequence[str]) -> Line:
    """Take a command line apart, and check its words.

    Raises UserError for an option that is none, a word that cannot be read, a key given twice (the last would win), and
    for what Hydra takes and golf does not read.
    """
    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]  # it would print its usage and end the process
    for action in parser._actions:
        if action.dest == "version":
            action.version = f"golf {version('golf')}"  # type: ignore[attr-defined]
    given, rest = parser.parse_known_args(list(words))
    if unknown := [word for word in rest if word.startswith("-")]:
        raise UserError(_no_option(unknown[0], words, [o for a in parser._actions for o in a.option_strings]))
    if rest:
        raise UserError(f"{rest[0]}: stands behind an option; options such as -m go before or after all overrides")
    for name, fix in REFUSED.items():
        if getattr(given, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}={getattr(given, name)}: {fix}")
    check(given.overrides)
    folders = [*([] if given.config_dir is None else [given.config_dir]), *search_paths(given.overrides)]
    overrides = [word for word in given.overrides if not word.lstrip("+").startswith(f"{SEARCH_PATH}=")]
    added = [search_path(folders)] if folders else []
    options = [f"--{name.replace('_', '-')}" for name in FLAGS if getattr(given, name)]
    for name in VALUES:
        if getattr(given, name) is not None:
            options += [f"--{name}", getattr(given, name)]
    return Line(options, [*added, *overrides])


def check(overrides: Sequence[str]) -> None:
    """Raise UserError for a word that is no override, a key given twice, and a `hydra.` key that golf does not read."""
    seen: dict[str, str] = {}
    for word in overrides:
        override = parsed(word)
        key = override.get_key_element().lstrip("+~")
        if key in seen:
            raise UserError(f"{key} is given twice ({seen[key]} and {word}); keep one")
        seen[key] = word
        if key in PLUGINS and override.value() != "golf":
            raise UserError(f"{word}: cannot run these cells; leave it out, golf has its own")
        if key.startswith(("hydra.", "hydra/")) and not key.startswith(READ) and key not in PLUGINS:
            raise UserError(f"{word}: {_fix(key)}")


def check_lone(overrides: Sequence[str]) -> None:
    """Raise UserError where a lone run is given what only a sweep reads."""
    for word in overrides:
        if word.lstrip("+~").startswith("hydra.sweeper."):
            raise UserError(f"{word}: is of a sweep; add -m, or a sweep file with +sweep=NAME")


def check_files(config: DictConfig) -> None:
    """Raise UserError where a file that was composed sets what golf does not read. config: with its `hydra` node."""
    for key, left in LEFT.items():
        if (found := OmegaConf.select(config, f"hydra.{key}")) != left:
            raise UserError(f"hydra.{key}={found}: {_fix(f'hydra.{key}')}; a file of conf/ sets it")


def parsed(word: str) -> Override:
    """Return a word as Hydra reads it. Raises UserError, with what to type, where it cannot."""
    try:
        override = OverridesParser.create().parse_override(word)
    except (HydraException, RecursionError):
        raise UserError(_unreadable(word)) from None
    if not override.key_or_group:
        raise UserError(f"{word}: names no key; write KEY{word.lstrip('+~')}")
    return override


def quoted(key: str, value: str) -> str:
    """Return the override that gives `key` this text, letter for letter."""
    return f"{key}={QuotedString(text=value, quote=Quote.double).with_quotes()}"


def in_shell(key: str, value: str) -> str:
    """Return quoted() as it is typed in a shell."""
    return shlex.quote(quoted(key, value))


def shown(word: str) -> str:
    """Return a word as a message of one line has it."""
    text = word if word.isprintable() else repr(word)
    return text if len(text) <= 200 else f"{text[:197]}..."


def search_path(folders: Sequence[str]) -> str:
    """Return the override that adds folders of YAML files to conf/. Raises UserError where there is no such folder."""
    places = []
    for folder in folders:
        path = path_of(folder.removeprefix("file://")).resolve()
        if not path.is_dir():
            raise UserError(f"--config-dir={folder}: is no folder; name one that holds YAML files as conf/ does")
        places.append(QuotedString(text=f"file://{path}", quote=Quote.double).with_quotes())
    return f"{SEARCH_PATH}=[{','.join(places)}]"


def search_paths(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that an override line adds to conf/. Raises UserError where they are no list of folders.

    The line may be somebody else's command.txt, and a package (pkg://) would be imported to look for YAML in it.
    """
    found: list[str] = []
    for word in overrides:
        if word.lstrip("+").startswith(f"{SEARCH_PATH}="):
            value = parsed(word).value()
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise UserError(f"{word}: takes a list of folders; --config-dir FOLDER adds one")
            if odd := [str(item) for item in value if "://" in item and not item.startswith("file://")]:
                raise UserError(f"{SEARCH_PATH}: {odd[0]} is no folder, and nothing else is searched for YAML files")
            found += map(str, value)
    return tuple(found)


def _fix(key: str) -> str:
    fix = next((fix for start, fix in UNREAD.items() if key.startswith(start)), "leave it out")
    return f"golf does not read it; {fix}"


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; --help says what there is")


def _no_option(word: str, words: Sequence[str], options: Sequence[str]) -> str:
    name, equals, value = word.partition("=")
    if near := nearest(name.lstrip("-"), [option[2:] for option in options if option.startswith("--")]):
        return f"{word}: is no option; did you mean --{near}?"
    index = list(words).index(word)
    behind = words[index + 1 : index + 2]
    value = value if equals else behind[0] if behind and not re.match(r"-|[^=]*=", behind[0]) else "VALUE"
    return f"{word}: is no option; keys are written without dashes, {name.lstrip('-').replace('-', '_')}={value}"


def _unreadable(word: str) -> str:
    """Say why a word is no override, and what to type."""
    key, equals, value = word.partition("=")
    word = shown(word)
    if not equals:
        return (
            f"{word}: is no key=value; add the value, or where it belongs to the word before it, put both into quotes"
        )
    if not KEY.fullmatch(key):
        return f"{word}: {key!r} is no key; a key is of letters, digits and . / @ _, such as model.dim"
    if not value.isprintable():
        return f"{word}: its value holds control characters; leave them out"
    fix = f"to have it as a text, type {in_shell(key, value.strip(QUOTES))}"
    if value.startswith(("[", "{")):
        example = f"{key}=[a,b]" if value.startswith("[") else f"{key}={{a: 1, b: 2}}"
        return f"{word}: cannot be read as a {'list' if value[0] == '[' else 'dict'}, such as {example!r}; {fix}"
    odd = sorted(set(re.findall(r"[^\w./:+%*@?|\\~-]", value, re.ASCII)))
    marks = " ".join("a blank" if mark.isspace() else mark for mark in odd)
    return f"{word}: its value {f'holds {marks} and ' * bool(odd)}needs quotes within quotes; {fix}"
