"""Calls of ops, one or two a lowering, and how each is split over three ranks of which one has nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from tests.support.packed_linear import NESTED, Weight4, ops

aten = torch.ops.aten
NUMBERS = torch.arange(24, dtype=torch.float64).view(4, 6) % 7 - 2.5
IMAGES = torch.arange(200, dtype=torch.float64).view(2, 4, 5, 5) % 9 - 4
KERNELS = torch.arange(108, dtype=torch.float64).view(6, 2, 3, 3) % 5 - 2
IDS = torch.tensor([[0, 5, 3], [3, 2, 4]])
PACKED = Weight4.of(torch.arange(768.0).view(6, 128) % 11 - 5, 64, nested=False)
WORDS, SCALES = PACKED.as_subclass(torch.Tensor).detach(), PACKED.state.absmax
NESTED_STATE = Weight4.of(torch.arange(12288.0).view(48, 256) % 13 - 6, 32, nested=True).state
ABOVE: Any = NESTED_STATE.state2


@dataclass
class Case:
    """A call of an op, and the axis along which it is split over three ranks.

    `along` is the name of an axis in `dims`, which say what the operands' dimensions are made of, or the
    position of a result's dimension. `writes` is what the rank with the first shard calls.
    """

    op: Any
    args: tuple[Any, ...]
    dims: tuple[str, ...]
    along: str | tuple[int, int]
    sizes: tuple[int, ...]
    writes: tuple[str, ...]
    tolerance: float = 1e-12
    layout: str = "split"
    values: list[torch.Tensor] = field(default_factory=list)


CASES: dict[str, Case] = {
    "linear, row parallel": Case(
        aten.linear.default,
        (NUMBERS, NUMBERS[:3]),
        ("m:4 k:6", "n:3 k"),
        "k",
        (2, 0, 4),
        ("linear",),
        layout="sum",
    ),
    "linear, column parallel": Case(
        aten.linear.default, (NUMBERS, NUMBERS[:3]), ("m:4 k:6", "n:3 k"), "n", (1, 0, 2), ("linear",)
    ),
    "linear with a bias": Case(
        aten.linear.default,
        (NUMBERS, NUMBERS[:3], NUMBERS[0, :3]),
        ("m:4 k:6", "n:3 k", "n"),
        "n",
        (1, 0, 2),
        ("linear",),
    ),
    "linear in float32": Case(
        aten.linear.default,
        (NUMBERS.float(), NUMBERS[:3].float()),
        ("m:4 k:6", "n:3 k"),
        "k",
        (2, 0, 4),
        ("_linear_pointwise" if torch.backends.mkldnn.is_available() else "linear",),
        1e-5,
        "sum",
    ),
    "embedding, rows": Case(
        aten.embedding.default,
        (NUMBERS.t().contiguous(), IDS),
        ("v:6 d:4", "i:2 j:3"),
        "v",
        (2, 0, 4),
        ("embedding_shard",),
        layout="sum",
    ),
    "embedding, columns": Case(
        aten.embedding.default,
        (NUMBERS.t().contiguous(), IDS),
        ("v:6 d:4", "i:2 j:3"),
        "d",
        (1, 0, 3),
        ("embedding",),
    ),
    "embedding_backward": Case(
        aten.embedding_dense_backward.default,
        (NUMBERS.view(2, 3, 4), IDS, 6, -1, False),
        ("i:2 j:3 d:4", "i j"),
        (0, 0),
        (2, 0, 4),
        ("embedding_backward_shard",),
    ),
    "gather": Case(
        aten.gather.default,
        (NUMBERS.t().contiguous(), 0, IDS),
        ("v:6 d:4", "i:2 j:3"),
        "v",
        (2, 0, 4),
        ("gather_shard",),
        layout="sum",
    ),
    "gather, another dimension": Case(
        aten.gather.default,
        (NUMBERS, 1, torch.tensor([[0, 5], [1, 1], [3, 2], [4, 4]])),
        ("m:4 n:6", "m j:2"),
        "m",
        (1, 0, 3),
        ("gather",),
    ),
    "scatter": Case(
        aten.scatter.src,
        (NUMBERS.t().contiguous(), 0, IDS, -NUMBERS[:2, :3].contiguous()),
        ("v:6 d:4", "i:2 j:3", "i j"),
        "v",
        (2, 0, 4),
        ("scatter_shard",),
    ),
    "convolution, groups": Case(
        aten.convolution.default,
        (IMAGES, KERNELS, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 2),
        ("n:2 (g:2 i:2) h:5 w:5", "(g o:3) i p:3 q:3"),
        "g",
        (1, 0, 1),
        ("convolution",),
    ),
    "convolution, channels that go in": Case(
        aten.convolution.default,
        (IMAGES[:, :2], KERNELS, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        ("n:2 i:2 h:5 w:5", "o:6 i p:3 q:3"),
        "i",
        (1, 0, 1),
        ("convolution",),
        layout="sum",
    ),
    "group_norm, groups": Case(
        aten.native_group_norm.default,
        (IMAGES, NUMBERS[:, 0].clone(), NUMBERS[:, 1].clone(), 2, 4, 25, 2, 1e-5),
        ("n:2 (g:2 c:2) h:5 w:5", "(g c)", "(g c)"),
        "g",
        (1, 0, 1),
        ("contiguous", "contiguous", "contiguous", "native_group_norm"),
    ),
    "group_norm, batch": Case(
        aten.native_group_norm.default,
        (IMAGES, NUMBERS[:, 0].clone(), NUMBERS[:, 1].clone(), 2, 4, 25, 2, 1e-5),
        ("n:2 (g:2 c:2) h:5 w:5", "(g c)", "(g c)"),
        "n",
        (1, 0, 1),
        ("contiguous", "contiguous", "contiguous", "native_group_norm"),
    ),
    "grouped_mm, columns": Case(
        aten._grouped_mm.default,
        (
            (torch.arange(96).view(6, 16) % 5 - 2).bfloat16(),
            (torch.arange(384).view(3, 16, 8) % 3 - 1).bfloat16(),
            torch.tensor([2, 2, 6], dtype=torch.int32),
        ),
        ("t:6 k:16", "e:3 k n:8", "e"),
        "n",
        (3, 0, 5),
        ("constant_pad_nd", "constant_pad_nd", "_grouped_mm", "slice"),
        0.05,
    ),
    "grouped_mm, rows": Case(
        aten._grouped_mm.default,
        (
            (torch.arange(96).view(6, 16) % 5 - 2).bfloat16(),
            (torch.arange(384).view(3, 16, 8) % 3 - 1).bfloat16(),
            torch.tensor([2, 2, 6], dtype=torch.int32),
        ),
        ("t:6 k:16", "e:3 k n:8", "e"),
        "k",
        (5, 0, 11),
        ("constant_pad_nd", "constant_pad_nd", "_grouped_mm"),
        0.05,
        "sum",
    ),
    "mean": Case(
        aten.mean.dim, (NUMBERS, [0, 1]), ("m:4 k:6",), "k", (2, 0, 4), ("mean", "sum", "div"), layout="sum"
    ),
    "mean of everything": Case(
        aten.mean.default, (NUMBERS,), ("m:4 k:6",), "m", (1, 0, 3), ("mean", "sum", "div"), layout="sum"
    ),
    "mean of what is not split": Case(
        aten.mean.dim, (NUMBERS, [1], True), ("m:4 k:6",), "m", (1, 0, 3), ("mean",)
    ),
    "amax": Case(aten.amax.default, (NUMBERS, [1]), ("m:4 k:6",), "k", (2, 0, 4), ("amax",), layout="max"),
    "amin of integers": Case(
        aten.amin.default, (NUMBERS.long(), [0, 1]), ("m:4 k:6",), "k", (2, 0, 4), ("amin",), layout="min"
    ),
    "amax of truth values": Case(
        aten.amax.default, (NUMBERS < -9, [1]), ("m:4 k:6",), "k", (2, 0, 4), ("amax",), layout="max"
    ),
    "slice": Case(aten.slice.Tensor, (NUMBERS, 1, 0, 3), ("m:4 [a:3|b:3]",), "a", (1, 0, 2), ("slice",)),
    "slice of heads": Case(
        aten.slice.Tensor,
        (NUMBERS, 1, 0, 4),
        ("m:4 [(h:2 d:2)|1|1]",),
        "h",
        (1, 0, 1),
        ("slice",),
    ),
    "slice, another is split": Case(
        aten.slice.Tensor, (NUMBERS, 1, 3, 6), ("m:4 [a:3|b:3]",), "a", (1, 0, 2), ("slice",), layout="whole"
    ),
    "slice_backward": Case(
        aten.slice_backward.default,
        (NUMBERS[:, :3], [4, 6], 1, 3, 6, 1),
        ("m:4 a:3",),
        "a",
        (1, 0, 2),
        ("slice_backward",),
    ),
    "select": Case(
        aten.select.int, (NUMBERS, 1, 4), ("m:4 [a:4|1|1]",), "a", (1, 0, 3), ("select",), layout="whole"
    ),
    "select, another dimension": Case(
        aten.select.int, (NUMBERS, 1, 2), ("m:4 [a:2|1|b:3]",), "m", (1, 0, 3), ("select",)
    ),
    "split": Case(
        aten.split.Tensor, (NUMBERS, 3, 1), ("m:4 [a:3|a]",), "a", (1, 0, 2), ("split_with_sizes",)
    ),
    "split_with_sizes": Case(
        aten.split_with_sizes.default,
        (NUMBERS, [2, 4], -1),
        ("m:4 [(h:2 1)|(h d:2)]",),
        "h",
        (1, 0, 1),
        ("split_with_sizes",),
    ),
    "squeeze": Case(aten.squeeze.dim, (NUMBERS[:2], 0), ("m:2 k:6",), "m", (1, 0, 1), ("squeeze",)),
    "squeeze everything": Case(
        aten.squeeze.default, (NUMBERS[:2, None],), ("m:2 1 k:6",), "m", (1, 0, 1), ("squeeze",)
    ),
    "a column: padded": Case(
        aten.avg_pool2d.default, (IMAGES, [2, 2]), ("n:2 c:4 h:5 w:5",), "c", (1, 0, 3), ("avg_pool2d",)
    ),
    "a column: contiguous": Case(
        aten.view_as_complex.default,
        (NUMBERS.view(4, 3, 2).transpose(0, 1),),
        ("m:3 n:4 p:2",),
        "n",
        (1, 0, 3),
        ("contiguous", "view_as_complex"),
    ),
    "a column: the shape": Case(
        aten.reshape.default, (NUMBERS, [2, 2, 6]), ("(a:2 b:2) k:6",), "k", (1, 0, 5), ("reshape",)
    ),
    "product with a packed matrix, column parallel": Case(
        ops.gemm_4bit.default,
        (torch.arange(256.0).view(2, 128) % 7 - 3, WORDS, [6, 128], SCALES, 64, "nf4"),
        ("m:2 (c:2 k:64)", "(n:6 c w:32) 1", "(n c)"),
        "n",
        (2, 0, 4),
        ("gemm_4bit",),
        tolerance=1e-4,
    ),
    "product with a packed matrix, row parallel": Case(
        ops.gemm_4bit.default,
        (torch.arange(256.0).view(2, 128) % 7 - 3, WORDS, [6, 128], SCALES, 64, "nf4"),
        ("m:2 (c:2 k:64)", "(n:6 c w:32) 1", "(n c)"),
        "c",
        (1, 0, 1),
        ("gemm_4bit",),
        tolerance=1e-4,
        layout="sum",
    ),
    "a packed matrix unpacked": Case(
        ops.dequantize_4bit.default,
        (WORDS, SCALES, 64, "nf4", [6, 128], torch.float32),
        ("(n:6 c:2 w:32) 1", "(n c)"),
        "n",
        (1, 0, 5),
        ("dequantize_4bit",),
        tolerance=1e-6,
    ),
    "numbers by blocks that end in the middle": Case(
        ops.dequantize_blockwise.default,
        (NESTED_STATE.absmax, ABOVE.absmax, ABOVE.code, NESTED, torch.float32),
        ("(n:48 k:8)", "s:2", "t:256"),
        "n",
        (20, 0, 28),
        ("scaled_shard",),
        tolerance=1e-6,
    ),
}
