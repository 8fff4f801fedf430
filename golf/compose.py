"""From conf/ to a typed Run: what the Hydra door, tests and benchmarks share. Only doors import this file."""

import copy
import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathElement
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf import command_line
from golf.conf_files import CONF, Stamp, read_yaml, register_resolvers, stamp_of
from golf.config import Run
from golf.errors import UserError
from golf.launcher.grid import key_of, run_label
from golf.suggestions import hint, means_null, nearest, nearest_key
from golf.typed import typed

VERSION_BASE = "1.3"
MOST_KEPT = 64  # merged configurations, of some megabytes each
NEEDED = {item.name for item in dataclasses.fields(Run) if item.default_factory is dataclasses.MISSING}
NAMES = {item.name for item in dataclasses.fields(Run)}
HEADER_CHARACTERS = 512  # of a file, in which Hydra looks for `# @package`


def run_of_whole(config: DictConfig, added: Sequence[str] = ()) -> Run:
    """Return the typed run of a composed configuration, whose `hydra` node is taken out.

    added: overrides that its label tells of, if none of them is a label: experiment=pr401 model.dim=64 is called
    pr401-model.dim_64.
    """
    command_line.check_files(config)
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    node = OmegaConf.to_container(config, resolve=True)
    assert isinstance(node, dict)
    for key in sorted(map(str, node.keys() - NAMES)):
        near = hint(key, [*NAMES, *(path.name for path in CONF.iterdir() if path.is_dir())])
        raise UserError(f"{key}={node[key]}: there is no key {key}; --cfg job prints every key there is{near}")
    if means_null(node.get("label")):
        raise UserError(f"label={node['label']}: is a text; write label=null for the name that a run has by itself")
    if node.get("label") is None:
        node["label"] = choices.get("experiment") or f"{choices.get('model')}-{choices.get('quant')}"
    if added and not any(key_of(override) == "label" for override in added):
        told = ("experiment",) if choices.get("experiment") else ("model", "quant")
        node["label"] = run_label(node["label"], [override for override in added if key_of(override) not in told])
    return typed(node, "", Run)


@contextmanager
def composing(arguments: Sequence[str]) -> Iterator[None]:
    """Whatever is wrong with a composition leaves as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(one_line(error, arguments)) from None
    except RecursionError:
        raise UserError(
            f"{' '.join(arguments)}: files name each other without end, in defaults lists or ${{...}}"
        ) from None


def compose_whole(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose conf/ outside of Hydra's own main; the configuration still has its `hydra` node."""
    with composing(overrides):
        return composer_of(overrides).compose(overrides)


def composer_of(overrides: Sequence[str]) -> "Composer":
    """Return the composer of a command line, with the folders of its `hydra.searchpath`."""
    return _composer(command_line.search_paths(overrides))


def compose(overrides: Sequence[str] = ()) -> Run:
    """The typed run of command-line overrides. Raises as the command line would."""
    config = compose_whole(overrides)
    with composing(overrides):
        return run_of_whole(config)


def one_line(error: Exception, arguments: Sequence[str]) -> str:
    """The message of a composition error, with the offending argument and without Hydra's advice to append it."""
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        given = next((a for a in arguments if a.lstrip("+~").startswith(unknown[1])), unknown[1])
        if (CONF / unknown[1].replace(".", "/")).is_dir():
            return f"{given}: {unknown[1]} has no default to change; add it, with +{given.lstrip('+')}"
        return _no_key(given, unknown[1], arguments)
    several = re.search(r"Ambiguous value for argument '([^']+)'", text)
    if several:
        key, _, values = several[1].partition("=")
        return (
            f"{several[1]}: several values; add -m to sweep over them, or write {key}=[{values}] for a list, "
            f"{command_line.in_shell(key, values)} for a text"
        )
    resolving = re.search(r"ValueError raised while resolving interpolation: (.*)", text)
    if resolving:
        key = re.search(r"full_key: (\S+)", text)
        return resolving[1] if "=" in resolving[1] or key is None else f"{key[1]}: {resolving[1]}"
    if not isinstance(error, HydraException | OmegaConfBaseException):  # Hydra stumbled over a group's value
        groups = [a for a in arguments if (CONF / key_of(a).split("@")[0]).is_dir() and not _names_options(a)]
        if groups:
            return f"{' '.join(groups)}: a group takes the name of one of its options; --help lists them"
    message = text.split("Config search path:")[0]  # where Hydra looked is no help, and long
    lost = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    near = _instead(lost[1], lost[2], composer_of(arguments)) if lost else ""
    return " ".join(line.strip() for line in message.splitlines() if line.strip()) + near


