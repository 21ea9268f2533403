"""The runs of graphs, op by op on each rank, with what is waited for apart from what is done.

graphs = [graph_runs(log) for log in watch.logs]
graphs[0].ranks[1].ops[7].module            # "layers.0.mlp.down_proj"
graphs[0].waited()[1]                       # of rank 1, by run and op, nanoseconds

Where ranks meet, the last to come waits for nobody: each of the others for as long as it has come before.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Any

import torch
from torch.fx import Graph, Node

from ..dump.node_text import Lines
from ..execution.stopwatch import Log
from ..ir.annotations import is_gathered_for_caller
from ..ir.nodes import bytes_of, is_tensor
from ..ir.provenance import module_path, op_name, origin_of, path_of_stack
from ..ir.resharding import COLLECTIVES
from ..kernels.collectives import BROADCASTS, gather_shards
from ..kernels.stamps import BETWEEN, COLLECTIVE
from ..plan.estimate import Run
from ..torch_internals.fx import OpOverload


@dataclass(frozen=True)
class Op:
    """What a rank does for a node of the parallel graph.

    Attributes:
        name: of the node, as in a dump.
        module: the path of the module that it comes from; of a gradient, that of its forward.
        op: as people call it, "linear"; "compiled" of code that does several.
        collective: "all_reduce", "all_gather", "broadcast", or "" of what computes.
    """

    name: str
    module: str
    op: str = ""
    collective: str = ""


@dataclass(frozen=True)
class RankRuns:
    """The runs of one graph on one rank.

    Attributes:
        rank: which.
        device: where it runs.
        host: the machine, whose clock the times are of.
        ops: what it does, in order.
        starts: a row for each run: when each op began, and when the last had ended, in nanoseconds.
        over: of each run, when all ranks of the rank's process had ended.
    """

    rank: int
    device: str
    host: str
    ops: list[Op]
    starts: torch.Tensor
    over: torch.Tensor

    @property
    def met(self) -> list[int]:
        """The places of its collectives."""
        return [at for at, op in enumerate(self.ops) if op.collective]

    @property
    def took(self) -> torch.Tensor:
        """Nanoseconds by run and op."""
        return self.starts.diff(dim=1)

    def cut(self, runs: int) -> RankRuns:
        """The first runs."""
        return replace(self, starts=self.starts[:runs], over=self.over[:runs])


@dataclass(frozen=True)
class Estimated:
    """What was estimated of a module in one run.

    Attributes:
        compute: seconds of arithmetic and memory on each rank.
        collectives: seconds.
    """

    compute: list[float]
    collectives: float


@dataclass(frozen=True)
class GraphRuns:
    """The runs of one graph on the ranks.

    Attributes:
        phase: "forward" or "backward".
        ranks: its runs on each.
        estimated: by module.
        gathered: seconds estimated of what the caller gets whole, a run.
    """

    phase: str
    ranks: list[RankRuns]
    estimated: dict[str, Estimated]
    gathered: float

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self.ranks[0].starts)

    def waited(self) -> list[torch.Tensor]:
        """Of each rank, by run and op, nanoseconds until the last rank had come to the same collective."""
        met = [one.met for one in self.ranks]
        waited = [torch.zeros_like(one.took) for one in self.ranks]
        if len({len(places) for places in met}) == 1 and met[0]:
            came = [one.starts[:, places] for one, places in zip(self.ranks, met, strict=True)]
            last = torch.stack(came).amax(0)
            for one, mine, places, found in zip(self.ranks, came, met, waited, strict=True):
                found[:, places] = (last - mine).minimum(one.took[:, places])
        return waited

    def joined(self, others: Sequence[GraphRuns]) -> GraphRuns:
        """The same with the ranks of other processes, by the clock of this one."""
        ranks = sorted(
            [*self.ranks, *(one for graph in others for one in graph.ranks)], key=lambda one: one.rank
        )
        runs = min(len(one.starts) for one in ranks)
        return replace(self, ranks=[_by_clock_of(ranks[0].cut(runs), one.cut(runs)) for one in ranks])


def _by_clock_of(first: RankRuns, one: RankRuns) -> RankRuns:
    """A rank's runs by the clock of the first one's host: all leave a collective at about the same time."""
    if one.host == first.host or len(one.met) != len(first.met) or not one.met:
        return one
    left = [each.starts[:, [at + 1 for at in each.met]] for each in (first, one)]
    behind = (left[0] - left[1]).median()
    return replace(one, starts=one.starts + behind, over=one.over + behind)


def graph_runs(log: Log) -> GraphRuns:
    """The runs that a log is of, on the ranks of this process."""
    ranks = log.ranks
    assert ranks.planned is not None, "the compiler says what it has made a graph of"
    mesh, planned = ranks.runtime.mesh, ranks.planned
    of_names = _Origins(planned.graph)
    starts = [times for _, times in log.times]
    over = torch.stack([times[:, -1] for times in starts]).amax(0)
    made = []
    for rank, module, (names, times) in zip(mesh.owned, ranks.modules, log.times, strict=True):
        firsts, ops = of_names.ops(module.graph, names)
        kept = times[:, [*firsts, times.shape[1] - 1]]
        made.append(RankRuns(rank, str(mesh.devices[rank]), platform.node(), ops, kept, over))
    run = Run(planned.graph, mesh.size, planned.topology)
    whole = [node for node in planned.graph.output_node().all_input_nodes if is_tensor(node)]
    gathered = sum(
        run.sent("gather", bytes_of(one.meta["val"])) for one in whole if is_gathered_for_caller(one)
    )
    return GraphRuns(planned.phase, made, _estimated(run), gathered)


def _estimated(run: Run) -> dict[str, Estimated]:
    found: dict[str, Estimated] = {}
    for node in run.nodes:
        before = found.setdefault(_module(node), Estimated([0.0] * run.ranks, 0.0))
        if node.target in COLLECTIVES:
            found[_module(node)] = replace(before, collectives=before.collectives + run.slowest(node))
        else:
            more = [known + run.seconds(node, rank) for rank, known in enumerate(before.compute)]
            found[_module(node)] = replace(before, compute=more)
    return found


def _module(node: Node) -> str:
    return module_path(node) or path_of_stack(node.meta.get("fwd_nn_module_stack"))


class _Origins:
    """The nodes of a parallel graph for which those of the ranks' graphs were written."""

    def __init__(self, graph: Graph) -> None:
        nodes = list(graph.nodes)
        self._nodes = {node.name: node for node in nodes}
        self._names = Lines(nodes).names

    def ops(self, graph: Graph, names: Sequence[str]) -> tuple[list[int], list[Op]]:
        """What a rank does for each node of the parallel graph, and the place of its first name.

        Args:
            graph: the rank's.
            names: of its nodes, as they were timed.
        """
        if BETWEEN in names:
            return self._of_compiled(graph, names)
        known = {node.name: node for node in graph.nodes}
        return self._grouped([known[name] for name in names])

    def _grouped(self, nodes: Sequence[Node]) -> tuple[list[int], list[Op]]:
        firsts, ops = [], []
        for name, places in groupby(range(len(nodes)), lambda at: origin_of(nodes[at]) or nodes[at].name):
            own = list(places)
            firsts.append(own[0])
            ops.append(self._op(name, [nodes[at] for at in own]))
        return firsts, ops

    def _op(self, name: str, nodes: Sequence[Node]) -> Op:
        origin = self._nodes.get(name)
        kind = next(filter(None, map(_collective, nodes)), "")
        if origin is None or origin.op == "output":
            return Op(name, module_path(nodes[0]), op_name(nodes[0]), kind)
        target: Any = origin.target
        return Op(self._names[origin], _module(origin), op_name(origin), COLLECTIVES.get(target, kind))

    def _of_compiled(self, graph: Graph, names: Sequence[str]) -> tuple[list[int], list[Op]]:
        """Of code that has no nodes: its collectives, and what the graph has between two."""
        _, ops = self._grouped([node for node in graph.nodes if node.op == "call_function"])
        if sum(bool(op.collective) for op in ops) == names.count(COLLECTIVE):
            return list(range(len(names))), list(_segments(ops))
        kinds = ("collective" if name == COLLECTIVE else "" for name in names)
        return list(range(len(names))), [Op("the graph", "", "compiled", kind) for kind in kinds]


