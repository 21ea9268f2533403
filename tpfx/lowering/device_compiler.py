"""The device compiler: what a rank's graph becomes before it runs.

"native"     the executor of `native`: the graph's ops one by one from C++, without Python's interpreter lock
"eager"      the graph itself, op by op from Python
"inductor"   TorchInductor's code for it: fewer, fused loops, and on the CPU, where all-reduces are the only
             collectives, a C++ program that lets other ranks have Python's interpreter lock all the while
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..console.progress import working
from ..errors import DeviceCompilerError, TpfxError
from ..ir.annotations import shards_of, source_of
from ..ir.nodes import device_of, hint_of, is_tensor
from ..kernels.collectives import BROADCASTS, gather_shards
from ..kernels.slices import shard_of
from ..native.build import NoExecutor
from ..native.collectives import Meeting
from ..native.rank_program import RankProgram
from ..runtime.mesh import Mesh
from ..torch_internals.fx import code_of
from ..torch_internals.inductor import compile_by_inductor, is_linear_of_onednn, linear_for_inductor

DEVICE_COMPILERS = ("native", "inductor", "eager")

log = logging.getLogger("tpfx")

Forward = Callable[..., Sequence[Any]]

aten = torch.ops.aten
c10d = torch.ops._c10d_functional


def check_device_compiler(name: object) -> None:
    """Refuse what is no device compiler.

    Raises:
        TpfxError: it is none.
    """
    if name not in DEVICE_COMPILERS:
        *first, last = map(repr, DEVICE_COMPILERS)
        known = f"{', '.join(first)} or {last}"
        raise TpfxError(f"device_compiler={name!r} is unknown; pass {known}")


def compile_for_devices(
    name: str,
    parallel: Graph,
    modules: Sequence[GraphModule],
    mesh: Mesh,
    meeting: Callable[[], Meeting | None],
) -> list[Forward]:
    """What runs the graphs of the ranks that this process owns, each with that rank's inputs as arguments.

    Args:
        name: one of `DEVICE_COMPILERS`.
        parallel: the graph that those of the ranks were made of.
        modules: the ranks' graphs.
        mesh: the ranks.
        meeting: gives what `Runtime.native_meeting` says.

    Raises:
        DeviceCompilerError: Inductor cannot compile one.
    """
    if name == "native":
        return _native(parallel, modules, mesh, meeting)
    if name == "eager" or not any(is_tensor(node) for node in parallel.find_nodes(op="placeholder")):
        return [code_of(module) for module in modules]
    with working("compiling by Inductor") as at:
        return [_inductor(parallel, *each, mesh) for each in _told(modules, mesh.owned, mesh.size, at)]


def _told(
    modules: Sequence[GraphModule], ranks: Sequence[int], size: int, at: Callable[[str], None]
) -> Iterator[tuple[GraphModule, int]]:
    """Each graph and its rank; what shows progress is told which of how many devices it is of."""
    for module, rank in zip(modules, ranks, strict=True):
        at(f"device {rank + 1} of {size}")
        yield module, rank


def _native(
    parallel: Graph,
    modules: Sequence[GraphModule],
    mesh: Mesh,
    meeting: Callable[[], Meeting | None],
) -> list[Forward]:
    """Programs of the native executor; where it cannot be built, the graphs themselves."""
    returned: Sequence[Any] = parallel.output_node().args[0]  # type: ignore[assignment]
    # Of a tensor in shards the strides that anyone sees are those of the whole.
    split = {at for at, value in enumerate(returned) if is_tensor(value) and shards_of(value)}
    try:
        where = meeting()
        with working("compiling") as at:
            graphs = _told(modules, mesh.owned, mesh.size, at)
            return [RankProgram(*each, where, split) for each in graphs]
    except NoExecutor as problem:
        _say_once(str(problem))
        return [code_of(module) for module in modules]


@functools.cache
def _say_once(problem: str) -> None:
    log.warning("graphs run op by op from Python, whose lock the ranks share: %s", problem)


def _inductor(parallel: Graph, module: GraphModule, rank: int, mesh: Mesh) -> Forward:
    placeholders, device = parallel.find_nodes(op="placeholder"), mesh.devices[rank]
    mode = next(node.meta["val"] for node in placeholders if is_tensor(node)).fake_mode
    with mode:
        inputs = [_input(node, rank, device) for node in placeholders]
    try:
        cpp_wrapper = device.type == "cpu" and _only_reduces(module)
        compiled = compile_by_inductor(_for_inductor(module, inputs), inputs, mode, cpp_wrapper)
    except Exception as error:
        raise DeviceCompilerError(
            f"Inductor cannot compile the graph of rank {rank} ({device}); device_compiler='eager' runs it "
            f"op by op.\n  {type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
        ) from error
    return _Laid(compiled, placeholders, inputs)


def _only_reduces(module: GraphModule) -> bool:
    """Whether all-reduces are the only collectives, in graphs that an op calls too."""
    graphs = (inner.graph for inner in module.modules() if isinstance(inner, GraphModule))
    return not any(node.target in (*BROADCASTS, gather_shards) for graph in graphs for node in graph.nodes)


def _input(node: Node, rank: int, device: torch.device) -> Any:
    """A rank's shard of an input: dense, its dimensions in the order in memory of those of the whole."""
    value = node.meta["val"]
    if not is_tensor(node):
        return value
    return torch.empty_like(shard_of(value, shards_of(node), rank), device=device_of(value, device))


