"""From a composed tree to dataclasses: each node names its class, each error the full key and the value."""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf.classes import config_class
from golf.errors import UserError
from golf.suggestions import did_you_mean, means_null


def typed(node: Any, path: str = "", cls: type | None = None) -> Any:
    """Turn a resolved container into the dataclass that it names.

    node: nested dicts, lists and primitives; a dict with `_target_` names its dataclass by import path; what is a
    dataclass already stays. cls: what it has to be; no class is made before it is known to fit.

    Raises UserError that begins with the full key for an unknown or missing key, a wrong type, a wrong kind of object
    in a slot, and whatever a dataclass's own __post_init__ refuses (its messages begin with `field=value`).
    """
    if dataclasses.is_dataclass(node) and cls is not None and not isinstance(node, cls):
        raise _no_part(path, _short(node), cls)
    if not isinstance(node, dict):
        return node
    items = {key: value for key, value in node.items() if key != "_target_"}
    if "_target_" in node:
        named = _config_class(node["_target_"], path)
        if cls is not None and not issubclass(named, cls):
            raise _no_part(path, named.__name__, cls)
        cls = named
    elif cls is not None and cls.__subclasses__():
        raise UserError(
            f"{path}: names no _target_; choose a {cls.__name__}, e.g. one of conf/{path.replace('.', '/')}/"
        )
    if cls is None:
        raise UserError(f"{path}: names no _target_; name a config dataclass")
    _check_keys(cls, items, path)
    return _build(cls, items, path)


def _no_part(path: str, given: str, kind: type) -> UserError:
    return UserError(f"{path}={given}: must be a {kind.__name__}; name one as its _target_")


