"""One file out of a recipe: the code that it reaches, in the order of the imports, with the recipe as a literal."""

import ast
import builtins
import dataclasses
from collections import defaultdict
from typing import Any

from golf.config import Recipe
from golf.errors import UserError
from golf.nodes import configs
from golf.submission.edits import first_line
from golf.submission.live import INSTEAD, SCRIPT, Live, Reach, place_of
from golf.submission.modules import External, Module, Name, Reference, module, reads

WIDTH = 120
ARTIFACT_PACKAGES = ("golf.models.", "golf.quant.", "golf.artifact.")
TABLE, LITERAL = Name("golf.submission.inline", "TARGETS"), Name(SCRIPT, "RECIPE")


def recipe_of(run: Recipe) -> Recipe:
    """What a run is made of, without where and how it was run."""
    return Recipe(**{item.name: getattr(run, item.name) for item in dataclasses.fields(Recipe)})


def bundle(run: Recipe, title: str) -> str:
    """The source of a script that does what golf does for this recipe. title: what the file says it is."""
    recipe = recipe_of(run)
    return Writer(recipe, Reach(recipe)).text(title)


class Writer:
    """Names of the flat file, and its text."""

    def __init__(self, recipe: Recipe, reach: Reach):
        self.recipe = recipe
        self.live = _in_order(reach)
        self.ids = {id(one.definition) for one in self.live}
        self.aliases = self._aliases()
        self.names = self._names()

    # ---------------------------------------------------------------- names

    def _references(self) -> list[tuple[Live, Reference]]:
        return [(one, reference) for one in self.live for code in one.codes for reference in code.references]

    def _aliases(self) -> dict[External, str]:
        """How each import from outside is called: as golf calls it; two of one alias get their modules' names too."""
        found: dict[External, str] = {}
        for one in self.live:
            for alias, target in one.module.imports.items():
                if isinstance(target, External):
                    found.setdefault(target, alias)
        by_alias: dict[str, list[External]] = defaultdict(list)
        for target, alias in sorted(found.items(), key=lambda item: (item[0].module, item[0].name or "")):
            root = target.module.split(".")[0] if target.name is None and alias != target.module else None
            if not any(root is not None and other.module.split(".")[0] == root for other in by_alias[alias]):
                found[target] = alias if not by_alias[alias] else f"{target.module.replace('.', '_')}_{alias}"
            by_alias[alias].append(target)
        return found

    def _names(self) -> dict[Name, str]:
        """Top-level names of the flat file. What stands in the way of another name is named after its module too."""
        forbidden: dict[Name, set[str]] = defaultdict(set)
        for _, reference in self._references():
            if isinstance(reference.target, Name):
                forbidden[INSTEAD.get(reference.target, reference.target)] |= reference.hidden
        taken = set(dir(builtins)) | set(self.aliases.values())
        names: dict[Name, str] = {}
        for one in self.live:
            for own in one.definition.names:
                name, tail = own, one.module.name.rsplit(".", 1)[-1]
                while name in taken or name in forbidden[Name(one.module.name, own)] - {own}:
                    name = f"{name.rstrip('_')}_{tail}"
                taken.add(name)
                names[Name(one.module.name, own)] = name
        return names

    def name_of(self, target: Name | External) -> str | None:
        """A target's name in the flat file; None where it is not there."""
        if isinstance(target, External):
            return self.aliases.get(target)
        return self.names.get(INSTEAD.get(target, target))

    # ---------------------------------------------------------------- text

    def text(self, title: str) -> str:
        """The whole file."""
        sections: list[str] = []
        at: Module | None = None
        for one in self.live:
            if one.module is not at:
                at = one.module
                sections.append(f"\n\n# {'-' * 64} {at.name.removeprefix('golf.')}: {at.summary}\n")
            sections.append("\n\n" + self._definition(one) if _tall(one) else self._definition(one))
        body = "".join(sections)
        tail = f'\n\nif __name__ == "__main__":\n    {self.names[Name(SCRIPT, "main")]}()\n'
        text = f'"""{title}"""\n\n{self._imports(body)}{body}{tail}'
        try:
            ast.parse(text)
        except SyntaxError as error:
            near = "\n".join(text.splitlines()[max(0, (error.lineno or 1) - 4) : (error.lineno or 1) + 2])
            raise AssertionError(f"the bundle is no Python: {error}\n{near}") from error
        return text

    def _definition(self, one: Live) -> str:
        """A definition's text, with the names of the flat file."""
        owned = {Name(one.module.name, name) for name in one.definition.names}
        if LITERAL in owned:
            return f"{self.names[LITERAL]} = {self._literal(self.recipe, 0)}\n"
        if TABLE in owned:
            return self._table()
        edits, node = one.edits, one.node
        for code in one.codes:
            for reference in code.references:
                name = self.name_of(reference.target)
                assert name is not None and name not in reference.hidden, (one.definition.names, reference)
                if ast.unparse(reference.node) != name:
                    edits.put(reference.node, name)
            for owner, annotation, hidden in code.annotations:
                self._annotate(one, owner, annotation, hidden)
        for name in one.definition.names:
            if (new := self.names[Name(one.module.name, name)]) != name:
                self._rename(one, name, new)
        return edits.applied(first_line(node, one.module.lines), node.end_lineno or 0).strip("\n") + "\n"

    def _rename(self, one: Live, name: str, new: str) -> None:
        node = one.node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            line = one.module.lines[node.lineno - 1]
            start = one.edits.starts[node.lineno - 1] + line.index(f" {name}") + 1
            one.edits.replace(start, start + len(name), new)
            return
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id == name and isinstance(part.ctx, ast.Store):
                one.edits.put(part, new)

    def _annotate(self, one: Live, owner: Any, annotation: ast.expr, hidden: frozenset[str]) -> None:
        """Keep an annotation whose names are all in the file; else a field has object in
        their place, and the rest of the code none."""
        edits = one.edits
        texts = [part.value for part in ast.walk(annotation) if isinstance(part, ast.Constant)]
        quoted = isinstance(annotation, ast.Constant) and isinstance(annotation.value, str)
        read = reads(one.module, [ast.parse(str(texts[0])) if quoted else annotation])
        names = [(reference, self.name_of(reference.target)) for reference in read.references]
        known = all(name is not None for _, name in names)
        known = known and (quoted or not any(isinstance(text, str) for text in texts))
        same = all(ast.unparse(reference.node) == name for reference, name in names)
        if known and (same or not quoted):
            for reference, name in names:
                if name != ast.unparse(reference.node):
                    edits.put(reference.node, str(name))
        elif isinstance(owner, ast.arg):
            edits.replace(edits.begin(owner) + len(owner.arg), edits.end(annotation))
        elif isinstance(owner, ast.AnnAssign) and owner.value is not None and not one.is_class:
            edits.replace(edits.end(owner.target), edits.end(annotation))
        elif isinstance(owner, ast.AnnAssign):
            for reference, name in names:
                edits.put(reference.node, name or "object")
        else:
            begin = edits.begin(annotation)
            arrow = "".join(edits.lines).rindex("->", 0, begin)
            edits.replace(arrow - 1, edits.end(annotation))

    def _literal(self, value: Any, depth: int) -> str:
        """A value of a recipe as source, broken over lines where it is long."""
        inner, outer = "    " * (depth + 1), "    " * depth
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            items = [(f"{f.name}=", getattr(value, f.name)) for f in dataclasses.fields(value)]
            opening, closing = f"{self.names[place_of(type(value))]}(", ")"
        elif isinstance(value, dict):
            items, opening, closing = [(f"{key!r}: ", item) for key, item in value.items()], "{", "}"
        elif isinstance(value, list | tuple):
            items, (opening, closing) = [("", item) for item in value], ("[]" if isinstance(value, list) else "()")
        elif value is None or isinstance(value, bool | int | float | str):
            return repr(value).replace("inf", 'float("inf")') if isinstance(value, float) else repr(value)
        else:
            raise UserError(f"a recipe holds a {type(value).__name__}, which can't be written as source")
        parts = [head + self._literal(item, depth + 1) for head, item in items]
        short = opening + ", ".join(parts) + ("," if isinstance(value, tuple) and len(parts) == 1 else "") + closing
        if len(short) + 4 * depth <= WIDTH - 24 and "\n" not in short:
            return short
        return opening + "\n" + "".join(f"{inner}{part},\n" for part in parts) + outer + closing

    def _table(self) -> str:
        """The classes that an artifact may name."""
        classes = {place_of(type(config)) for _, config in configs(self.recipe)}
        found = sorted((c for c in classes if c.module.startswith(ARTIFACT_PACKAGES)), key=str)
        lines = [f'    {self.names[place]}: "{place.module}.{place.name}",\n' for place in found]
        return f"{self.names[TABLE]} = {{\n{''.join(lines)}}}\n"

    def _imports(self, body: str) -> str:
        """The imports from outside that the text reads."""
        used = {part.id for part in ast.walk(ast.parse(body)) if isinstance(part, ast.Name)}
        plain, by_module = set(), defaultdict(set)
        for target, alias in self.aliases.items():
            if alias not in used:
                continue
            if target.name is None:
                known = alias in (target.module, target.module.split(".")[0])
                plain.add(f"import {target.module}" + ("" if known else f" as {alias}"))
            else:
                by_module[target.module].add(target.name if alias == target.name else f"{target.name} as {alias}")
        lines = sorted(plain) + [
            f"from {name} import {', '.join(sorted(by_module[name]))}" for name in sorted(by_module)
        ]
        return "\n".join(lines) + "\n"


def _tall(one: Live) -> bool:
    return isinstance(one.node, ast.ClassDef | ast.FunctionDef)


def _in_order(reach: Reach) -> list[Live]:
    """Definitions by module, what is imported before what imports it, each module in its own order; the two that the
    bundler writes stand behind all classes."""
    by_module: dict[str, list[Live]] = defaultdict(list)
    for one in reach:
        by_module[one.module.name].append(one)
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str) -> None:
        if name not in seen:
            seen.add(name)
            for below in sorted(module(name).depends_on()):
                if below != SCRIPT:
                    visit(below)
            order.append(name)

    for name in sorted(by_module):
        if name not in (TABLE.module, SCRIPT):
            visit(name)
    found = []
    for name in [*order, TABLE.module, SCRIPT]:
        found += sorted(by_module.get(name, []), key=lambda one: one.node.lineno)
    return found
