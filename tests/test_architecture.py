"""The rooms of tpfx: which may import which, where private names of torch occur, how large things are."""

from __future__ import annotations

import ast
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

PACKAGE = Path(__file__).parents[1] / "tpfx"

# A room imports from rooms of lines above its own, and from itself.
ORDER = """
errors formatting version
console
torch_internals
ir
kernels
native
runtime
workers
rules
planning
lowering
dump
passes
capture
checkpoint
sharded_tensor
plan
draw
execution
frontend
api
verify
export
cli
__init__ __main__
"""
FLOOR = {room: floor for floor, line in enumerate(ORDER.split("\n")) for room in line.split()}

# What planning needs, on any machine: no thread, and nothing of torch.distributed, is reached from these.
OFFLINE = "ir kernels rules planning lowering passes capture dump plan.make plan.offline"


class Module:
    """One file of the package: its name without `tpfx.`, its text, and what it imports."""

    def __init__(self, package: Path, path: Path) -> None:
        self.parts = list(path.relative_to(package).with_suffix("").parts)
        self.is_room = self.parts[-1] == "__init__" and len(self.parts) > 1
        self.name = ".".join(self.parts[:-1] if self.is_room else self.parts)
        self.text = path.read_text()
        self.tree = ast.parse(self.text)
        self.room = self.parts[0]

    def imports(self) -> Iterator[tuple[str, str]]:
        """(module, name) of each import that happens at run time, wherever it stands; `.` means tpfx."""
        typing_only = {
            inner
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for inner in ast.walk(node)
        }
        for node in ast.walk(self.tree):
            if node in typing_only:
                continue
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = self.parts[: len(self.parts) - node.level] if node.level else []
                module = ".".join([*base, *filter(None, [node.module])])
                prefix = "." if node.level else ""
                yield from ((prefix + module, alias.name) for alias in node.names)


def modules_of(package: Path) -> dict[str, Module]:
    found = [Module(package, path) for path in sorted(package.rglob("*.py"))]
    return {module.name: module for module in found}


def import_graph(modules: dict[str, Module]) -> networkx.DiGraph:
    """Which module of the package imports which."""
    graph = networkx.DiGraph()
    graph.add_nodes_from(modules)
    for name, module in modules.items():
        for where, what in module.imports():
            if where.startswith("."):
                inner = f"{where[1:]}.{what}".strip(".")
                target = inner if inner in modules else where[1:] or "__init__"
            elif where == "tpfx" or where.startswith("tpfx."):
                target = where.removeprefix("tpfx").strip(".") or "__init__"
            else:
                continue
            assert target in modules, f"{name} imports {where}.{what}, which is no module"
            if target != name:
                graph.add_edge(name, target)
    return graph


def faults(package: Path) -> list[str]:
    """What is wrong with the imports of a package."""
    modules = modules_of(package)
    graph = import_graph(modules)
    found = [
        f"{name} imports {other}, which lies to its right"
        for name, other in graph.edges
        if name.split(".")[0] != other.split(".")[0]
        and FLOOR[name.split(".")[0]] <= FLOOR[other.split(".")[0]]
    ]
    found += [
        f"circle: {' '.join(sorted(circle))}"
        for circle in networkx.strongly_connected_components(graph)
        if len(circle) > 1
    ]
    for name, module in modules.items():
        if module.room != "torch_internals":
            found += [f"{name} has {text}" for text in private_names(module)]
    return found


def private_names(module: Module) -> Iterator[str]:
    """Private names of torch; those under `torch.ops` are ops."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute):
            yield from _private(ast.unparse(node))
    for where, what in module.imports():
        yield from _private(f"{where}.{what}")


def _private(dotted: str) -> Iterator[str]:
    if re.match(r"torch\.(?!ops\b)(\w+\.)*_[a-zA-Z]\w*", dotted):
        yield dotted


def test_the_rooms_are_those_of_the_order():
    rooms = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert rooms == set(FLOOR)


def test_no_import_runs_to_the_right_or_in_a_circle_and_private_names_have_a_room():
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("ir/axes.py", "from ..passes.choose import choose", "ir.axes imports passes.choose, which lies"),
        ("rules/table.py", "def late():\n    from ..cli import main", "rules.table imports cli, which lies"),
        ("plan/tables.py", "from tpfx.verify.model import verify", "plan.tables imports verify.model"),
        ("dump/text.py", "import torch._dynamo", "dump.text has torch._dynamo"),
        ("passes/insert.py", "KEY = torch._C.DispatchKey", "passes.insert has torch._C"),
        ("ir/axes.py", "from .layout import Split", "circle: ir.axes ir.layout"),
    ],
)
def test_what_is_planted_is_found(tmp_path, file, line, fault):
    package = tmp_path / "tpfx"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    path = package / file
    path.write_text(f"{path.read_text()}\n{line}\n")
    assert any(found.startswith(fault) for found in faults(package)), faults(package)


def test_planning_offline_reaches_no_thread_and_nothing_of_torch_distributed():
    modules = modules_of(PACKAGE)
    graph = import_graph(modules)
    entries = OFFLINE.split()
    starts = [name for name in modules if any(name == one or name.startswith(f"{one}.") for one in entries)]
    reached = set(starts).union(*(networkx.descendants(graph, name) for name in starts))
    offending = [
        f"{name}: {where}"
        for name in sorted(reached)
        for where, _ in modules[name].imports()
        if where.startswith(("torch.distributed", "threading", "multiprocessing"))
    ]
    assert offending == []


def test_rooms_files_and_functions_are_small():
    modules = modules_of(PACKAGE)
    listed = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    rooms = [name for name in listed if (PACKAGE / name).is_dir()]
    assert len(rooms) <= 22 and len(listed) - len(rooms) <= 7, listed
    for room in rooms:
        assert len(list((PACKAGE / room).glob("*.py"))) <= 14, room
    lines = {name: module.text.count("\n") for name, module in modules.items()}
    assert [name for name, count in lines.items() if count > 400] == []
    assert statistics.median(lines.values()) < 150
    lengths = [
        node.end_lineno - node.lineno + 1
        for module in modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None
    ]
    assert sum(length <= 25 for length in lengths) >= 0.95 * len(lengths)


def test_every_room_says_what_it_is_for():
    for name, module in modules_of(PACKAGE).items():
        assert ast.get_docstring(module.tree), name
