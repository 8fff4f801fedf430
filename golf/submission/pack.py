"""A script made small: minified, compressed, and wrapped in a file that unpacks and runs itself."""

import ast
import io
import itertools
import lzma
import tokenize
from collections import defaultdict
from dataclasses import dataclass

import brotli
import python_minifier

from golf.errors import UserError

# A module has to be there where the file runs; lzma is in the standard library.
LZMA_FILTERS = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": lc, "lp": 0, "pb": pb}
    for lc in (2, 3, 4)
    for pb in (0, 2)
]
USER = UserError.__name__
KEEPS_ANNOTATIONS = ("custom_op", "register_fake")  # torch reads an operator's types from them
SETUP_CONTEXT = ["ctx", "inputs", "output"]  # torch gives them by name
PLAIN_DECORATORS = ("property", "staticmethod", "classmethod", "torch.no_grad()", "functools.cache", "contextmanager")


@dataclass(frozen=True, slots=True)
class Packed:
    """The file to ship, and the ways of counting it: the plain script, minified, and in each wrapper."""

    file: bytes
    coder: str
    raw_bytes: int
    minified_bytes: int
    sizes: dict[str, int]


def pack(source: str) -> Packed:
    """The smallest of the wrappers around the minified script."""
    small = minified(source)
    wrapped = {"lzma": wrap_lzma(small.encode()), "brotli": wrap_brotli(small.encode())}
    sizes = {name: len(file) for name, file in wrapped.items()}
    coder = min(sizes, key=lambda name: sizes[name])
    return Packed(wrapped[coder], coder, len(source.encode()), len(small.encode()), sizes)


def minified(source: str) -> str:
    """The same program without comments, docstrings and annotations, its names of one or two letters.

    Attributes keep their names, since artifacts and state_dicts hold them, and so do parameters that are given by name.
    """
    tree = without_unread(_Bare().visit(ast.parse(source)))
    mark_positional(tree)
    small = python_minifier.minify(
        ast.unparse(ast.fix_missing_locations(tree)),
        remove_literal_statements=True,
        remove_annotations=False,
        rename_locals=True,
        rename_globals=True,
        hoist_literals=False,  # a compressor does better with what is repeated
        preserve_globals=["main"],
    )
    return without_marks(small)


def without_marks(source: str) -> str:
    """Take the `/` out of every list of parameters."""
    lines = source.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for comma, slash in reversed(list(itertools.pairwise(tokens))):
        if (comma.string, slash.string) == (",", "/"):
            row = slash.start[0] - 1
            lines[row] = lines[row][: comma.start[1]] + lines[row][slash.end[1] :]
    return "".join(lines)


def mark_positional(tree: ast.Module) -> None:
    """A `/` behind the first parameters that no call gives by name: the minifier may rename them at once, where it
    would begin the function with `A=parameter`. Which calls a function's may be is told by its name; those of one that
    is passed around, or that torch calls, may be any but those of other modules."""
    calls = [part for part in ast.walk(tree) if isinstance(part, ast.Call)]
    called = {id(call.func) for call in calls}
    passed = {_name(part) for part in ast.walk(tree) if id(part) not in called} | {"forward"}
    classes = {part.name for part in ast.walk(tree) if isinstance(part, ast.ClassDef)}
    modules = {name.asname or name.name for part in tree.body if isinstance(part, ast.Import) for name in part.names}
    given: dict[str | None, set[str | None]] = defaultdict(set)
    for call in calls:
        if _root(call.func) not in modules - {"functools"}:  # whose partial() gives on what it is given
            given[_name(call.func)] |= {keyword.arg for keyword in call.keywords}
    to_functions = set().union(*(names for name, names in given.items() if name not in classes))
    to_any = set().union(*given.values())
    for function in _functions(tree):
        plain = all(ast.unparse(decorator) in PLAIN_DECORATORS for decorator in function.decorator_list)
        registered = [argument.arg for argument in function.args.args] == SETUP_CONTEXT
        if not plain or registered or None in given[function.name]:  # None: **
            continue
        names = to_functions if function.name in passed else given[function.name]
        names = to_any if function.name.startswith("__") else names
        arguments = function.args
        own = _before(arguments.args, names)
        arguments.posonlyargs, arguments.args = arguments.posonlyargs + own, arguments.args[len(own) :]


def _before(arguments: list[ast.arg], names: set[str | None]) -> list[ast.arg]:
    """Those before the first of these names."""
    return list(itertools.takewhile(lambda argument: argument.arg not in names, arguments))