def _instead(group: str, name: str, composer: "Composer") -> str:
    """Say what to write for a name that is no option of its group."""
    options = composer.loader.get_group_options(group)
    near = hint(name, options) or hint(name.lower(), options)
    return near or (f"; for none, write {group}=null" if means_null(name) else "")


def _names_options(word: str) -> bool:
    """Whether the value of an override can be names of files."""
    value = command_line.parsed(word).value()
    names = value if isinstance(value, list) else [value]
    return all(isinstance(name, str) and name for name in names)


def _no_key(given: str, key: str, arguments: Sequence[str]) -> str:
    """Say that there is no such key, and which is near: of the configuration, or of the groups."""
    composer = composer_of(arguments)
    groups = composer.groups()
    chosen = [argument for argument in arguments if key_of(argument) in groups]
    try:
        config = composer.compose(chosen)
    except (HydraException, OmegaConfBaseException):
        config = composer.compose([])
    keys = OmegaConf.to_container(config, resolve=False)
    assert isinstance(keys, dict)
    near = nearest(key, groups) if "/" in key else nearest_key(key, {**dict.fromkeys(groups), **keys})
    return f"{given}: there is no key {key}; --cfg job prints every key there is" + (
        "" if near is None else f"; did you mean {near}?"
    )


# ---------------------------------------------------------------- Hydra


def set_up_hydra() -> None:
    """Register golf's resolvers, and the source that Hydra reads config files with in this process."""
    register_resolvers()
    Plugins.instance()  # registers Hydra's own sources, of which the next line replaces one
    SourcesRegistry.instance().types["file"] = CachedFileSource


# path -> the file's state, Hydra's header of it, its container
_read: dict[str, tuple[Stamp, dict[str, str | None], Any]] = {}


class CachedFileSource(FileConfigSource):
    """Gives Hydra the config files of a folder, each parsed anew only after it has changed."""

    def load_config(self, config_path: str) -> ConfigResult:
        path = os.path.realpath(os.path.join(self.path, self._normalize_file_name(config_path)))
        if not os.path.exists(path):
            raise ConfigLoadError(f"Config not found : {path}")
        header, config = _load(path)
        where = f"{self.scheme()}://{self.path}"
        # copies: Hydra takes the defaults list out of the one and adds to the other
        return ConfigResult(where, self.provider, copy.deepcopy(config), dict(header))


def _load(path: str) -> tuple[dict[str, str | None], Any]:
    """Return the package header and the container of a YAML file."""
    stamp = stamp_of(path)
    if path not in _read or _read[path][0] != stamp:
        text, config = read_yaml(path)
        try:
            header = ConfigSource._get_header_dict(text[:HEADER_CHARACTERS])
        except ValueError as error:
            raise UserError(f"{path}: line 1: {error}; write # @package PLACE") from None
        if "defaults" in config and not _is_defaults_list(config._get_node("defaults")):
            raise UserError(f"{path}: defaults: is no list of names and of GROUP: OPTION, such as - /model/mlp: relu2")
        _read[path] = (stamp, header, config)
    return _read[path][1:]


def _is_defaults_list(node: Any) -> bool:
    """Whether Hydra can read this as a defaults list: names, and mappings of one group to an option or several."""
    if not isinstance(node, ListConfig):
        return False
    items: Any = OmegaConf.to_container(node)
    pairs = [pair for item in items if isinstance(item, dict) for pair in item.items()]
    options = [option for _, value in pairs for option in (value if isinstance(value, list) else [value])]
    one_each = len(pairs) == sum(isinstance(item, dict) for item in items)
    return (
        one_each
        and all(item and isinstance(item, str | dict) for item in items)
        and all(option is None or isinstance(option, str) for option in options)
    )


