"""Runs put together from conf/ without Hydra, which takes ten times as long; test_parts.py compares the two."""

import copy
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from golf.conf_files import CONF, parse, register_resolvers
from golf.config import Run
from golf.typed import typed
from tests.helpers.runs import TOY, merged

Node = dict[str, Any]


def run_of_line(*overrides: str) -> Run:
    """Return the run of an override line, as golf.compose.compose does; a call of its own makes an object of its own.

    It knows what conf/ and these tests write, and refuses what it does not know with an AssertionError.
    """
    return copy.deepcopy(_run_of_line(overrides))


def toy_of(*overrides: str) -> Run:
    """Return a toy run of these overrides, its data not prepared."""
    places = ["data.path=toy.jsonl", "data_dir=toy-data", "outputs=toy-outputs"]
    return run_of_line(*merged([*TOY, *places], list(overrides)))


def full_size(*overrides: str) -> Run:
    """Return the run of these overrides at full size."""
    return run_of_line("track=h100x8", *overrides)


@cache
def _run_of_line(overrides: tuple[str, ...]) -> Run:
    register_resolvers()
    node, chosen = node_of(overrides)
    node["label"] = node["label"] or chosen["experiment"] or f"{chosen['model']}-{chosen['quant']}"
    others = tuple(override for override in overrides if not override.startswith("model"))
    if len(others) == len(overrides):
        return typed(resolved(node, node), "", Run)  # type: ignore[no-any-return]
    base = _run_of_line(others)  # all but the model, whose conversion is a small part of the work
    return replace(base, model=typed(resolved(node["model"], node), "model"), label=node["label"])


def resolved(part: Any, root: Node) -> Any:
    """Return a part of a configuration with its ${...} resolved, which refer to the same few places everywhere."""
    if isinstance(part, dict):
        return {key: resolved(value, root) for key, value in part.items()}
    if isinstance(part, list):
        return [resolved(value, root) for value in part]
    if not isinstance(part, str) or "${" not in part:
        return part
    places = {key: root[key] for key in ("scale", "batch", "budget")} | {
        "data": {"vocab_size": root["data"]["vocab_size"]}
    }
    return copy.deepcopy(_value(part, json.dumps(places)))


@cache
def _value(text: str, places: str) -> Any:
    value: Any = OmegaConf.to_container(OmegaConf.create(json.loads(places) | {"value": text}), resolve=True)
    return value["value"]


def node_of(overrides: Sequence[str]) -> tuple[Node, dict[str, Any]]:
    """Return what conf/ comes to before its ${...} are resolved, and the option that each group has."""
    read = [read_override(override) for override in overrides]
    tree = Tree({key: value for key, value in read if is_group(key)})
    tree.add("config")
    for key, value in read:
        if not is_group(key):
            set_value(tree.node, key.split("."), value)
    unused = tree.choices.keys() - tree.options.keys()
    assert not unused, f"{unused}: no defaults list has these groups"
    return tree.node, tree.options


def is_group(key: str) -> bool:
    return (CONF / key.split("@")[0]).is_dir()


@cache
def _override_parser() -> OverridesParser:
    return OverridesParser.create()


@cache
def _read_override(text: str) -> tuple[str, Any]:
    (override,) = _override_parser().parse_overrides([text])
    assert override.type is not None and not override.is_add() and not override.is_delete(), text
    package = f"@{override.package}" if override.package else ""
    value: Any = override.value()  # a QuotedString where it has quotes
    if not (value is None or isinstance(value, bool | int | float)):
        value = OmegaConf.to_container(OmegaConf.create({"value": value}))["value"]
    return f"{override.key_or_group}{package}", value


def read_override(text: str) -> tuple[str, Any]:
    """Return the key and the value of "key=value", read as Hydra reads it."""
    key, value = _read_override(text)
    return key, copy.deepcopy(value)


