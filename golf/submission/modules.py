"""golf's own source as definitions and references: what a top-level name is, and which names and attributes its code
reads. Nothing is run; the bundler follows these."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = "golf"
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


@dataclass(frozen=True, slots=True)
class Name:
    """A top-level name of one of golf's modules."""

    module: str
    name: str


@dataclass(frozen=True, slots=True, order=True)
class External:
    """Something imported from outside golf. name: None where the module itself is imported."""

    module: str
    name: str | None


@dataclass(frozen=True, slots=True)
class Member:
    """A module of golf, imported as a whole."""

    module: str


Target = Name | External | Member


@dataclass(frozen=True, slots=True)
class Reference:
    """A place in the source that reads a name of its module. hidden: names that the functions around it bind."""

    node: ast.expr
    target: Name | External
    hidden: frozenset[str]


@dataclass(slots=True)
class Code:
    """What one piece of code reads: names, and attributes of anything. annotations are listed, not read."""

    references: list[Reference] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    annotations: list[tuple[ast.AST, ast.expr, frozenset[str]]] = field(default_factory=list)


@dataclass(slots=True)
class Definition:
    """A statement that binds top-level names. attached: it names nothing of its own and belongs to what it reads."""

    module: "Module"
    node: ast.stmt
    names: list[str]
    attached: bool = False


class Module:
    """One file: its definitions in order, and what its imports bind."""

    def __init__(self, name: str):
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None, name
        self.name, self.source = name, Path(spec.origin).read_text()
        self.lines = self.source.splitlines(keepends=True)
        self.tree = ast.parse(self.source)
        self.imports: dict[str, Target] = {}
        self.definitions: list[Definition] = []
        self.by_name: dict[str, list[Definition]] = {}
        for node in self.tree.body:
            self._take(node)

    @property
    def summary(self) -> str:
        """The first sentence of the file's docstring."""
        text = " ".join((ast.get_docstring(self.tree) or self.name).split())
        return text.split(". ")[0].rstrip(".")

    def _take(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.imports |= imported(node)
            return
        names = list(bound(node))
        decorators = getattr(node, "decorator_list", [])
        attached = isinstance(node, ast.Expr) or (names == ["_"] and bool(decorators))
        definition = Definition(self, node, [] if attached else names, attached)
        if _is_text(node) or _is_door(node):
            return
        self.definitions.append(definition)
        for name in definition.names:
            self.by_name.setdefault(name, []).append(definition)

    def resolve(self, name: str) -> Target | None:
        """What a global name of this module is; None for builtins."""
        if name in self.by_name:
            return Name(self.name, name)
        return self.imports.get(name)

    def depends_on(self) -> set[str]:
        """Modules of golf that it imports."""
        return {t.module for t in self.imports.values() if isinstance(t, Name | Member)}


@cache
def module(name: str) -> Module:
    """A module of golf, read once."""
    return Module(name)


def real(target: Name) -> Name:
    """Where a name is defined, through modules that pass it on."""
    found = module(target.module).resolve(target.name)
    if isinstance(found, Name) and found != target:
        return real(found)
    assert found is not None, f"{target} is not defined"
    return target


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_door(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, Target]:
    """alias -> what it stands for."""
    found: dict[str, Target] = {}
    for alias in node.names:
        if isinstance(node, ast.Import):
            head = alias.name.split(".")[0]
            assert head != PACKAGE, "golf imports its own modules with from"
            found[alias.asname or head] = External(alias.name, None)
            continue
        origin = node.module or ""
        name = alias.asname or alias.name
        if origin.split(".")[0] != PACKAGE:
            found[name] = External(origin, alias.name)
        elif find_spec(f"{origin}.{alias.name}") if _is_package(origin) else None:
            found[name] = Member(f"{origin}.{alias.name}")
        else:
            found[name] = Name(origin, alias.name)
    return found


def _is_package(name: str) -> bool:
    spec = find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def bound(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds in its own scope, nested statements included."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
        yield node.id
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from imported(node)
    if isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name
    if isinstance(node, ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name
    for child in ast.iter_child_nodes(node):
        yield from bound(child)


def locals_of(node: Function) -> frozenset[str]:
    """Names that a function binds: its arguments, and what its body stores but for `global` ones."""
    arguments = node.args
    names = {a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]}
    names |= {a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None}
    body = node.body if isinstance(node.body, list) else [node.body]
    for statement in body:
        names |= set(bound(statement))
    free = {name for part in ast.walk(node) if isinstance(part, ast.Global) for name in part.names}
    return frozenset(names - free)


def reads(owner: Module, nodes: list[Any]) -> Code:
    """What statements or expressions at the top level of `owner`, or members of its classes, read."""
    code = Code()
    for node in nodes:
        _Reader(owner, code).visit(node)
    return code


class _Reader(ast.NodeVisitor):
    def __init__(self, owner: Module, code: Code):
        self.owner, self.code = owner, code
        self.hidden: frozenset[str] = frozenset()

    def visit_Name(self, node: ast.Name) -> None:
        target = None if node.id in self.hidden else self.owner.resolve(node.id)
        if isinstance(target, Name | External):
            self._refer(node, target)
        assert not isinstance(target, Member), f"{self.owner.name}:{node.lineno}: {node.id} is used as a value"

    def _refer(self, node: ast.expr, target: Name | External) -> None:
        target = real(target) if isinstance(target, Name) else target
        self.code.references.append(Reference(node, target, self.hidden))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name) and node.value.id not in self.hidden:
            target = self.owner.resolve(node.value.id)
            if isinstance(target, Member):
                self._refer(node, Name(target.module, node.attr))
                return
        self.code.attributes.add(node.attr)
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr"):
            self.code.attributes |= {str(a.value) for a in node.args if isinstance(a, ast.Constant)}
        self.generic_visit(node)

    def visit_MatchClass(self, node: ast.MatchClass) -> None:
        self.code.attributes |= set(node.kwd_attrs)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.code.annotations.append((node, node.annotation, self.hidden))
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        if node.annotation is not None:
            self.code.annotations.append((node, node.annotation, self.hidden))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in [*node.decorator_list, *node.bases, *node.keywords, *node.body]:
            self.visit(part)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for part in [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
            self.visit(part)
        if node.returns is not None:
            self.code.annotations.append((node, node.returns, self.hidden))
        outer = self.hidden
        arguments = node.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            self.visit(argument)
        for extra in (arguments.vararg, arguments.kwarg):
            if extra is not None:
                self.visit(extra)
        self.hidden = outer | locals_of(node)
        for statement in node.body:
            self.visit(statement)
        self.hidden = outer

    def visit_Lambda(self, node: ast.Lambda) -> None:
        for default in [*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)]:
            self.visit(default)
        outer, self.hidden = self.hidden, self.hidden | locals_of(node)
        self.visit(node.body)
        self.hidden = outer

    def _comprehension(self, node: Any) -> None:
        outer, self.hidden = self.hidden, self.hidden | frozenset(bound(node))
        self.generic_visit(node)
        self.hidden = outer

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension
