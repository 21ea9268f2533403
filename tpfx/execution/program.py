"""A compiled graph at run time: tensors in, one call on every rank at once, tensors out.

This is the hot path: what can be decided when the graph is compiled is decided then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.fx import Graph

from ..errors import ModelError
from ..ir.annotations import is_gathered_for_caller, layout_of, shards_of
from ..ir.layout import Partial
from ..ir.nodes import is_tensor
from ..ir.provenance import module_path
from ..ir.shards import Shards, one_object
from ..kernels.slices import restride
from ..runtime.mesh import Mesh
from ..runtime.thread_runtime import node_of
from ..sharded_tensor import ShardedTensor
from ..sharded_tensor.storage import folded_whole_of, whole_of
from ..torch_internals.aot import in_batches
from ..torch_internals.dynamo import mark_dynamic_sizes
from .arguments import Arguments
from .output_strides import Strides
from .ranks import Ranks
from .replays import Replays
from .stopwatch import watch_of


class Program:
    """One graph, lowered for the ranks that this process owns. Called with a list of arguments, which it
    empties. `kept` are the results that stay sharded tensors even where every rank has all of them, `exact`
    those of which AOTAutograd reads strides and offset, and those from `seen` on are for the backward part
    alone."""

    _boxed_call = True  # AOTAutograd hands over the list, so that nothing holds on to the arguments

    def __init__(
        self,
        graph: Graph,
        ranks: Ranks,
        kept: Collection[int] = (),
        exact: Mapping[int, Strides] | None = None,
        seen: int | None = None,
        tell: Callable[[], None] | None = None,
    ) -> None:
        self.ranks, self.mesh, self.tell = ranks, ranks.runtime.mesh, tell
        self.arguments = arguments = Arguments(graph.find_nodes(op="placeholder"), self.mesh)
        recording = ranks.recording
        self._replays = recording and Replays(*recording, ranks, arguments.weights, arguments.mutated)
        returned: Sequence[Any] = graph.output_node().args[0]  # type: ignore[assignment]
        self.names = [str(value) for value in returned]
        seen = len(returned) if seen is None else seen
        self.outputs = [_output(value, self.mesh, at in kept, at < seen) for at, value in enumerate(returned)]
        self.exact = dict(exact or {})

    def __call__(self, args: list[Any]) -> list[Any]:
        """Run the graph on every rank; the arguments are let go as soon as the ranks have theirs.

        Raises:
            ModelError: gradients in batches are asked for.
        """
        if in_batches():
            raise ModelError(
                "gradients in batches (is_grads_batched=True, vectorize=True) do not flow through what is "
                "split; ask for one after the other"
            )
        columns = self.arguments.columns(args)
        if self.tell is not None:
            self.tell()
        written = self.arguments.written(args, columns)
        lie = {at: strides(args) for at, strides in self.exact.items()}
        replays = None if watch_of(self.mesh) else self._replays  # which have no ops to be timed
        state = self.arguments.state(args, columns) if replays else {}
        args.clear()
        try:
            results = replays(columns, state) if replays else self.ranks.run(columns)
        except Exception as error:
            self._note_place(error)
            raise
        self.arguments.write_back(written)
        made: list[Any] = []
        try:
            for give, *one in zip(self.outputs, *results, strict=True):
                made.append(give(one))
        except Exception as error:  # of processes one may be gone
            rank, name = self.mesh.owned[0], self.names[len(made)]
            error.add_note(
                f"on rank {rank} ({self.mesh.devices[rank]}), in node {name}: gathering its shards"
            )
            raise
        for at, (stride, offset) in lie.items():
            made[at] = _restrided(made[at], stride, offset)
        return made

    def _note_place(self, error: Exception) -> None:
        """Say to which module and source line the node belongs in which a rank failed."""
        name = node_of(error.__traceback__) if error.__traceback__ else None
        nodes = (node for module in self.ranks.modules for node in module.graph.nodes)
        node = next((node for node in nodes if node.name == name), None)
        if node is None:
            return
        lines = str(node.meta.get("stack_trace") or "").splitlines()
        last = max((at for at, line in enumerate(lines) if line.lstrip().startswith("File ")), default=0)
        where = module_path(node) or "the model itself"
        error.add_note("\n".join([f"in module {where}", *lines[last : last + 2]]))


def _output(node: Any, mesh: Mesh, kept: bool, seen: bool) -> Callable[[list[Any]], Any]:
    """How the ranks' results become one."""
    if not is_tensor(node) or node.meta["val"].layout is not torch.strided:
        return _first
    layout = one_object(shards_of(node))
    kept = kept or isinstance(
        layout_of(node), Partial
    )  # partial sums for the backward part: each rank has its own
    value = node.meta["val"]
    dynamic = {index for index, extent in enumerate(value.shape) if isinstance(extent, torch.SymInt)}
    if value.dim() > 1 and type(value.shape[0]) is int and value.shape[0] == 1:
        dynamic.add(0)  # one row in this graph, maybe more in the next
    fixed = {dim: int(value.shape[dim]) for dim, _ in layout.dims if not layout.unfolding}
    if not layout:
        # Ranks on one device share what they all have; where they cannot, state that comes back must not be
        # copied again.
        kept = kept or (mesh.memories > 1 and any(user.op != "output" for user in node.users))
        return partial(_shard, layout, fixed, dynamic, mesh) if kept else partial(_plain, dynamic)
    if layout.unfolding and seen:  # only the backward part could use its shards
        return partial(_gathered_folded, layout, mesh)
    if is_gathered_for_caller(node) and not layout.unfolding:
        return partial(_gathered, layout, fixed, dynamic, mesh)
    return partial(_shard, layout, fixed, dynamic, mesh)


def _restrided(result: torch.Tensor, stride: Sequence[int], offset: int) -> torch.Tensor:
    """A result of which strides and offset count."""
    if isinstance(result, ShardedTensor):
        return result.restrided(stride, offset)
    return restride(result, stride, offset)


def _first(results: list[Any]) -> Any:
    return results[0]


def _plain(dynamic: set[int], results: list[torch.Tensor]) -> torch.Tensor:
    if dynamic:
        mark_dynamic_sizes(results[0], dynamic)
    return results[0]


def _shape(fixed: dict[int, int], result: torch.Tensor) -> list[int]:
    shape = list(result.shape)
    for dim, extent in fixed.items():
        shape[dim] = extent
    return shape


def _gathered(
    layout: Shards, fixed: dict[int, int], dynamic: set[int], mesh: Mesh, results: list[torch.Tensor]
) -> torch.Tensor:
    return _plain(dynamic, [whole_of(results, layout.dims, _shape(fixed, results[0]), mesh)])


def _gathered_folded(layout: Shards, mesh: Mesh, results: list[torch.Tensor]) -> torch.Tensor:
    return folded_whole_of(results, layout, mesh)


def _shard(
    layout: Shards, fixed: dict[int, int], dynamic: set[int], mesh: Mesh, results: list[torch.Tensor]
) -> torch.Tensor:
    made = ShardedTensor.of_shards(mesh, tuple(results), layout, _shape(fixed, results[0]))
    if dynamic:
        mark_dynamic_sizes(made, dynamic)
    return made