def set_value(node: Node, keys: list[str], value: Any) -> None:
    """Put a value where the files have one. A dict goes into the dict that is there."""
    *path, last = keys
    for key in path:
        node = node[key]
    assert last in node, f"{'.'.join(keys)}: there is no such key"
    if isinstance(value, dict) and isinstance(node[last], dict):
        merge(node[last], value)
    else:
        node[last] = value


def merge(node: Node, other: Node) -> None:
    """Put other into node, as omegaconf merges: dicts key by key, anything else in place of what was there."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(node.get(key), dict):
            merge(node[key], value)
        else:
            node[key] = copy.deepcopy(value)


@cache
def _read_file(name: str) -> tuple[str | None, list[Any], Node]:
    """Return the `# @package` of a YAML of conf/, its defaults list and the rest of it."""
    text = (CONF / f"{name}.yaml").read_text(encoding="utf-8")
    node = parse(text) or {}
    first, _, package = text.splitlines()[0].partition("@package")
    return package.strip() if first == "# " else None, node.pop("defaults", ["_self_"]), node


def path_of(key: str, group: str) -> str:
    """Return the group that a file of `group` names: "/model/mlp" as it is, "mlp" within its own."""
    return key[1:] if key.startswith("/") else f"{group}/{key}".lstrip("/")


Layer = tuple[str, Node]  # where in the tree, and what


class Tree:
    """The files that a defaults list names, merged in its order. choices: group -> option, in place of the files'."""

    def __init__(self, choices: dict[str, Any]):
        self.choices, self.options, self.node = dict(choices), dict[str, Any](), Node()

    def add(self, name: str) -> None:
        """Merge a file of conf/ and all that it names into the node."""
        for where, node in self._layers(name, "", fixed=False):
            place = self.node
            for key in where.split(".") if where else []:
                if not isinstance(place.get(key), dict):
                    place[key] = {}
                place = place[key]
            merge(place, node)
        self.node.pop("hydra", None)  # of a file that Hydra reads, and no run

    def _layers(self, name: str, package: str, *, fixed: bool) -> list[Layer]:
        """Return the layers of a file and of those that it names, in the order in which they are merged.

        fixed: the package is that of an `@`, and no `# @package` of the file changes it. The last file of a list is
        opened first: what it overrides counts for those before it, and of two overrides of one group the first that is
        seen stands, which makes those of the command line the strongest.
        """
        header, defaults, own = _read_file(name)
        if header is not None and not fixed:
            package = "" if header == "_global_" else header
        group, found = name.rpartition("/")[0], list[list[Layer]]()
        entries = [entry if isinstance(entry, dict) else {None: entry} for entry in defaults]
        if {None: "_self_"} not in entries:
            entries.append({None: "_self_"})
        pairs = [pair for entry in entries for pair in entry.items()]
        for key, option in pairs:
            if key is not None and key.startswith("override ") and "hydra/" not in key:
                self.choices.setdefault(path_of(key.removeprefix("override "), group), option)
        for key, option in reversed(pairs):
            if key is None:
                found.append([(package, own)] if option == "_self_" else self._of_file(option, group, package))
            elif not key.startswith("override "):
                found.append(self._of_group(key, option, group, package))
        return list(itertools.chain(*reversed(found)))

    def _of_file(self, entry: str, group: str, package: str) -> list[Layer]:
        """Return the layers of another file of the group: "plain", or "plain@key" for a place within the package."""
        name, _, place = entry.partition("@")
        return self._layers(f"{group}/{name}".lstrip("/"), f"{package}.{place}".strip("."), fixed=bool(place))

    def _of_group(self, key: str, option: Any, group: str, package: str) -> list[Layer]:
        """Return the layers of the option that a group has; option: the one that the file names."""
        chosen, _, place = key.partition("@")
        path = path_of(chosen, group)
        where = f"{package}.{place or chosen.lstrip('/').replace('/', '.')}".lstrip(".")
        full = f"{path}@{where}" if place else path
        self.options[full] = option = self.choices.get(full, option)
        names = option if isinstance(option, list) else [option] * (option is not None)
        return [layer for name in names for layer in self._layers(f"{path}/{name}", where, fixed=bool(place))]
