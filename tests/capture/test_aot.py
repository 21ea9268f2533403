"""The life of a captured graph: what is called with it, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from tests.support.nets import Net
from tpfx.capture.aot import Compiled, Part, boxed, trace
from tpfx.capture.gradient_flow import GradientFlow
from tpfx.capture.graph import Captured
from tpfx.capture.sources import input_sources, weight_sources
from tpfx.errors import TpfxError
from tpfx.ir.annotations import Source, gradients_in
from tpfx.ir.parallel_graph import ParallelGraph
from tpfx.passes.pipeline import parallelize
from tpfx.torch_internals.fake import FakeTensor


class Ended(Exception):
    """Ends a call."""


@dataclass
class Log:
    """Writes down what it is called with; plans if it shall, and runs what it gets."""

    plans: bool = False
    events: list[str] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    parallel: ParallelGraph | None = None

    def plan(self, graph: Captured) -> ParallelGraph | None:
        self.events.append("plan joint" if graph.joint else "plan")
        assert not isinstance(torch.zeros(1), FakeTensor), "a pass that makes a tensor would get a fake one"
        self.sources = graph.sources
        if self.plans:
            self.parallel = parallelize(graph.module.graph, graph.sources, 2)
        return self.parallel

    def finish(self, lowered: GraphModule, part: Part) -> Compiled:
        self.events.append(part)

        def run(args: list[Any]) -> Any:
            self.events.append(f"run {part}")
            if self.plans:  # planned, but not lowered for any rank
                raise Ended
            return lowered(*args)

        return boxed(run)

    def differentiate(self, compiled: Compiled, flow: GradientFlow) -> Compiled:
        self.events.append("differentiate")
        return compiled


def compiled(net: Net, log: Log) -> Any:
    """A net whose graphs are logged."""
    weights = weight_sources(net)

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Compiled:
        return trace(module, input_sources(module, inputs, weights), log)

    return torch.compile(net, backend=backend)


def test_a_graph_without_gradients_is_planned_then_finished() -> None:
    net, log, x = Net(), Log(), torch.randn(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(compiled(net, log)(x), net(x))
    assert log.events == ["plan", "whole", "run whole"]
    kinds = {source.name: source.kind for source in log.sources}
    assert kinds.pop("down.weight") == "parameter"
    assert sorted(kinds.values()) == ["input"] + ["parameter"] * 5


def test_forward_and_backward_are_planned_as_one_then_parted() -> None:
    net, log = Net(), Log()
    compiled(net, log)(torch.randn(3, 8)).sum().backward()
    assert log.events[:2] == ["plan joint", "forward"]
    assert sorted(log.events[2:]) == ["backward", "differentiate", "run backward", "run forward"]
    assert [source.kind for source in log.sources][-1] == "tangent"
    assert net.up.weight.grad is not None


def test_the_planned_graph_knows_what_is_backward_after_the_partition() -> None:
    net, log = Net(), Log(plans=True)
    with pytest.raises(Ended):
        compiled(net, log)(torch.randn(3, 8))
    assert log.events == ["plan joint", "forward", "differentiate", "run forward"]
    assert log.parallel is not None
    graph, backward = log.parallel.graph, log.parallel.backward
    output = graph.output_node()
    gradients = {output.args[0][at].name for at in gradients_in(output)}  # type: ignore[index, union-attr]
    assert len(gradients) == 6
    assert gradients <= backward < {node.name for node in graph.nodes}
    assert output.args[0][0].name not in backward  # type: ignore[index, union-attr]


def test_sources_that_do_not_fit_are_refused() -> None:
    log = Log()

    def backend(module: GraphModule, inputs: Sequence[Any]) -> Compiled:
        return trace(module, [Source("input", "x")], log)

    with torch.no_grad(), pytest.raises(Exception, match="takes 7 inputs where the model gave 1") as caught:
        torch.compile(Net(), backend=backend)(torch.randn(3, 8))
    assert isinstance(getattr(caught.value, "inner_exception", None), TpfxError)
    assert log.events == []
