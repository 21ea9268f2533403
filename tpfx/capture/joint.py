"""Joint graphs of forward and backward: which results are gradients, and the partition in two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, GraphModule, Node

from ..ir.annotations import set_gradients
from ..torch_internals.aot import min_cut_rematerialization_partition


@dataclass
class Joint:
    """What the min-cut partition of a joint graph needs: how many results are the model's, and its inputs."""

    results: int
    options: dict[str, Any]

    def parts(self, module: GraphModule) -> tuple[GraphModule, GraphModule]:
        """The forward and the backward part."""
        options = dict(self.options)
        inputs = options.pop("inputs")
        parts: tuple[GraphModule, GraphModule] = min_cut_rematerialization_partition(
            module, inputs, num_fwd_outputs=self.results, **options
        )
        return parts


def mark_gradients(joint: Graph, results: int) -> None:
    """Record which values of a joint graph are gradients: after the results, one for each input, or none."""
    output = joint.output_node()
    inputs = [node for node in joint.find_nodes(op="placeholder") if not is_tangent(node)]
    returned: Sequence[Any] = output.args[0]  # type: ignore[assignment]
    gradients = zip(range(results, len(returned)), inputs, strict=True)
    set_gradients(output, {at: node for at, node in gradients if isinstance(returned[at], Node)})


def is_tangent(node: Node) -> bool:
    """Whether an input of a joint graph is the gradient of one of its results."""
    return str(node.target).startswith("tangents")