def _name(node: ast.AST) -> str | None:
    """What is called, or spoken of: a name, or an attribute of whatever."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return _name(node)


def _functions(tree: ast.Module) -> list[ast.FunctionDef]:
    return [part for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)]


class _Bare(ast.NodeTransformer):
    """Takes out what only people read: annotations (operators keep theirs), the words of errors, methods that are there
    to be overridden, assertions, and checks of what is given (USER): the recipe has passed them."""

    def visit_If(self, node: ast.If) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        if _refuses(node.body):
            return node.orelse or ast.Pass()
        return node

    def visit_Try(self, node: ast.Try) -> ast.stmt | list[ast.stmt]:
        self.generic_visit(node)
        node.handlers = [handler for handler in node.handlers if not _refuses(handler.body)]
        return node if node.handlers or node.finalbody else [*node.body, *node.orelse]

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        if any(word in ast.unparse(decorator) for decorator in node.decorator_list for word in KEEPS_ANNOTATIONS):
            return node
        node.returns = None
        for argument in [part for part in ast.walk(node.args) if isinstance(part, ast.arg)]:
            argument.annotation = None
        node.body = node.body or [ast.Pass()]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        plain = "dataclass" not in "".join(map(ast.unparse, [*node.decorator_list, *node.bases]))
        plain = plain and "NamedTuple" not in "".join(map(ast.unparse, node.bases))
        body: list[ast.stmt] = []
        for part in node.body:
            if isinstance(part, ast.AnnAssign):
                body += _bare(part) if plain else [_typeless(part)]
            elif not _is_abstract(part):
                body.append(self.visit(part))
        node.body = [part for part in body if part is not None] or [ast.Pass()]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> list[ast.stmt]:
        self.generic_visit(node)
        return _bare(node)

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        return ast.Pass()

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        """Which error, and of its words what is computed stays out too."""
        if isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            words = [part for part in node.exc.args if not isinstance(part, ast.Constant | ast.JoinedStr | ast.BinOp)]
            node.exc = ast.Call(node.exc.func, words, []) if words else node.exc.func
        return node


def _refuses(body: list[ast.stmt]) -> bool:
    """Whether a branch does nothing but raise a USER error."""
    raised = body[0].exc if len(body) == 1 and isinstance(body[0], ast.Raise) else None
    kind = raised.func if isinstance(raised, ast.Call) else raised
    return isinstance(kind, ast.Name) and kind.id == USER


def without_unread(tree: ast.Module) -> ast.Module:
    """Leave out functions and constants that nothing reads any more."""
    while True:
        read = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        kept = [part for part in tree.body if not _unread(part, read)]
        if len(kept) == len(tree.body):
            return tree
        tree.body = kept


def _unread(node: ast.stmt, read: set[str]) -> bool:
    if isinstance(node, ast.FunctionDef):
        return node.name not in read and not node.decorator_list
    if isinstance(node, ast.Assign) and not any(isinstance(part, ast.Call) for part in ast.walk(node.value)):
        return not {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)} & read
    return False


def _is_abstract(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef):
        return False
    body = [part for part in node.body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
    return len(body) == 1 and ast.unparse(body[0]) == "raise NotImplementedError"


def _typeless(node: ast.AnnAssign) -> ast.AnnAssign:
    """A dataclass's field needs some annotation; what is no field says so in it."""
    if "ClassVar" not in ast.unparse(node.annotation):
        node.annotation = ast.Constant(0)
    return node


def _bare(node: ast.AnnAssign) -> list[ast.stmt]:
    if node.value is None:
        return []
    return [ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node)]


# ---------------------------------------------------------------- wrappers


def wrap_lzma(script: bytes) -> bytes:
    """Raw LZMA2 in a Latin-1 string: a file of one statement, 1.5 % above the stream."""
    tried = [(lzma.compress(script, lzma.FORMAT_RAW, filters=[one]), one) for one in LZMA_FILTERS]
    stream, chosen = min(tried, key=lambda pair: len(pair[0]))
    settings = f"{{'id':{chosen['id']},'dict_size':1<<23}}"
    head = "import lzma;exec(lzma.decompress("
    return _file(head, stream, f",3,None,[{settings}]))")


def wrap_brotli(script: bytes) -> bytes:
    """Brotli at its highest, in the same form; the package brotli has to be there."""
    stream = brotli.compress(script, mode=brotli.MODE_TEXT, quality=11, lgwin=24)
    return _file("import brotli;exec(brotli.decompress(", stream, "))")


def _file(head: str, stream: bytes, tail: str) -> bytes:
    return b"#coding:L1\n" + head.encode() + literal(stream) + b".encode('L1')" + tail.encode() + b"\n"


def literal(stream: bytes) -> bytes:
    """A string literal, in Latin-1, whose characters are the bytes: only those that Python can't read are escaped."""
    escapes = {0: b"\\0", 10: b"\\n", 13: b"\\r", 92: b"\\\\"}
    quote = min((b"'", b'"'), key=stream.count)
    escapes[quote[0]] = b"\\" + quote
    parts = []
    for index, byte in enumerate(stream):
        after_digit = stream[index + 1 : index + 2].isdigit()
        parts.append(b"\\x00" if byte == 0 and after_digit else escapes.get(byte, bytes([byte])))
    return quote + b"".join(parts) + quote