@cache
def _composer(folders: tuple[str, ...] = ()) -> "Composer":
    """Return the composer of conf/ and of further folders (file:// URLs).

    Raises UserError where a file of theirs hides behind one of conf/.
    """
    set_up_hydra()
    setbase(VERSION_BASE)
    path = create_config_search_path(str(CONF))
    for folder in folders:
        root = Path(folder.removeprefix("file://"))
        for file in sorted(root.rglob("*.yaml")):
            if (CONF / file.relative_to(root)).exists():
                raise UserError(f"{file}: conf/ has a file of this name, which is read in its place; rename it")
        path.get_path().insert(-1, SearchPathElement("command line", folder))  # the last one is Hydra's own schema
    return Composer(ConfigLoaderImpl(path))


class Composer:
    """Composes configurations as Hydra does, and merges the files of each set of group choices only once.

    The chosen files are read and merged, which takes nearly all the time, once for each set of group choices; the
    values of an override line go into a copy. A change of any file of the search path starts anew. `hydra.overrides`
    and `hydra.job.override_dirname` of what comes out name the group choices alone; golf reads neither.
    """

    def __init__(self, loader: ConfigLoader, config_name: str = "config"):
        assert isinstance(loader, ConfigLoaderImpl)
        self.loader, self.config_name = loader, config_name
        self._stamps: dict[str, Stamp] = {}
        self._merged: dict[tuple[str, ...], DictConfig] = {}

    def compose(self, overrides: Sequence[str]) -> DictConfig:
        """Return the configuration of an override line, with its `hydra` node. Raises as Hydra and omegaconf do."""
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(self.without_nulls(overrides))
        self.loader.validate_sweep_overrides_legal(parsed, RunMode.RUN, from_shell=True)
        values = [override for override in parsed if self._is_value(override)]
        groups = tuple(str(override.input_line) for override in parsed if override not in values)
        if (stamps := self._files()) != self._stamps or len(self._merged) >= MOST_KEPT:
            self._stamps = stamps
            self._merged.clear()
        if groups not in self._merged:
            self._merged[groups] = self.loader.load_configuration(self.config_name, list(groups), RunMode.RUN)
        config = copy.deepcopy(self._merged[groups])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config

    def without_nulls(self, overrides: Sequence[str]) -> list[str]:
        """Return overrides in Hydra's words: GROUP=null, as --cfg prints it, is the empty list of options there.

        Raises UserError for a group that no run can do without.
        """
        return [f"{word.partition('=')[0]}=[]" if self._is_null(word) else word for word in overrides]

    def _is_null(self, word: str) -> bool:
        group = key_of(word).split("@")[0]
        if not word.lower().endswith("=null") or not self.loader.repository.group_exists(group):
            return False
        without = self.loader.repository.load_config(self.config_name)
        if group in NEEDED and (without is None or group not in without.config):
            options = ", ".join(self.loader.repository.get_group_options(group))
            raise UserError(f"{word}: a group takes the name of one of its options, here {options}")
        return True

    def groups(self) -> list[str]:
        """Return the groups of conf/, such as model/mlp."""
        roots = [Path(source.path) for source in self.loader.get_sources() if source.scheme() == "file"]
        return sorted({str(path.relative_to(root)) for root in roots for path in root.rglob("*") if path.is_dir()})

    def _is_value(self, override: Override) -> bool:
        """Return whether an override changes what the merged files hold, and not which files they are."""
        key = override.key_or_group
        if key.startswith("hydra."):  # Hydra reads some of these while it composes
            return False
        return isinstance(override.value(), dict) or not self.loader.repository.group_exists(key)

    def _files(self) -> dict[str, Stamp]:
        """Return path and state of each YAML file of the search path."""
        roots = [source.path for source in self.loader.get_sources() if source.scheme() == "file"]
        walks = itertools.chain.from_iterable(os.walk(root, followlinks=True) for root in roots)
        paths = [f"{folder}/{name}" for folder, _, names in walks for name in names if name.endswith(".yaml")]
        return {path: stamp_of(path) for path in paths if os.path.exists(path)}  # an editor's lock is a link to nowhere
