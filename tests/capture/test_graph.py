"""Captured graphs: gradients are marked, copies are apart, a joint graph is parted."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.support.nets import Net
from tpfx.capture.capture import capture
from tpfx.capture.graph import Captured
from tpfx.ir.annotations import gradients_in


def joint_graph() -> Captured:
    """A training step of a net whose norm is not trained."""
    net = Net()
    for parameter in net.norm.parameters():
        parameter.requires_grad = False
    (captured,) = capture(net, (torch.zeros(3, 8),), phase="train")
    return captured


def marked(captured: Captured) -> Sequence[str]:
    """The names of the inputs of which the graph returns gradients, in the order of the results."""
    graph = captured.module.graph
    placeholders = graph.find_nodes(op="placeholder")
    gradients = gradients_in(graph.output_node())
    return [captured.sources[placeholders.index(gradients[at])].name for at in sorted(gradients)]


def test_a_captured_training_graph_has_its_gradients_marked() -> None:
    captured = joint_graph()
    assert captured.joint is not None and captured.joint.results == 1
    assert sorted(marked(captured)) == ["down.bias", "down.weight", "up.bias", "up.weight"]
    returned = captured.module.graph.output_node().args[0]
    assert isinstance(returned, (tuple, list))
    for at, weight in gradients_in(captured.module.graph.output_node()).items():
        assert returned[at].meta["val"].shape == weight.meta["val"].shape
    assert [source.kind for source in captured.sources].count("tangent") == 1


def test_a_copy_has_gradients_and_sources_of_its_own() -> None:
    captured = joint_graph()
    copy = captured.copy()
    assert marked(copy) == marked(captured)
    for at, weight in gradients_in(copy.module.graph.output_node()).items():
        assert weight.graph is copy.module.graph
        assert gradients_in(captured.module.graph.output_node())[at].graph is captured.module.graph
    copy.sources.clear()
    assert captured.sources


def test_results_are_those_of_the_model() -> None:
    (value,) = joint_graph().results()
    assert list(value.shape[1:]) == [8]
    (captured,) = capture(Net(), (torch.zeros(3, 8),))
    assert captured.joint is None
    assert [list(value.shape[1:]) for value in captured.results()] == [[8]]


def test_a_joint_graph_is_parted_in_forward_and_backward() -> None:
    captured = joint_graph()
    assert captured.joint is not None
    forward, backward = captured.joint.parts(captured.copy().module)
    returned = forward.graph.output_node().args[0], backward.graph.output_node().args[0]
    assert all(isinstance(values, (tuple, list)) for values in returned)
    assert any("tangents" in node.name for node in backward.graph.find_nodes(op="placeholder"))
    assert not any("tangents" in node.name for node in forward.graph.find_nodes(op="placeholder"))
    assert len([value for value in returned[1] if value is not None]) == 4  # type: ignore[union-attr]
