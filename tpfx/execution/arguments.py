"""What a graph's arguments are on each rank.

arguments = Arguments(placeholders, mesh)
columns = arguments.columns(args)           # of each argument, the ranks' values
written = arguments.written(args, columns)  # what the ranks write into
arguments.write_back(written)               # once they have
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.autograd.graph import increment_version
from torch.fx import Node

from ..errors import ModelError
from ..ir.annotations import Source, shards_of, source_of
from ..ir.nodes import device_of, is_tensor
from ..ir.shards import Shards, one_object
from ..runtime.mesh import Mesh
from ..sharded_tensor import ShardedTensor
from ..sharded_tensor.storage import Fake, Sharded, Unsharded, ViewOf, split_among, whole_of

Written = list[tuple[int, Any, Sequence[torch.Tensor]]]  # which argument, and what it is on each rank


_HELD, _PLACEMENT, _SHARDS = map(operator.attrgetter, ("last_held", "placement", "shards"))


class Arguments:
    """The arguments of one graph.

    Args:
        nodes: its placeholders.
        mesh: the ranks.

    Attributes:
        weights: the arguments that are parameters and buffers.
        mutated: those that the graph writes into.
    """

    def __init__(self, nodes: Sequence[Node], mesh: Mesh) -> None:
        self._all = [_Input(node, mesh) for node in nodes]
        self.mutated = [at for at, one in enumerate(self._all) if one.source.mutated]
        self.weights = [at for at, one in enumerate(self._all) if one.weighed is not None]
        self._others = [at for at, one in enumerate(self._all) if one.weighed is None]
        self._layouts = [self._all[at].layout for at in self.weights]

    def columns(self, args: Sequence[Any]) -> list[Sequence[Any]]:
        """Of each argument, a value for each rank; weights lie as compiled for, mostly.

        Raises:
            OtherWeight: a weight is not what the graph was compiled for.
        """
        found: list[Any] = [None] * len(self._all)
        weights = [args[at] for at in self.weights]
        for at, shards in zip(self.weights, self._as_compiled(weights), strict=False):
            found[at] = shards
        for at in self._others:
            held: Any = getattr(args[at], "last_held", None)
            one = self._all[at]
            found[at] = held.shards if getattr(held, "placement", None) is one.layout else one(args[at])
        return found

    def _as_compiled(self, weights: list[Any]) -> Sequence[Any]:
        """The shards of the weights."""
        try:
            held = list(map(_HELD, weights))
            if all(map(operator.is_, map(_PLACEMENT, held), self._layouts)):
                return list(map(_SHARDS, held))
        except AttributeError:  # one without a placement
            pass
        return [self._all[at](weight) for at, weight in zip(self.weights, weights, strict=True)]

    def state(self, args: Sequence[Any], columns: Sequence[Sequence[Any]]) -> dict[int, int]:
        """Of arguments that lie where they may lie in the next call, of how many ranks, from the first on.

        What is split does, and what the first rank writes into as it is; weights are not among them.
        """
        found = {at: len(columns[at]) for at in self._others if isinstance(args[at], ShardedTensor)}
        for at in self.mutated:
            arg = args[at]
            if (
                at not in found
                and isinstance(arg, torch.Tensor)
                and arg.data_ptr() == columns[at][0].data_ptr()
            ):
                found[at] = 1
        return found

    def written(self, args: Sequence[Any], columns: Sequence[Sequence[Any]]) -> Written:
        """The arguments that the graph writes into, but for those whose own shards the ranks have."""
        given = ((at, args[at], columns[at]) for at in self.mutated)
        return [
            one for one in given if getattr(getattr(one[1], "last_held", None), "shards", None) is not one[2]
        ]

    def write_back(self, written: Written) -> None:
        """Bring what the ranks wrote to arguments that are none of the ranks'."""
        for at, arg, values in written:
            self._all[at].write_back(arg, values)


class OtherWeight(ModelError):
    """A weight has another shape or dtype than the graph was compiled for; nothing of the graph has run."""


