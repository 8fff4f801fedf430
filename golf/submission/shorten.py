"""Short names for attributes, methods, fields and keywords of a bundle: one name for one name, wherever it stands.

A name is kept where something outside could mean it: what an imported package has, what an artifact or a state_dict
holds, what is written in a string, what is a keyword of a call to the outside.
"""

import ast
import builtins
import importlib
import itertools
import keyword
import string
from collections import Counter
from collections.abc import Iterator

import torch

# Types of values from outside that the code handles, beside the modules that it imports.
FOREIGN = ("torch.Tensor", "torch.Generator", "torch.nn.Module", "torch.optim.Optimizer", "torch.Size", "torch.device",
           "torch.dtype", "numpy.ndarray", "numpy.random.Generator", "pathlib.Path", "hashlib._hashlib.HASH",
           "concurrent.futures.Future", "concurrent.futures.ThreadPoolExecutor", "struct.Struct", "threading.Thread",
           "torch.nn.Parameter", "collections.deque", "functools.partial",
           "sentencepiece.SentencePieceProcessor")  # fmt: skip
BUILTIN = (str, bytes, int, float, list, dict, set, frozenset, tuple, range, slice, type, object, BaseException)


def shorten(tree: ast.Module, kept: set[str]) -> ast.Module:
    """Rename in place. kept: names that an artifact holds."""
    own, counts = _own(tree), _counts(tree)
    outside = _outside(tree) | kept | _written(tree) | _in_modules(tree) | _foreign_keywords(tree, own)
    names = [name for name, _ in counts.most_common() if name in own - outside and len(name) > 2 and name[0] != "_"]
    taken = outside | set(counts) | _names(tree) | set(dir(builtins))
    fresh = (name for name in _short() if name not in taken and not keyword.iskeyword(name))
    _Renamer(dict(zip(names, fresh, strict=False))).visit(tree)
    return tree


def _short() -> Iterator[str]:
    letters = string.ascii_letters
    yield from ("".join(pair) for pair in itertools.product(letters, letters + string.digits))


def _own(tree: ast.Module) -> set[str]:
    """Names of methods and fields of the bundle's classes, and of its functions' arguments."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    found.add(part.name)
                elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                    found.add(part.target.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def _counts(tree: ast.Module) -> Counter[str]:
    return Counter(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def _names(tree: ast.Module) -> set[str]:
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return found | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


def _outside(tree: ast.Module) -> set[str]:
    """Attributes of everything that is imported, and of the kinds of values that the code gets from there."""
    found = {name for kind in BUILTIN for name in dir(kind)}
    modules = {"torch", "torch.nn", "torch.nn.functional", "numpy"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
            found |= {alias.name for alias in node.names}
    for name in modules:
        found |= set(dir(importlib.import_module(name)))
    for path in FOREIGN:
        module, _, name = path.rpartition(".")
        found |= set(dir(getattr(importlib.import_module(module), name, object)))
    return found | set(dir(torch.autograd.function.FunctionCtx)) | set(dir(torch.cuda))


def _written(tree: ast.Module) -> set[str]:
    """Words in string constants."""
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return {word for text in texts for word in "".join(c if c.isalnum() or c == "_" else " " for c in text).split()}


def _in_modules(tree: ast.Module) -> set[str]:
    """Attributes that classes with methods named forward give themselves: names in state_dicts."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.bases:
            stored = [p for p in ast.walk(node) if isinstance(p, ast.Attribute) and isinstance(p.ctx, ast.Store)]
            found |= {part.attr for part in stored}
    return found


def _foreign_keywords(tree: ast.Module, own: set[str]) -> set[str]:
    """Keywords of calls whose function may be from outside: anything but a name or a method of the bundle."""
    functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.keywords:
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called not in functions and called not in ("replace", "partial"):
                found |= {word.arg for word in node.keywords if word.arg is not None}
    return found


class _Renamer(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]):
        self.names = names
        self.level = 0

    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        self.generic_visit(node)
        node.attr = self.names.get(node.attr, node.attr)
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.keyword:
        self.generic_visit(node)
        node.arg = self.names.get(node.arg, node.arg) if node.arg else None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        names = [part for part in ast.walk(node.args) if isinstance(part, ast.arg) and part.arg in self.names]
        renamed = {part.arg for part in names}
        for part in names:
            part.arg = self.names[part.arg]
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and inner.id in renamed:
                inner.id = self.names[inner.id]
        self.generic_visit(node)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        for part in node.body:
            if isinstance(part, ast.FunctionDef):
                part.name = self.names.get(part.name, part.name)
            elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                part.target.id = self.names.get(part.target.id, part.target.id)
            elif isinstance(part, ast.Assign):
                for target in part.targets:
                    if isinstance(target, ast.Name):
                        target.id = self.names.get(target.id, target.id)
        self.generic_visit(node)
        return node
