"""Branches that a recipe decides: in functions that take the recipe, and in methods of its configs, tests of their
values are settled before the code is written out, and what can't run is left out."""

import ast
import dataclasses
from typing import Any

from golf.config import Recipe
from golf.nodes import configs
from golf.submission.edits import Edits

RECIPE = Recipe.__name__
UNKNOWN = object()


class Switches:
    """A config of one class, of which only the fields are known that are True, or False, wherever it is used."""

    def __init__(self, known: dict[str, bool]):
        self.known = known

    def __getattr__(self, name: str) -> Any:
        return self.known.get(name, UNKNOWN)


def switches_of(cls: Any, recipe: Recipe) -> Switches:
    """Of a config class: bool fields that agree in all of the recipe's configs of it, and with what the class takes by
    itself. No code changes such a field later."""
    found = [config for _, config in configs(recipe) if isinstance(config, cls)]
    known = {}
    for item in [item for item in dataclasses.fields(cls) if item.type in (bool, "bool")]:
        values: set[Any] = {getattr(config, item.name) for config in found}
        values |= {item.default} - {dataclasses.MISSING}
        if len(values) == 1:
            known[item.name] = values.pop()
    return Switches(known)


def is_decided(node: ast.stmt, switches: Switches | None) -> bool:
    """Whether fold() may change it."""
    arguments = [part for part in ast.walk(node) if isinstance(part, ast.arg)]
    return bool(switches and switches.known) or any(_is_recipe(argument.annotation) for argument in arguments)


def fold(node: ast.stmt, recipe: Recipe, switches: Switches | None, edits: Edits) -> None:
    """Cut decided branches out of every function of a definition, in its tree (places kept) and in its text. switches:
    what is known of self in its methods, if it is a config's class."""
    methods = node.body if isinstance(node, ast.ClassDef) else []
    for function in [part for part in ast.walk(node) if isinstance(part, ast.FunctionDef)]:
        names: dict[str, Any] = {a.arg: recipe for a in function.args.args if _is_recipe(a.annotation)}
        if switches is not None and function in methods:
            names |= {a.arg: switches for a in function.args.args[:1] if a.arg == "self"}
        if names:
            folder = _Folder(names, edits)
            function.body = folder.block(function.body)


def _is_recipe(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == RECIPE


class _Folder(ast.NodeTransformer):
    def __init__(self, names: dict[str, Any], edits: Edits):
        self.names, self.edits = names, edits

    def block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        kept: list[ast.stmt] = []
        for index, statement in enumerate(body):
            kept += self._decided(statement) if isinstance(statement, ast.If) else [self._inside(statement)]
            if kept and isinstance(kept[-1], ast.Return | ast.Raise) and body[index + 1 :]:
                self.edits.drop_lines(body[index + 1].lineno, body[-1].end_lineno or 0)
                break
        return kept

    def _inside(self, statement: ast.stmt) -> ast.stmt:
        for name in ("body", "orelse", "finalbody"):
            if isinstance(below := getattr(statement, name, None), list) and below:
                setattr(statement, name, self.block(below))
        for name, value in ast.iter_fields(statement):
            if isinstance(value, ast.expr):
                setattr(statement, name, self.visit(value))
        return statement

    def _decided(self, statement: ast.If) -> list[ast.stmt]:
        holds = truth(self.value(statement.test))
        if holds is UNKNOWN:
            statement.test = self.visit(statement.test)
            return [self._inside(statement)]
        chosen, last = (statement.body if holds else statement.orelse), statement.end_lineno or 0
        if not chosen:
            self.edits.drop_lines(statement.lineno, last)
            return []
        first = chosen[0].lineno
        is_elif = not holds and isinstance(chosen[0], ast.If) and chosen[0].col_offset == statement.col_offset
        assert not is_elif, f"line {statement.lineno}: fold() knows no elif"
        self.edits.replace(self.edits.starts[statement.lineno - 1], self.edits.starts[first - 1])
        stop = chosen[-1].end_lineno or 0
        if stop < last:
            self.edits.replace(self.edits.starts[stop], self.edits.starts[last])
        self.edits.dedent(first, stop, chosen[0].col_offset - statement.col_offset)
        return self.block(chosen)

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        holds = truth(self.value(node.test))
        if holds is UNKNOWN:
            return self.generic_visit(node)  # type: ignore[return-value]
        chosen = node.body if holds else node.orelse
        edits = self.edits
        edits.replace(edits.begin(node), edits.begin(chosen))
        edits.replace(edits.end(chosen), edits.end(node))
        return self.visit(chosen)

    def value(self, node: ast.expr) -> Any:
        """What an expression is for this recipe, or UNKNOWN."""
        match node:
            case ast.Name():
                return self.names.get(node.id, UNKNOWN)
            case ast.Constant():
                return node.value
            case ast.Attribute():
                owner = self.value(node.value)
                return UNKNOWN if owner is UNKNOWN else getattr(owner, node.attr)
            case ast.UnaryOp(op=ast.Not()):
                holds = truth(self.value(node.operand))
                return UNKNOWN if holds is UNKNOWN else not holds
            case ast.BoolOp():
                found = [truth(self.value(operand)) for operand in node.values]
                stops = isinstance(node.op, ast.Or)
                if stops in found:
                    return stops
                return UNKNOWN if UNKNOWN in found else not stops
            case ast.Compare(ops=[op], comparators=[right]):
                pair = self.value(node.left), self.value(right)
                if UNKNOWN in pair:
                    return UNKNOWN
                if isinstance(op, ast.Is | ast.IsNot):
                    return (pair[0] is pair[1]) == isinstance(op, ast.Is)
                if isinstance(op, ast.Eq | ast.NotEq) and isinstance(pair[0], str):
                    return (pair[0] == pair[1]) == isinstance(op, ast.Eq)
        return UNKNOWN


def truth(value: Any) -> Any:
    """True or False, or UNKNOWN: numbers decide nothing, since a run may change them."""
    return value if isinstance(value, bool) else False if value is None else UNKNOWN
