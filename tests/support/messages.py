"""Every place in tpfx that raises or warns, and the text that it says there, found in the source.

    for one in messages(): print(one.where, one.text)     # tpfx/api.py:223 this model is not compiled; call …

Of what is put into a text at run time `…` is left. A text that is handed on (a parameter, what a function
returns, a constant, an attribute) is followed to where it is written.
"""

from __future__ import annotations

import ast
import builtins
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "tpfx"
HOLE = "…"
WARNERS = {"warn", "warning", "error", "exception"}  # of warnings, and of a logger
DEEP = 6  # steps that a text is followed

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Message:
    """A text that a user may read, and the line that says it."""

    where: str
    text: str


def messages(package: Path = PACKAGE) -> list[Message]:
    """All of them, those of C++ first, in the order of files and lines; one line may say several."""
    files = {path: _File(path, ast.parse(path.read_text())) for path in sorted(package.rglob("*.py"))}
    errors = {*_python_errors(), *(name for file in files.values() for name in file.errors)}
    texts = _Texts(list(files.values()))
    found = [
        Message(f"{package.name}/{path.relative_to(package)}:{call.lineno}", text)
        for path, file in files.items()
        for call in file.calls
        if (said := _said(call, errors)) is not None
        for text in sorted(texts.of(said, file, DEEP))
    ]
    return [*_of_cpp(package), *found]


def _of_cpp(package: Path) -> Iterator[Message]:
    """What C++ code checks: the texts among the arguments of a check, one after the other."""
    for path in sorted({*package.rglob("*.h"), *package.rglob("*.cpp")}):
        source = path.read_text()
        for check in re.finditer(r"TORCH_CHECK(?:_WITH)?\((.*?)\);", source, re.DOTALL):
            line = source.count("\n", 0, check.start()) + 1
            text = HOLE.join(re.findall(r'"((?:[^"\\]|\\.)*)"', check[1]))
            yield Message(f"{package.name}/{path.relative_to(package)}:{line}", text)