def _values(node: Any, path: str) -> Any:
    """Return nested lists and dicts of primitives; what is null in a dict is absent.

    No part may stand in them, and no ${...}: composing fills those in, and a file of somebody's run has none.
    """
    if isinstance(node, str) and "${" in node:
        raise UserError(f"{path}={node}: holds a ${{...}} that nothing fills in here; write what it stands for")
    if isinstance(node, list):
        return [_values(item, f"{path}[{i}]") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if "_target_" in node:
        raise UserError(
            f"{path}._target_={_short(node['_target_']).strip(chr(39))}: no part belongs here; give a value"
        )
    return {key: _values(value, _join(path, key)) for key, value in node.items() if value is not None}


def _parts(node: Any, path: str, kind: type) -> dict[str, Any]:
    """Return parts by name; what is null is absent."""
    made = {}
    for place, name, value in _named(node, path):
        _check_null(value, kind | None, place)
        if not ((isinstance(value, dict) and "_target_" in value) or dataclasses.is_dataclass(value)):
            raise _no_part(place, _short(value), kind)
        made[name] = typed(value, place, kind)
    return made


def _build(cls: type, items: dict[str, Any], path: str) -> Any:
    """Make an object of `cls` from its checked parts and its primitives.

    A value of exactly the field's type stays as it is; omegaconf converts and checks the others.
    """
    hints, own = _hints(cls), inspect.get_annotations(cls)
    ready: dict[str, Any] = {}  # what the constructor gets as it is
    odd: dict[str, Any] = {}  # what omegaconf has to convert
    # its own fields before inherited ones: the data of a run before the model, whose vocabulary is the data's
    present = [item.name for item in dataclasses.fields(cls) if item.name in items]
    for key in sorted(present, key=lambda name: name not in own):
        where, value = _join(path, key), items[key]
        if value == MISSING:
            raise UserError(f"{where}={MISSING}: is not set; give a value, or choose an option of its group")
        kind, many = _slot(hints[key])
        if kind is not None and (isinstance(value, dict) or dataclasses.is_dataclass(value)):
            ready[key] = _parts(value, where, kind) if many else typed(value, where, kind)
            continue
        value = _values(value, where)
        _check_null(value, hints[key], where)
        if (hints[key] is bool) != isinstance(value, bool):  # omegaconf would turn one into the other
            raise UserError(f"{where}={_short(value)}: it takes {_type_name(hints[key])}")
        exact = _exact(value, hints[key])
        (odd if exact is _ODD else ready)[key] = value if exact is _ODD else exact
    if odd:
        ready |= _converted(cls, odd, path)
    try:
        return cls(**ready)
    except (TypeError, ValueError) as error:
        raise UserError(_join(path, str(error).splitlines()[0])) from None


def _check_null(value: Any, hint: Any, where: str) -> None:
    """Raise UserError for a text such as None where a value, or a member of a dict or list, can be null."""
    options = typing.get_args(hint)
    if isinstance(value, dict) and typing.get_origin(hint) is dict:
        for key, item in value.items():
            _check_null(item, options[1], _join(where, str(key)))
    elif isinstance(value, list) and typing.get_origin(hint) is list:
        for i, item in enumerate(value):
            _check_null(item, options[0], f"{where}[{i}]")
    elif types.NoneType in options and means_null(value):
        raise UserError(f"{where}={value}: is a text; write {where}=null for none, or another text")


def _converted(cls: type, odd: dict[str, Any], path: str) -> dict[str, Any]:
    """Values of fields as omegaconf converts them. Raises UserError for one that does not fit its field."""
    schema = OmegaConf.structured(cls)
    for key, value in odd.items():
        if isinstance(value, float) and _takes_text(_hints(cls)[key]):  # its digits are no longer those that were typed
            raise UserError(f"{_join(path, key)}={value}: is a number, and it takes a text; quote it, '\"1e3\"'")
        try:
            schema[key] = value
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            takes = _type_name(_hints(cls)[key])
            raise UserError(f"{_join(path, key)}={_short(value)}: {reason}; it takes {takes}") from None
    try:
        primitives = OmegaConf.to_container(OmegaConf.masked_copy(schema, list(odd)), resolve=False)
    except OmegaConfBaseException as error:
        raise UserError(_join(path, str(error).splitlines()[0])) from None
    return typing.cast(dict[str, Any], primitives)


_hints = functools.cache(typing.get_type_hints)


_PRIMITIVES = (int, float, str, bool, types.NoneType)
_ODD = object()


def _exact(value: Any, hint: Any) -> Any:
    """Return a value as a field of this type holds it; _ODD where omegaconf has to convert it, or to refuse it.

    A whole number is a float's, a dict or list of such values is a copy.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if type(value) in options and type(value) in _PRIMITIVES:
        return value
    if type(value) is int and float in options and abs(value) < 2**53:
        return float(value)
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if kind is dict and type(value) is dict and inner[0] is str and all(type(key) is str for key in value):
        members = {key: _exact(item, inner[1]) for key, item in value.items()}
        return _ODD if any(item is _ODD for item in members.values()) else members
    if kind is list and type(value) is list:
        items = [_exact(item, inner[0]) for item in value]
        return _ODD if any(item is _ODD for item in items) else items
    return _ODD


def _named(parts: dict[Any, Any], path: str) -> Iterator[tuple[str, str, Any]]:
    """The key, the name and the node of each member of a dict of parts that is not null."""
    for name, part in parts.items():
        if not isinstance(name, str):
            raise UserError(f"{path}.{name}={_short(part)}: a name is text; put it in quotes")
        if part is not None:
            yield f"{path}.{name}", name, part


def _config_class(target: Any, path: str) -> type:
    """The config dataclass that a node names by its import path."""
    try:
        return config_class(target)
    except ValueError as error:
        raise UserError(f"{path}._target_={_short(target).strip(chr(39))}: {error}") from None


def _check_keys(cls: type, items: dict[str, Any], path: str) -> None:
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key in items:
        if key not in fields:
            given = f"{_join(path, key)}={_short(items[key])}"
            raise UserError(
                f"{given}: {cls.__name__} has no such key; {did_you_mean(str(key), fields)}it has {', '.join(fields)}"
            )
    for key, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and key not in items:
            raise UserError(f"{_join(path, key)}: missing; {cls.__name__} needs it")


def _slot(hint: Any) -> tuple[type | None, bool]:
    """(the dataclass that a field's type names, if any; whether the field holds a dict of them by name)."""
    if typing.get_origin(hint) is dict:
        return _slot(typing.get_args(hint)[1])[0], True
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    classes = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
    return (classes[0] if classes else None), False


def _takes_text(hint: Any) -> bool:
    """Whether a field holds texts and no numbers."""
    options = set(typing.get_args(hint) or (hint,))
    return str in options and not {int, float} & options


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _short(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
