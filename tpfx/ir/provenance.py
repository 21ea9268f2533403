"""Where a node comes from: its module and layer, its source line, and the node that it was written for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch.fx import Node

from ..torch_internals.fx import OpOverload

_ORIGIN, _REPRESENTS = "tpfx_made_for", "tpfx_stands_for"
# What a node that takes the place of another has from it.
ORIGIN = ("stack_trace", "nn_module_stack", "recompute", "ac_graph_id", "partitioner_tag")


def set_origin(made: Node, name: str) -> None:
    """Record for which node of the parallel graph a node of a rank's graph was written; copies keep it."""
    made.meta[_ORIGIN] = name


def copy_origin(node: Node, made: Node) -> None:
    """Record that a node was written for that for which another one of the rank's graph was."""
    made.meta.update((key, node.meta[key]) for key in (*ORIGIN, _ORIGIN) if key in node.meta)


def origin_of(made: Node) -> str | None:
    """The name of the node of the parallel graph for which a node of a rank's graph was written."""
    name: str | None = made.meta.get(_ORIGIN)
    return name


def add_represented(made: Node, name: str) -> None:
    """Record that a node of a rank's graph is what the rank has of a node of the parallel graph."""
    made.meta[_REPRESENTS] = (*represents(made), name)


def represents(made: Node) -> tuple[str, ...]:
    """The names of the nodes of the parallel graph of which a node of a rank's graph is the rank's value.

    Several, where a rank has nothing to do: `to_partial` on rank 0, and a sum to which a rank adds zero.
    """
    names: tuple[str, ...] = made.meta.get(_REPRESENTS, ())
    return names


_TORCH = str(Path(torch.__file__).parent)


def module_path(node: Node) -> str:
    """The path of the module that a node comes from; empty for the model itself."""
    return path_of_stack(node.meta.get("nn_module_stack"))


def path_of_stack(stack: dict[str, Any] | None) -> str:
    """The innermost module of a stack as fx keeps it, as a path; empty for none."""
    if not stack:
        return ""
    holder = r"^[LG]\['\w+'\](\[\d+\])?(\.__self__)?"  # of the model: `self`, or `args[0]` of a decorator
    path = re.sub(holder, "", str(list(stack.values())[-1][0]))
    path = path.replace("._compiled_call_impl.__self__", "")  # a module that is compiled by itself too
    path = re.sub(r"\._modules\['([^']*)'\]|\['([^']*)'\]|\[(\d+)\]", r".\1\2\3", path)
    return path.strip(".")


def layer_of(path: str) -> str:
    """The path up to its first number: layers.0; empty where there is none."""
    found = re.match(r"(.*?\.)?\d+(?=\.|$)", path)
    return found.group() if found else ""


def stem_of(layer: str) -> tuple[str, int | None]:
    """layers.3 as ("layers", 3)"""
    stem, _, number = layer.rpartition(".")
    return (stem, int(number)) if number.isdigit() else (layer, None)


def source_line(node: Node) -> str:
    """The file and line that a node was captured from, `modeling_llama.py:112`; empty where none is known.

    The innermost one outside torch: of a linear layer the line that calls it, not the one inside `nn.Linear`.
    """
    frames = re.findall(r'File "([^"]+)", line (\d+)', str(node.meta.get("stack_trace") or ""))
    own = [frame for frame in frames if not frame[0].startswith(_TORCH)]
    return ":".join((own or frames)[-1]) if frames else ""


def op_name(node: Node) -> str:
    """An op as people call it: its name in the schema; every kernel of attention is `attention`."""
    if not isinstance(node.target, OpOverload):
        return str(getattr(node.target, "__name__", node.target))
    name = node.target._schema.name.partition("::")[2].lstrip("_")
    return re.sub(r"^scaled_dot_product_\w*attention\w*$", "attention", name)
