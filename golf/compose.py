"""From conf/ to a typed Run: what the Hydra door, tests and benchmarks share. Only doors import this file."""

import copy
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf.conf_files import CONF, Stamp, read_yaml, register_resolvers, stamp_of
from golf.config import Run
from golf.errors import UserError
from golf.typed import typed

VERSION_BASE = "1.3"
MOST_KEPT = 64  # merged configurations, of some megabytes each
HEADER_CHARACTERS = 512  # of a file, in which Hydra looks for `# @package`


def run_of(config: DictConfig, choices: Mapping[str, str | None]) -> Run:
    """The typed run of a composed configuration; choices: group -> option, for the label where none is given."""
    node = OmegaConf.to_container(config, resolve=True)
    assert isinstance(node, dict)
    if node.get("label") is None:
        node["label"] = choices.get("experiment") or f"{choices.get('model')}-{choices.get('quant')}"
    return typed(node, "", Run)


def run_of_whole(config: DictConfig) -> Run:
    """The typed run of a configuration that still has its `hydra` node; the node is taken out."""
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return run_of(config, choices)


@contextmanager
def composing(arguments: Sequence[str]) -> Iterator[None]:
    """Whatever is wrong with a composition leaves as a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(one_line(error, arguments)) from None


def compose_whole(overrides: Sequence[str] = ()) -> DictConfig:
    """Compose conf/ outside of Hydra's own main; the configuration still has its `hydra` node."""
    with composing(overrides):
        return _composer().compose(overrides)


def compose(overrides: Sequence[str] = ()) -> Run:
    """The typed run of command-line overrides. Raises as the command line would."""
    config = compose_whole(overrides)
    with composing(overrides):
        return run_of_whole(config)


def one_line(error: Exception, arguments: Sequence[str]) -> str:
    """The message of a composition error, with the offending argument and without Hydra's advice to append it."""
    unknown = re.search(r"Could not override '([^']+)'", str(error))
    if unknown:
        given = next((a for a in arguments if a.lstrip("+~").startswith(unknown[1])), unknown[1])
        if (CONF / unknown[1].replace(".", "/")).is_dir():
            return f"{given}: {unknown[1]} has no default to change; add it, with +{given.lstrip('+')}"
        return f"{given}: there is no key {unknown[1]}; --cfg job prints every key there is"
    several = re.search(r"Ambiguous value for argument '([^']+)'", str(error))
    if several:
        key, _, values = several[1].partition("=")
        return (
            f"{several[1]}: several values; add -m to sweep over them, or write {key}=[{values}] for a list, "
            f"{key}='{values}' for a text"
        )
    resolving = re.search(r"ValueError raised while resolving interpolation: (.*)", str(error))
    if resolving:
        return resolving[1]
    if not isinstance(error, HydraException | OmegaConfBaseException):  # Hydra stumbled over a group's value
        groups = [a for a in arguments if "." not in a.split("=")[0] and re.search(r"=(null|\[.*\])?$", a)]
        return f"{' '.join(groups) or error}: a group takes the name of one of its options; --help lists them"
    message = str(error).split("Config search path:")[0]  # where Hydra looked is no help, and long
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


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
        text, value = read_yaml(path)
        config = OmegaConf.create({} if value is None else value)
        _read[path] = (stamp, ConfigSource._get_header_dict(text[:HEADER_CHARACTERS]), config)
    return _read[path][1:]


@cache
def _composer() -> "Composer":
    set_up_hydra()
    setbase(VERSION_BASE)
    return Composer(ConfigLoaderImpl(create_config_search_path(str(CONF))))


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
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(list(overrides))
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