def _segments(ops: Sequence[Op]) -> Iterator[Op]:
    """The collectives, and before, between and after them one op for all that compute."""
    between: list[Op] = []
    for op in ops:
        if op.collective:
            yield _as_one(between)
            yield op
            between = []
        else:
            between.append(op)
    yield _as_one(between)


def _as_one(ops: Sequence[Op]) -> Op:
    """Ops that one piece of code does, by the module that they all lie in."""
    if not ops:
        return Op("nothing", "", "compiled")
    name = ops[0].name if len(ops) == 1 else f"{ops[0].name} … {ops[-1].name}"
    parts = zip(*(op.module.split(".") for op in ops), strict=False)
    common = takewhile(lambda part: len(set(part)) == 1, parts)
    return Op(name, ".".join(part[0] for part in common), "compiled")


def _collective(node: Node) -> str:
    """What collective a rank's node is, if one."""
    target: Any = node.target
    if isinstance(target, OpOverload) and target.namespace == "_c10d_functional":
        return {"all_gather_into_tensor": "all_gather", "wait_tensor": ""}.get(
            target._schema.name.partition("::")[2], target._schema.name.partition("::")[2].rstrip("_")
        )
    return "all_gather" if target is gather_shards else "broadcast" if target in BROADCASTS else ""
