"""Rules of ops on images and signals: channels and batches are free, what slides is whole.

Channels of a convolution are a product of groups and of what is inside a group: `(g i)` go in, `(g o)` come
out. A depthwise convolution has nothing but groups, a usual one has one group; the rule is the same.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.fx import Node

from ..ir.op_dims import Bound, Call
from .rule import Lowering, Rule
from .whole_dims import unsplit

aten = torch.ops.aten


def windows(text: str, *ops: Any, shape: str | None = None, contiguous: bool = False) -> dict[Any, Rule]:
    """Rows of ops that slide over as many of the last dimensions as their names tell, `2d` of two.

    >>> windows("s -> t", aten.avg_pool2d.default)      # ... s0! s1! -> ... t0! t1!
    """
    rows = {}
    for op in ops:
        count = int(re.findall(r"(\d)d", str(op))[-1])
        pattern = re.sub(r"\w", lambda letter: _last(letter[0], count), text)  # noqa: B023
        rows[op] = Rule(pattern, shape=shape, pad_empty_shards=shape is None, contiguous=contiguous)
    return rows


def _last(letter: str, count: int) -> str:
    return " ".join(["...", *(f"{letter}{index}!" for index in range(count))])


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


def grid_sampler(call: Call) -> Bound:
    """Places of an image, the same in every channel."""
    image, places, made = _sampled(call.operands[0])
    return Rule(f"{image}, {places} -> {made}").bind(call)


def grid_sampler_backward(call: Call) -> Bound:
    """The gradient of the places is a sum over the channels that were read there."""
    image, places, made = _sampled(call.operands[1])
    gradients = zip((image, places), call.node.meta["val"], strict=True)  # that of the places, wanted or not
    results = ", ".join(text for text, value in gradients if value is not None)
    return Rule(f"{made}, {image}, {places} -> {results}", each=True).bind(call)


def _sampled(image: Node) -> tuple[str, str, str]:
    """An image, the places where it is read, and what is read there, as factors."""
    count = image.meta["val"].dim() - 2
    pixels, places = (" ".join(f"{letter}{index}!" for index in range(count)) for letter in "st")
    return f"n c {pixels}", f"n {places} p!", f"n c {places}"


# A result for what slides, with its places where a maximum is asked for; and the gradients of both.
IMAGES: dict[Any, Rule] = {
    aten.convolution.default: Rule(convolution, lower=Lowering.CONVOLUTION, pad_empty_shards=True),
    aten.convolution_backward.default: Rule(
        convolution_backward, lower=Lowering.CONVOLUTION, pad_empty_shards=True
    ),
    aten.grid_sampler_2d.default: Rule(grid_sampler, pad_empty_shards=True),
    aten.grid_sampler_3d.default: Rule(grid_sampler, pad_empty_shards=True),
    aten.grid_sampler_2d_backward.default: Rule(grid_sampler_backward, pad_empty_shards=True),
    aten.grid_sampler_3d_backward.default: Rule(grid_sampler_backward, pad_empty_shards=True),
    aten.im2col.default: Rule("n c! h! w! -> n k! l!", pad_empty_shards=True),
    aten.col2im.default: Rule("n k! l! -> n c! y! x!", pad_empty_shards=True),
    **windows(
        "s -> t",
        aten.avg_pool2d.default,
        aten.avg_pool3d.default,
        aten._adaptive_avg_pool2d.default,
        aten._adaptive_avg_pool3d.default,
        aten.reflection_pad1d.default,
        aten.reflection_pad2d.default,
        aten.reflection_pad3d.default,
        aten.replication_pad1d.default,
        aten.replication_pad2d.default,
        aten.replication_pad3d.default,
        aten.upsample_nearest1d.default,
        aten.upsample_linear1d.default,
        aten.upsample_nearest2d.default,
        aten._upsample_nearest_exact2d.default,
        aten.upsample_bilinear2d.default,
        aten._upsample_bilinear2d_aa.default,
        aten.upsample_bicubic2d.default,
        aten._upsample_bicubic2d_aa.default,
    ),
    **windows(
        "t, s -> s",
        aten.avg_pool2d_backward.default,
        aten.avg_pool3d_backward.default,
        aten._adaptive_avg_pool2d_backward.default,
        aten._adaptive_avg_pool3d_backward.default,
        aten.reflection_pad1d_backward.default,
        aten.reflection_pad2d_backward.default,
        aten.reflection_pad3d_backward.default,
        aten.replication_pad1d_backward.default,
        aten.replication_pad2d_backward.default,
        aten.replication_pad3d_backward.default,
    ),
    **windows(
        "t -> s",
        aten._upsample_bilinear2d_aa_backward.default,
        aten._upsample_bicubic2d_aa_backward.default,
        shape="input_size",
    ),
    **windows(
        "s -> t, t",
        aten.max_pool2d_with_indices.default,
        aten.max_pool3d_with_indices.default,
        aten.adaptive_max_pool2d.default,
        aten.adaptive_max_pool3d.default,
    ),
    aten.fractional_max_pool2d.default: Rule(
        "... h! w!, ... r! -> ... y! x!, ... y! x!", pad_empty_shards=True
    ),
    aten.fractional_max_pool3d.default: Rule(
        "... d! h! w!, ... r! -> ... z! y! x!, ... z! y! x!", pad_empty_shards=True
    ),
    **windows(
        "t, s, t -> s",
        aten.max_pool2d_with_indices_backward.default,
        aten.max_pool3d_with_indices_backward.default,
        aten.adaptive_max_pool2d_backward.default,
    ),
    **windows(  # some kernels read places as if they lay one after the other
        "t, s, t -> s",
        aten.adaptive_max_pool3d_backward.default,
        aten.fractional_max_pool2d_backward.default,
        aten.fractional_max_pool3d_backward.default,
        contiguous=True,
    ),
    **windows("s, s -> t", aten.max_unpool2d.default, aten.max_unpool3d.default),
}