class _File:
    """A file, and what texts in it may refer to."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.path = path
        self.calls: list[ast.Call] = []
        self.errors: list[str] = []
        self.functions: dict[str, Function] = {}
        self.constants: dict[str, ast.expr] = {}
        self.attributes: dict[str, list[ast.expr]] = {}
        self.function_of: dict[ast.AST, Function] = {}
        self._read(tree, None)
        self.constants = {
            name: one.value
            for one in tree.body
            if isinstance(one, ast.Assign)
            for name in map(_last, one.targets)
        }

    def _read(self, node: ast.AST, inside: Function | None) -> None:
        for child in ast.iter_child_nodes(node):
            if inside is not None:
                self.function_of[child] = inside
            self._note(child)
            self._read(child, child if isinstance(child, Function) else inside)

    def _note(self, node: ast.AST) -> None:
        match node:
            case ast.Call():
                self.calls.append(node)
            case ast.ClassDef(name, bases) if any(
                re.search("(Error|Exception)$", _last(base)) for base in bases
            ):
                self.errors.append(name)
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                self.functions.setdefault(name, node)
            case ast.Assign(targets, value):
                for target in targets:
                    if isinstance(target, ast.Attribute):
                        self.attributes.setdefault(target.attr, []).append(value)


def _said(call: ast.Call, errors: set[str]) -> ast.expr | None:
    """The text of a call that makes an error or warns."""
    name = _last(call.func)
    if not call.args:
        return None
    if name in errors or _is_warning(call, name):
        return call.args[0]
    to_stderr = any(word.arg == "file" and _last(word.value) == "stderr" for word in call.keywords)
    return call.args[0] if name == "print" and to_stderr else None


class _Texts:
    """What expressions of some files may be, as texts with holes."""

    def __init__(self, files: list[_File]) -> None:
        self.files = files

    def of(self, value: ast.AST | None, file: _File, deep: int) -> set[str]:
        """All texts that an expression of a file may be."""
        if deep == 0:
            return {HOLE}
        match value:
            case ast.Constant(str(text)):
                return {re.sub(r"%[sdr]", HOLE, text)}
            case ast.JoinedStr(parts) | ast.List(parts):
                return _joined(self.of(part, file, deep) for part in parts)
            case ast.FormattedValue(inner) | ast.Starred(inner):
                return self.of(inner, file, deep - 1)
            case ast.BinOp(left, ast.Add(), right):
                return _joined([self.of(left, file, deep), self.of(right, file, deep)])
            case ast.IfExp(_, one, other) | ast.BoolOp(ast.Or(), [one, other]):
                return self.of(one, file, deep) | self.of(other, file, deep)
        return self._followed(value, file, deep - 1)

    def _followed(self, value: ast.AST | None, file: _File, deep: int) -> set[str]:
        """What an expression refers to."""
        match value:
            case ast.Name(name):
                return self._named(value, name, file, deep)
            case ast.Attribute(_, name):
                return self._any(file.attributes.get(name, []), file, deep)
            case ast.Call(ast.Attribute(ast.Constant(), "join"), [items]):
                return self.of(items, file, deep)
            case ast.Call(func):
                return self._returned(_last(func), file, deep)
        return {HOLE}

    def _any(self, values: Iterable[ast.expr], file: _File, deep: int) -> set[str]:
        return set().union(*(self.of(one, file, deep) for one in values)) or {HOLE}

    def _named(self, at: ast.AST, name: str, file: _File, deep: int) -> set[str]:
        """What a variable may be: assigned in the function, handed to it, or a constant."""
        function = file.function_of.get(at)
        if function is not None:
            assigned = list(_assigned(function, name))
            if assigned:
                return self._any(assigned, file, deep)
            if name in _parameters(function):
                return self._handed(function, name, file, deep)
        for other in self._this_first(file):
            if name in other.constants and (name.isupper() or other is file):
                return self.of(other.constants[name], other, deep)
        return {HOLE}

    def _handed(self, function: Function, name: str, file: _File, deep: int) -> set[str]:
        """What the calls of a private function in its file hand over."""
        at, private = _parameters(function).index(name), function.name.startswith("_")
        found: list[ast.expr] = []
        for call in file.calls if private else ():
            if _last(call.func) == function.name:
                found += call.args[at : at + 1] + [word.value for word in call.keywords if word.arg == name]
        return self._any(found, file, deep)

    def _returned(self, name: str, file: _File, deep: int) -> set[str]:
        """What a function of the package returns that returns a text, of this file first."""
        for other in self._this_first(file):
            function = other.functions.get(name)
            if (
                function is not None
                and function.returns
                and ast.unparse(function.returns) in ("str", "str | None")
            ):
                results = [
                    one.value for one in ast.walk(function) if isinstance(one, ast.Return) and one.value
                ]
                return self._any((one for one in results if not _is_none(one)), other, deep)
        return {HOLE}

    def _this_first(self, file: _File) -> Iterator[_File]:
        return itertools.chain([file], (other for other in self.files if other is not file))


def _python_errors() -> Iterator[str]:
    return (
        name
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, BaseException)
    )


def _is_warning(call: ast.Call, name: str) -> bool:
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return name in WARNERS and owner is not None and _last(owner) in ("warnings", "log", "logger", "_log")


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _assigned(function: Function, name: str) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets, value) if name in map(_last, targets):
                yield value
            case ast.NamedExpr(ast.Name(target), value) if target == name:
                yield value


def _parameters(function: Function) -> list[str]:
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return names[1:] if names[:1] == ["self"] else names


def _last(node: ast.AST) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _joined(parts: Iterable[set[str]]) -> set[str]:
    """All ways to put parts together, holes that meet being one."""
    texts = {"".join(each) for each in itertools.product(*parts)}
    return {re.sub(f"{HOLE}+", HOLE, text) for text in texts}
