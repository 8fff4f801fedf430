"""Which of golf's code a recipe can reach: from the script and the recipe's config classes, by name.

A top-level name is live when live code reads it. A method is live when its class is and some live code reads an
attribute of its name (or the interpreter or a base class from outside golf calls it). Annotations keep nothing alive.
Checks of a config's values are left out: the recipe has passed them.
"""

import ast
import copy
import dataclasses
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from golf.config import Recipe
from golf.nodes import configs
from golf.submission.edits import Edits, first_line
from golf.submission.fold import Switches, fold, is_decided, switches_of
from golf.submission.modules import Code, Definition, Module, Name, module, reads

CHECK = "__post_init__"
SCRIPT = "golf.submission.script"
# What stands in for code that a bundle has no use for.
INSTEAD = {
    Name("golf.nodes", "target_of"): Name("golf.submission.inline", "target_of"),
}
Method = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class Live:
    """A definition in use: its tree without dead branches and members, what that reads, how its text changes."""

    definition: Definition
    node: ast.stmt
    edits: Edits
    codes: list[Code] = field(default_factory=list)
    sleeping: list[Method] = field(default_factory=list)

    @property
    def module(self) -> Module:
        return self.definition.module

    @property
    def is_class(self) -> bool:
        return isinstance(self.node, ast.ClassDef)

    def finish(self) -> None:
        """Cut out the members that nobody called."""
        if not isinstance(self.node, ast.ClassDef):
            return
        for method in self.sleeping:
            self.edits.drop_lines(first_line(method, self.module.lines), method.end_lineno or 0)
        self.node.body = [part for part in self.node.body if part not in self.sleeping]
        if not self.node.body:
            last = self.node.end_lineno or 0
            self.edits.replace(self.edits.starts[last], self.edits.starts[last], "    pass\n")


class Reach:
    """Everything live, found once."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.live: dict[int, Live] = {}
        self.names: set[Name] = set()
        self.attributes: set[str] = set()
        self._todo: list[Name] = [Name(SCRIPT, "main")]
        self._todo += sorted({place_of(type(config)) for _, config in configs(recipe)}, key=str)
        while self._todo:
            self._take(self._todo.pop())
            if not self._todo:
                self._attach()
        for one in self.live.values():
            one.finish()

    def __iter__(self) -> Iterator[Live]:
        return iter(self.live.values())

    def _take(self, name: Name) -> None:
        name = INSTEAD.get(name, name)
        if name in self.names:
            return
        self.names.add(name)
        for definition in module(name.module).by_name[name.name]:
            self._wake(definition)

    def _wake(self, definition: Definition) -> None:
        if id(definition) in self.live:
            return
        for name in definition.names:
            self.names.add(Name(definition.module.name, name))
        switches = self._switches(definition)
        node = parsed_anew(definition) if is_decided(definition.node, switches) else copy.copy(definition.node)
        one = Live(definition, node, Edits(definition.module.lines))
        self.live[id(definition)] = one
        fold(one.node, self.recipe, switches, one.edits)
        if not isinstance(one.node, ast.ClassDef):
            self._read(one, [one.node])
            return
        methods = [part for part in one.node.body if isinstance(part, Method)]
        called = _called_from_outside(one)
        one.sleeping = [method for method in methods if not (method.name in called or method.name in self.attributes)]
        awake = [part for part in one.node.body if part not in one.sleeping]
        self._read(one, [*one.node.decorator_list, *one.node.bases, *one.node.keywords, *awake])

    def _switches(self, definition: Definition) -> Switches | None:
        """What is known of a config class's fields; None for everything else."""
        if not isinstance(definition.node, ast.ClassDef):
            return None
        cls = getattr(importlib.import_module(definition.module.name), definition.node.name)
        own = dataclasses.is_dataclass(cls) and definition.node.name.endswith(
            "Config"
        )  # others are made by code, of any value
        return switches_of(cls, self.recipe) if own else None

    def _read(self, one: Live, nodes: Iterable[Any]) -> None:
        code = reads(one.module, list(nodes))
        one.codes.append(code)
        for reference in code.references:
            if isinstance(reference.target, Name):
                self._todo.append(reference.target)
        new, self.attributes = code.attributes - self.attributes, self.attributes | code.attributes
        if new:
            self._call(new)

    def _call(self, names: set[str]) -> None:
        for one in list(self.live.values()):
            woken = [method for method in one.sleeping if method.name in names]
            if woken:
                one.sleeping = [method for method in one.sleeping if method not in woken]
                self._read(one, woken)

    def _attach(self) -> None:
        """Wake statements that complete what is live, such as the registration of an operator's fake."""
        for found in {one.module.name: one.module for one in self}.values():
            for definition in found.definitions:
                if definition.attached and id(definition) not in self.live:
                    node: Any = definition.node
                    head = reads(found, node.decorator_list if isinstance(node, Method) else [node])
                    if all(r.target in self.names for r in head.references if isinstance(r.target, Name)):
                        self._wake(definition)


def parsed_anew(definition: Definition) -> ast.stmt:
    """A tree of one's own with the places of the first. Not by copy.deepcopy: all trees share one ast.Load, and once a
    minifier has hung its notes on that, a copy of any tree is one of the minified script too."""
    lines, node = definition.module.lines, definition.node
    first = min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])
    return ast.parse("\n" * (first - 1) + "".join(lines[first - 1 : node.end_lineno])).body[0]


def place_of(cls: type) -> Name:
    return Name(cls.__module__, cls.__qualname__)


def _called_from_outside(one: Live) -> set[str]:
    """Methods that run unseen: special ones, and those that a base class from outside golf has."""
    (name,) = one.definition.names
    cls = getattr(importlib.import_module(one.module.name), name)
    outside = [base for base in cls.__mro__ if base.__module__.split(".")[0] != "golf" and base is not object]
    found = {member for base in outside for member in dir(base)}
    assert isinstance(one.node, ast.ClassDef)
    methods = [part for part in one.node.body if isinstance(part, Method)]
    special = {m.name for m in methods if m.name.startswith("__") and m.name.endswith("__")}
    checks = {m.name for m in methods if m.name == CHECK and not _assigns(m)}
    return (found | special) - checks


def _assigns(method: Method) -> bool:
    """Whether a check does more than check."""
    return any(isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) for part in ast.walk(method))
