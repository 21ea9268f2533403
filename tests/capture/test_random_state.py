"""In which part of a joint graph something draws, and what stays though nothing uses it."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule

from tests.support.random_nets import Drawing
from tpfx.capture.capture import capture

aten, higher_order = torch.ops.aten, torch.ops.higher_order
NOISE = torch.ops.tpfx_tests.noise.default


def targets(part: GraphModule) -> list[object]:
    return [node.target for node in part.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("name", "op", "forward", "backward"),
    [
        ("checkpointed", higher_order.run_and_save_rng_state, 4, 0),
        ("checkpointed", higher_order.run_with_rng_state, 0, 4),
        ("checkpointed_op", NOISE, 1, 0),
        ("custom_op", NOISE, 2, 0),
        ("noise_in_the_backward_pass", aten.randn.default, 0, 1),
        ("noise_in_the_backward_pass", aten.randn_like.default, 0, 1),
        ("mask_for_the_backward_pass", aten.rand_like.default, 1, 0),
        ("unused", aten.rand.default, 1, 0),
    ],
)
def test_parts(name: str, op: object, forward: int, backward: int) -> None:
    (captured,) = capture(Drawing(name), (torch.zeros(3, 8),), phase="train")
    assert captured.joint is not None
    parts = captured.joint.parts(captured.copy().module)
    assert [targets(part).count(op) for part in parts] == [forward, backward]


def test_attention_that_drops_nothing_is_no_draw() -> None:
    net = Drawing("checkpointed_quiet_attention")
    (captured,) = capture(net, (torch.zeros(3, 8),), phase="train")
    assert captured.joint is not None
    module = captured.copy().module
    attention = aten._scaled_dot_product_flash_attention_for_cpu.default
    before = targets(module)
    for part in captured.joint.parts(module):
        assert attention in targets(part)
        assert not any(attention in node.args for node in part.graph.nodes)
    assert targets(module) == before