class _Input:
    """How one argument becomes one value for each rank."""

    def __init__(self, node: Node, mesh: Mesh) -> None:
        self.mesh = mesh
        self.source: Source = source_of(node)
        self.tensor = is_tensor(node)
        layout, pinned = shards_of(node) if self.tensor else Shards(), self.source.pinned
        # One object, which is fast to compare: that of the weight, or of all graphs' results.
        self.layout = pinned if pinned is not None and pinned == layout else one_object(layout)
        value: Any = node.meta.get("val")
        is_weight = self.source.kind in ("parameter", "buffer")
        self.weighed = (value.shape, value.dtype) if is_weight else None
        self.devices = [device_of(value, mesh.devices[rank]) for rank in mesh.owned]
        self.one_device = len(set(self.devices)) == 1

    def __call__(self, arg: Any) -> Sequence[Any]:
        if isinstance(arg, ShardedTensor):
            held = arg.last_held
            if isinstance(held, Sharded) and (held.placement is self.layout or self._lies_so(arg, held)):
                return held.shards
            return self._reshard(arg)
        if not self.tensor or not isinstance(arg, torch.Tensor):
            return (arg,) * len(self.devices)
        if self.source.mutated:
            return self._lend(arg)
        if self.layout:
            return split_among(arg, self.layout, self.mesh)
        return [arg] * len(self.devices) if self.one_device else [arg.to(device) for device in self.devices]

    def _lies_so(self, arg: ShardedTensor, held: Sharded) -> bool:
        """Whether it lies as the graph needs it, in another weight's way perhaps."""
        if self.weighed is not None and (arg.shape, arg.dtype) != self.weighed:
            raise OtherWeight(
                f"{self.source.name} is {list(arg.shape)}, {arg.dtype} now; the graph was compiled for "
                f"{list(self.weighed[0])}, {self.weighed[1]}: call the model again"
            )
        return held.placement == self.layout and arg.mesh.same_as(self.mesh)

    def _reshard(self, arg: ShardedTensor) -> Sequence[torch.Tensor]:
        """Another layout than the one that this graph was compiled for, or the ranks of another model."""
        if not arg.mesh.same_as(self.mesh):
            return split_among(arg.gathered(), self.layout, self.mesh)
        match arg.held:
            case Sharded(shards, placement) if placement == self.layout:
                return shards
            case Unsharded() | Sharded(chosen=False):
                arg.distribute(self.layout)
                return arg.shards or ()
            case Sharded():
                shards = split_among(arg.gathered(), self.layout, self.mesh)
                if self.source.mutated:
                    arg.hold(shards, self.layout)
                return shards
            case ViewOf() | Fake():  # what is written into one is written back
                return split_among(arg.gathered(), self.layout, self.mesh)

    def _lend(self, arg: torch.Tensor) -> Sequence[torch.Tensor]:
        """A plain tensor that the graph writes into: shards, to be written back; or itself, and copies."""
        if self.layout:
            return split_among(arg, self.layout, self.mesh)
        whole = arg.detach() if arg.requires_grad else arg
        first, *others = self.devices
        lent = whole if arg.device == first else whole.to(first)
        return [lent, *(whole.clone() if self.one_device else whole.to(other, copy=True) for other in others)]

    def write_back(self, arg: Any, values: Sequence[torch.Tensor]) -> None:
        """Bring what the ranks wrote, each into a value of its own, to a plain argument."""
        if not isinstance(arg, torch.Tensor):
            return
        if isinstance(arg, ShardedTensor):
            if arg.mesh.same_as(self.mesh) and not isinstance(arg.held, ViewOf):
                return  # the ranks wrote into its shards
        elif not self.layout and arg.device == self.devices[0]:
            increment_version(arg)  # the first rank wrote, below autograd
            return
        with torch.no_grad():
            whole = whole_of(values, self.layout.dims, arg.shape, self.mesh) if self.layout else values[0]
            arg.copy_(whole)
