"""Convolutions: their rule, and that of their backward.

Channels are a product of groups and of what is inside a group: `(g i)` go in, `(g o)` come out. A depthwise
convolution has nothing but groups, a usual one has one group; the rule is the same.
"""

from __future__ import annotations

from torch.fx import Node

from ..ir.op_dims import Bound, Call
from .rule import Rule
from .whole_dims import unsplit


def convolution(call: Call) -> Bound:
    """Channels may be split, and batches; what slides is whole."""
    x, weight, leaving, after = _groups(call, call.operands[0], call.operands[1])
    bias = f", {leaving}" if call.get("bias") is not None else ""
    pattern = f"{x}, {weight}{bias} -> n {leaving} {after}"
    if bias:  # every rank would add it to its partial sum, so what is contracted must be whole
        pattern = pattern.replace("i", "i!")
    return Rule(pattern, linear=() if bias else ((0,), (1,))).bind(call, _told(call))


def convolution_backward(call: Call) -> Bound:
    """The gradient of the input is a sum over what leaves, that of the weight over the batch."""
    if call["output_mask"][2]:  # a bias has no part in what enters; `normalize` makes its gradient a sum
        return unsplit(call)
    x, weight, leaving, after = _groups(call, call.operands[1], call.operands[2])
    made = [text for text, kept in zip((x, weight), call["output_mask"], strict=False) if kept]
    return Rule(f"n {leaving} {after}, {x}, {weight} -> {', '.join(made)}", each=True).bind(call, _told(call))


def _told(call: Call) -> dict[str, int]:
    """How many groups there are, where no operand's sizes tell: kernels lie as what enters, `(g i) o`."""
    return {"g": call["groups"]} if call["transposed"] and call["groups"] != 1 else {}


def _groups(call: Call, x: Node, weight: Node) -> tuple[str, str, str, str]:
    """What goes in, the weight, the channels that come out, and what slides there, as factors."""
    slides, (first, second, *_) = x.meta["val"].dim() - 2, map(call.size, weight.meta["val"].shape)
    space, kernel, after = (" ".join(f"{letter}{index}!" for index in range(slides)) for letter in "skt")
    groups = call["groups"]
    inner, outer = (first // groups, second) if call["transposed"] else (second, first // groups)
    entering = "i" if groups == 1 else "(g i)" if inner != 1 else "g"
    leaving = "o" if groups == 1 else "(g o)" if outer != 1 else "g"
    kernels = f"{entering} o {kernel}" if call["transposed"] else f"{leaving} i {kernel}"
    return f"n {entering} {space}", kernels, leaving, after