def _for_inductor(module: GraphModule, inputs: Sequence[Any]) -> GraphModule:
    """The same, but where to reuse memory is left to Inductor, and oneDNN's products are such that it has."""
    graph = copy.deepcopy(module.graph)
    for node in graph.find_nodes(op="call_function", target=c10d.all_reduce_.default):
        node.target = c10d.all_reduce.default
    dense = {
        node
        for node, value in zip(graph.find_nodes(op="placeholder"), inputs, strict=True)
        if isinstance(value, torch.Tensor) and value.is_contiguous()
    }
    for node in graph.nodes:
        node.meta = {}  # some nodes know the value of the parallel graph, which is the whole one
        if is_linear_of_onednn(node.target):
            node.args = node.args[:2]
            node.target = linear_for_inductor() if node.args[1] in dense else aten.linear.default
    return GraphModule(module, graph)


class _Laid:
    """Inductor's code, which takes inputs to lie in memory as those that it was made for: others are copied.

    Args:
        compiled: the code.
        placeholders: the inputs of the parallel graph.
        inputs: a rank's shards of them, as fakes.
    """

    def __init__(self, compiled: Forward, placeholders: Sequence[Node], inputs: Sequence[Any]) -> None:
        self.compiled = compiled
        self.dense: list[int] = []
        self.turned: list[tuple[int, tuple[int, ...]]] = []
        for at, value in enumerate(inputs):
            if isinstance(value, torch.Tensor):
                order = _order(value)
                if order == tuple(range(value.dim())):
                    self.dense.append(at)
                else:
                    self.turned.append((at, order))
        self.written = [at for at, node in enumerate(placeholders) if source_of(node).mutated]

    def __call__(self, *given: Any) -> Sequence[Any]:
        """The graph's results."""
        args = list(given)
        for at in self.dense:
            args[at] = args[at].contiguous()
        for at, order in self.turned:
            args[at] = _turned(args[at], order)
        results = self.compiled(*args)
        for at in self.written:
            if args[at] is not given[at]:
                given[at].copy_(args[at])
        return results


def _order(value: torch.Tensor) -> tuple[int, ...]:
    """The dimensions of a dense tensor from the outermost to the innermost."""
    return tuple(sorted(range(value.dim()), key=lambda dim: (-hint_of(value.stride(dim)), dim)))


def _turned(value: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """The same value, dense, with its dimensions in this order in memory."""
    turned = value.permute(order)
    if turned.is_contiguous():
        return value
    back = sorted(range(len(order)), key=order.__getitem__)
    return turned.contiguous().permute(back)
