"""A rank's fx graph as a program of the native executor.

    forward = RankProgram(module, seat, meeting)
    results = forward(*inputs)      # without Python's lock, save where a Python function is called

Ops of torch become instructions; so do collectives between the ranks of one process, arithmetic of sizes and
elements of tuples. Everything else is called back in Python.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ..kernels.slices import dense_rows
from ..kernels.stamps import Times
from ..torch_internals.fx import OpOverload
from .build import load
from .collectives import Meeting, collective_of, is_wait
from .expansions import ORIGIN, expanded
from .growing import grown, let_grow
from .in_place import write_in_place

aten = torch.ops.aten

_SIGNS: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "/",
    operator.mod: "%",
}


_NATIVE = ("aten", "prims", "mkldnn")  # whose ops are in C++


class RankProgram:
    """What runs one rank's graph.

    Args:
        module: the graph; flat, its results a tuple or list.
        seat: the rank's place among those of this process.
        meeting: where the ranks meet; None where they find each other through torch's process groups.
        growing: the results that may have room in their strides, as nobody sees these.

    Raises:
        NoExecutor: the extension cannot be built here.
    """

    def __init__(
        self,
        module: GraphModule,
        seat: int = 0,
        meeting: Meeting | None = None,
        growing: Collection[int] = (),
    ) -> None:
        graph = expanded(module.graph, gathers=meeting is not None)
        write_in_place(graph)
        let_grow(graph, growing)
        self.seat, self.meeting = seat, meeting
        self.names: list[str] = []  # of the nodes, one for each instruction
        self.in_python: dict[str, str] = {}  # nodes that may take Python's lock: what they call
        self.extension = load()
        # What stands for each node: a register, or a constant.
        self._values: dict[Node, Any] = {}
        native = None if meeting is None else meeting.native
        self._program = self.extension.Program(len(graph.nodes), seat, native)
        inputs = graph.find_nodes(op="placeholder")
        for at, node in enumerate(graph.nodes):
            if node.op != "output":
                self._add(module, node, at)
        registers = [at if node.users else -1 for at, node in enumerate(inputs)]
        results: Sequence[Any] = graph.output_node().args[0]  # type: ignore[assignment]
        self._program.finish(registers, [self._argument(value) for value in results], self.names)

    def __call__(self, *args: Any) -> list[Any]:
        """The graph's results.

        Raises:
            CollectiveError: the ranks' calls of a collective disagree.
            CollectiveTimeout: a rank did not come to one in time.
            RankAborted: another rank has failed.
            Exception: what an op raises.
        """
        try:
            found: list[Any] = self._program.run(args)
        except BaseException as error:
            self.fail(error)
        return found

    @property
    def program(self) -> Any:
        """The extension's `Program`."""
        return self._program

    def time(self, on: bool, gpu: torch.device | None = None) -> None:
        """Begin, or end, to note when each instruction starts; each is waited for on a `gpu`."""
        self._program.time(on, gpu)

    def take_times(self) -> Times:
        """What has been noted since it was asked for before."""
        return self.names, self._program.take_times()

    def fail(self, error: BaseException) -> NoReturn:
        """Raise what has come of a run of the extension's program, in a frame that `node_at` knows."""
        node = self.node
        if isinstance(error, self.extension.Left):
            assert self.meeting is not None
            raise self.meeting.error(str(error), self.seat, node) from None
        raise error

    @property
    def node(self) -> str:
        """The name of the node that runs, or has failed."""
        return self.names[int(self._program.position)]

    def node_at(self, variables: dict[str, Any]) -> str:
        """The name of the node that runs, or has failed, in a frame of this class with these variables."""
        return str(variables.get("node") or self.node)

    # Building.

    def _add(self, module: GraphModule, node: Node, at: int) -> None:
        """What stands for a node, and the instruction that makes it, if any."""
        if node.op == "get_attr":
            self._values[node] = operator.attrgetter(str(node.target))(module)
            return
        operand = node.args[0] if is_wait(node) else None
        if isinstance(operand, Node) and self._collective(operand) is not None:
            self._values[node] = self._values[operand]
            return
        self._values[node] = self.extension.Register(at)
        if node.op == "call_function":
            self._instruct(node, at if node.users else -1)
            self.names.append(node.meta.get(ORIGIN, node.name))

    def _instruct(self, node: Node, out: int) -> None:
        program, target = self._program, node.target
        args = [self._argument(arg) for arg in node.args]
        call = self._collective(node)
        if call is not None:
            program.add_collective(*call, args[0], out)
        elif target is operator.getitem and _is_index(node.args[1]):
            program.add_item(*args, out)
        elif target is grown:
            program.add_grow(*args, out)
        elif target is dense_rows:
            program.add_dense_rows(*args, out)
        elif target in _SIGNS and not node.kwargs and all(map(_is_number, node.args)):
            program.add_number(_SIGNS[target], *args, out)
        elif not isinstance(target, OpOverload):
            self._python(node, out, "a function of Python")
        elif not self._op(node, target, out):
            self._python(node, out, "an argument that varies inside of a list of an unknown kind")
        elif target.namespace not in _NATIVE:
            self.in_python[node.name] = f"{target}, an op that is not torch's own"

    def _collective(self, node: Node) -> tuple[Any, ...] | None:
        return None if self.meeting is None else collective_of(self.extension, node, self.meeting.names)

    def _op(self, node: Node, op: OpOverload, out: int) -> bool:
        """Add an op of torch; False where a register is in an argument of a type that is not known."""
        schema, given = op._schema, []
        for at, formal in enumerate(schema.arguments):
            if not formal.kwarg_only and at < len(node.args):
                given.append(self._argument(node.args[at]))
            else:
                given.append(self._argument(node.kwargs[formal.name]) if formal.name in node.kwargs else ...)
        try:
            self._program.add_op(schema.name, schema.overload_name, given, out)
        except (RuntimeError, TypeError):
            return False
        return True

    def _python(self, node: Node, out: int, why: str) -> None:
        """A call in Python, with the operands' values put in where the node has the operands."""
        operands, target = node.all_input_nodes, node.target
        self.in_python[node.name] = f"{getattr(target, '__name__', target)}, {why}"
        assert callable(target), f"{node.op} in a rank's graph"

        def call(*values: Any) -> Any:
            known = dict(zip(operands, values, strict=True))
            args, kwargs = map_arg((node.args, node.kwargs), known.__getitem__)
            return target(*args, **kwargs)

        self._program.add_callback(call, [self._argument(operand) for operand in operands], out)

    def _argument(self, value: Any) -> Any:
        """A value of the graph, with what stands for nodes in their place."""
        if isinstance(value, Node):
            return self._values[value]
        if isinstance(value, (list, tuple)):
            return [self._argument(item) for item in value]
        return value


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    """Whether an argument is an int, or a node that is a size or arithmetic of sizes."""
    if not isinstance(value, Node):
        return type(value) is int
    return value.op == "placeholder" or value.target in _SIGNS or value.target is aten.sym_size.int
