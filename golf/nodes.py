"""Config dataclasses to JSON-able nodes and back, without omegaconf: what run folders and artifacts hold."""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from golf.classes import config_class


def target_of(cls: type) -> str:
    """The import path of a config class."""
    return f"{cls.__module__}.{cls.__qualname__}"


def plain(value: Any, *, operational: bool = True) -> Any:
    """Dataclasses to nested dicts with `_target_`, nulls included; lists, dicts and primitives as they are.

    operational=False leaves out fields marked OPERATIONAL, which change how a run is made and not what comes of it.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if operational or not f.metadata.get("operational")]
        named = {"_target_": target_of(type(value))}
        return named | {f.name: plain(getattr(value, f.name), operational=operational) for f in fields}
    if isinstance(value, dict):
        return {key: plain(item, operational=operational) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, operational=operational) for item in value]
    return str(value) if isinstance(value, Path) else value


def configs(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(key path, dataclass) of every config in a typed configuration, itself first."""
    if dataclasses.is_dataclass(node):
        yield path, node
        members = [(item.name, getattr(node, item.name)) for item in dataclasses.fields(node)]
    else:
        members = list(node.items()) if isinstance(node, dict) else []
    for name, member in members:
        yield from configs(member, f"{path}.{name}".lstrip("."))


def without_nulls(node: Any) -> Any:
    """Null means absent, so a field that is new since a run was made, at its null default, changes no fingerprint."""
    if isinstance(node, dict):
        kept = {key: without_nulls(item) for key, item in node.items()}
        return {key: item for key, item in kept.items() if item is not None and item != {}}
    if isinstance(node, list):
        return [without_nulls(item) for item in node]
    return node


def rebuild(node: Any, slot: type, within: Sequence[str]) -> Any:
    """The inverse of `plain` for a node that nobody vouches for: a config of the class `slot`, or of one under it.

    within: the packages whose classes it may name. Nothing is imported from elsewhere, and no config is made before its
    class is known to fit its slot. Raises ValueError for a name that does not, an unknown or missing field and a value
    of the wrong type.
    """
    if not isinstance(node, dict):
        raise ValueError(f"holds a {type(node).__name__} where a {slot.__name__} belongs")
    try:
        cls = config_class(node.get("_target_"), within)
    except ValueError as error:
        raise ValueError(f"names {str(node.get('_target_'))[:80]!r}: {error}") from None
    if not issubclass(cls, slot):
        raise ValueError(f"names a {cls.__name__} where a {slot.__name__} belongs")
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in node.items():
        if key == "_target_":
            continue
        if key not in hints:
            raise ValueError(f"{cls.__name__} has no field {key[:80]!r}")
        values[key] = _member(value, hints[key], within)
        if not _fits(values[key], hints[key]):
            raise ValueError(f"{cls.__name__}.{key} holds a {type(value).__name__}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


def _member(value: Any, hint: Any, within: Sequence[str]) -> Any:
    """Return a field's value, with the configs in it made; what does not fit the field is left for _fits()."""
    if isinstance(value, dict) and typing.get_origin(hint) is dict:
        return {key: _member(item, typing.get_args(hint)[1], within) for key, item in value.items()}
    slots = [option for option in typing.get_args(hint) or (hint,) if dataclasses.is_dataclass(option)]
    if isinstance(value, dict) and slots:
        return rebuild(value, typing.cast(type, slots[0]), within)
    return value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a rebuilt value is of a field's type (int passes for float; members of dicts are checked)."""
    if typing.get_origin(hint) is dict:
        member = typing.get_args(hint)[1]
        return isinstance(value, dict) and all(_fits(item, member) for item in value.values())
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(item, typing.get_args(hint)[0]) for item in value)
    options = typing.get_args(hint) or (hint,)
    return any(
        type(value) in (int, float)
        if option is float
        else type(value) is option
        or (dataclasses.is_dataclass(option) and isinstance(value, typing.cast(type, option)))
        for option in options
    )
