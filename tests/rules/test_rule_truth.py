"""Every row of the table of ops is true: split as it allows, an op gives what it gives whole."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from tests.support import (  # noqa: F401  (register their samples)
    rule_samples_gradients,
    rule_samples_images,
    rule_samples_indexing,
    rule_samples_matrices,
    rule_samples_pointwise,
    rule_samples_shapes,
)
from tests.support.axes_samples import structures
from tests.support.packed_linear import NESTED, Weight4
from tests.support.packed_linear import ops as packed_ops
from tests.support.quantized import quanto
from tests.support.rule_samples import SAMPLES, Case, Sampler
from tpfx.rules import whole_dims
from tpfx.rules.quantized import KERNELS
from tpfx.rules.table import _EXTERNAL, TABLE, rule_for
from tpfx.verify.rule_check import check_rule

aten = torch.ops.aten

# Rows that allow nothing to be split.
UNSPLIT = {
    aten.arange.default,
    aten.arange.start,
    aten.arange.start_step,
    aten.scalar_tensor.default,
    aten.any.default,
    aten.all.default,
    aten.histc.default,
    aten.max.default,
    aten.min.default,
    aten.median.default,
    aten.nanmedian.default,
    aten.prod.default,
    aten.masked_scatter.default,
    aten.put.default,
    aten.as_strided.default,
    aten.linspace.default,
    aten.eye.default,
    aten.eye.m,
    aten.tril_indices.default,
    aten.triu_indices.default,
    aten.empty_strided.default,
    aten.new_empty_strided.default,
    aten.as_strided_scatter.default,
    aten.masked_scatter_backward.default,
    aten.nonzero_static.default,
}
CUDA_ONLY = {
    aten._fused_rms_norm_backward.default,
    aten._scaled_dot_product_flash_attention_backward.default,
    aten._scaled_dot_product_efficient_attention_backward.default,
    aten._scaled_dot_product_cudnn_attention_backward.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}
# Nothing is split: the shape of the result depends on the numbers, or all of the state on all of the last.
UNRUN = {
    aten.masked_select.default,
    aten.nonzero.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.mkldnn_rnn_layer.default,
    aten.mkldnn_rnn_layer_backward.default,
    aten._cudnn_rnn.default,
}
# They return no tensor; tests/end_to_end/test_plain.py runs them.
NOT_OF_TENSORS = {
    aten.sym_size.int,
    aten.sym_numel.default,
    aten.sym_stride.int,
    aten.sym_storage_offset.default,
    aten._local_scalar_dense.default,
    aten._assert_async.default,
    aten._assert_async.msg,
    aten._linalg_check_errors.default,
}
COUNTS: dict[Any, int] = {}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few elements: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@st.composite
def cases(draw: Any, op: Any) -> tuple[Case, tuple[str | None, ...]]:
    """A call, and what the dimensions of its tensors are made of."""
    case = SAMPLES[op](Sampler(draw))
    texts: list[str | None] = []
    for value in _flat([*case.args, *case.kwargs.values()]):
        if isinstance(value, torch.Tensor):
            refined = draw(st.integers(0, 2))
            texts.append(" ".join(draw(structures(size)) for size in value.shape) if refined else None)
    return case, tuple(texts)


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def tried(op: Any, examples: int) -> int:
    """How many divisions and partial sums were run, over so many calls of an op."""
    counts: list[int] = []

    @hypothesis.settings(max_examples=examples)
    @hypothesis.seed(zlib.crc32(str(op).encode()))
    @hypothesis.given(cases(op), st.booleans(), st.integers(0, 99))
    def run(case: tuple[Case, tuple[str | None, ...]], late: bool, seed: int) -> None:
        call, texts = case
        how: Any = {"dims": texts, "late": late, "dense": call.dense, "values": call.values, "seed": seed}
        counts.append(check_rule(op, *call.args, **how, **call.kwargs))

    run()
    return sum(counts)


@pytest.mark.parametrize("op", [op for op in TABLE if op in SAMPLES], ids=str)
def test_rule_is_true(op: Any) -> None:
    COUNTS[op] = tried(op, examples=12)
    assert COUNTS[op] == 0 if op in UNSPLIT else COUNTS[op] > 3, (
        "hardly ever split: its samples are too narrow"
    )


NUMBER, PLACE = torch.tensor(2.0), torch.tensor(0)


@pytest.mark.parametrize(
    ("op", "args"),
    [
        (aten.unfold.default, (NUMBER, 0, 1, 1)),
        (aten.index_select.default, (NUMBER, 0, PLACE)),
        (aten.index_copy.default, (NUMBER, 0, PLACE, NUMBER)),
        (aten.index_add.default, (NUMBER, 0, PLACE, NUMBER)),
        (aten.index_fill.int_Scalar, (NUMBER, 0, PLACE, 1.0)),
        (aten.gather.default, (NUMBER, 0, PLACE[None])),
        (aten.scatter.src, (NUMBER, 0, PLACE, NUMBER)),
        (aten.scatter_add.default, (NUMBER, 0, PLACE, NUMBER)),
        (aten._softmax_backward_data.default, (NUMBER, NUMBER, 0, torch.float32)),
        (aten.sort.default, (NUMBER, 0)),
        (aten.cumsum.default, (NUMBER, 0)),
    ],
    ids=str,
)
def test_along_the_dimension_that_a_number_has_not(op: Any, args: tuple[Any, ...]) -> None:
    """torch takes a number for one of one dimension; there is nothing to divide."""
    assert check_rule(op, *args, ranks=(2,)) <= 1  # or a partial sum


def test_every_row_has_samples() -> None:
    assert set(TABLE) - NOT_OF_TENSORS - CUDA_ONLY - UNRUN == set(SAMPLES)
    assert {TABLE[op].pattern for op in UNRUN} == {whole_dims.unsplit}


def test_enough_was_run() -> None:
    for op in set(SAMPLES) - set(COUNTS):  # run by another worker, or not selected
        COUNTS[op] = tried(op, examples=2)
    print(f"{sum(COUNTS.values())} divisions and partial sums of {len(COUNTS)} ops")
    assert sum(COUNTS.values()) > 2000


def _cuda_attention(op: Any, device: str) -> Iterator[tuple[Any, ...]]:
    """Calls of an attention that only CUDA has: causal, with a bias, with fewer heads of keys."""
    for heads, groups, causal in ((4, 4, True), (6, 6, False), (6, 3, False)):
        make = [(2, heads, 8, 16), (2, groups, 8, 16), (2, groups, 8, 16)]
        query, key, value = (torch.randn(shape, dtype=torch.float16, device=device) for shape in make)
        if op is aten._scaled_dot_product_flash_attention.default:
            yield query, key, value, 0.0, causal, False
        elif heads == groups:
            bias = None if causal else torch.randn(2, heads, 8, 8, dtype=torch.float16, device=device)
            yield query, key, value, bias, True, 0.0, causal


def _cuda_attention_backward(op: Any, device: str) -> Iterator[tuple[Any, ...]]:
    """Calls of its backward, with what its forward returns; a bias with its gradient, and without."""
    forward = getattr(aten, op.name().removeprefix("aten::").removesuffix("_backward")).default
    for given in _cuda_attention(forward, device):
        made = forward(*given)
        out, sums, bias = made[0], made[1], given[3]
        gradient, (query, key, value) = torch.randn_like(out), given[:3]
        if op is aten._scaled_dot_product_flash_attention_backward.default:
            yield gradient, query, key, value, out, sums, *made[2:6], 0.0, given[4], *made[6:8]
        elif op is aten._scaled_dot_product_cudnn_attention_backward.default:
            yield gradient, query, key, value, out, sums, *made[6:8], bias, *made[2:6], 0.0, given[6]
        else:
            for wanted in {False, bias is not None}:
                masks = [True, True, True, wanted]
                yield gradient, query, key, value, bias, out, sums, *made[2:4], 0.0, masks, given[6]


FORWARD = sorted((op for op in CUDA_ONLY if "attention" in str(op) and "backward" not in str(op)), key=str)
BACKWARD = sorted((op for op in CUDA_ONLY if "attention" in str(op) and "backward" in str(op)), key=str)


# The others are states of a dropout that there is not; and some kernels pad what they sum over with anything.
WRITTEN: dict[Any, tuple[int, ...]] = {
    aten._scaled_dot_product_flash_attention.default: (0, 1),
    aten._scaled_dot_product_efficient_attention.default: (0,),
    aten._scaled_dot_product_cudnn_attention.default: (0, 1),
}


def _calls(op: Any, device: str) -> Iterator[tuple[Any, ...]]:
    return (_cuda_attention_backward if op in BACKWARD else _cuda_attention)(op, device)


@pytest.mark.parametrize("op", FORWARD + BACKWARD, ids=str)
def test_shapes_of_attention_for_cuda(op: Any) -> None:
    """Without a GPU the results' shapes can be checked, on the meta device."""
    assert min(check_rule(op, *args, values=False) for args in _calls(op, "meta")) > 3


@pytest.mark.cuda
@pytest.mark.parametrize("op", FORWARD + BACKWARD, ids=str)
def test_rule_of_attention_for_cuda_is_true(op: Any) -> None:
    assert min(check_rule(op, *args, values=WRITTEN.get(op, True)) for args in _calls(op, "cuda")) > 3


def _grouped(dtype: torch.dtype, name: str) -> tuple[torch.Tensor, ...]:
    offsets = torch.tensor([2, 2, 6], dtype=torch.int32)
    given = torch.randn(6, 16, dtype=dtype), torch.randn(3, 16, 8, dtype=dtype), offsets
    return (*given, torch.randn(6, 8, dtype=dtype)) if "backward" in name else given


SPLIT = sorted(
    name
    for name, rule in _EXTERNAL.items()
    if rule.pattern is not whole_dims.unsplit and name not in KERNELS  # those are below
)


@pytest.mark.parametrize("name", SPLIT)
def test_external_rule_is_true(name: str) -> None:
    namespace, op, overload = name.split(".")
    if namespace == "transformers":
        pytest.importorskip("transformers.integrations.moe")
    if not hasattr(getattr(torch.ops, namespace), op):
        pytest.skip("this release of the library does not have it")
    target = getattr(getattr(getattr(torch.ops, namespace), op), overload)
    dims = ("t:6 (m:4 k:4)", "e:3 (m:4 k:4) [n:4|o:4]")
    tried = [
        check_rule(target, *_grouped(dtype, name), dims=texts, dense=True)  # it asks for strides, and says so
        for texts in ((), dims)
        for dtype in ((torch.bfloat16,) if namespace == "aten" else (torch.float32, torch.float64))
    ]
    assert min(tried) > 4


PACKED = [(6, 256, 64, 6), (5, 384, 128, 6), (8, 96, 64, 4), (7, 64, 32, 6), (4, 32, 64, 2), (6, 100, 64, 0)]


@pytest.mark.parametrize(("rows", "columns", "block", "least"), PACKED)
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_rules_of_packed_weights_are_true(
    rows: int, columns: int, block: int, least: int, storage: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight = Weight4.of(torch.randn(rows, columns), block, False, storage)
    words, scales, size = weight.as_subclass(torch.Tensor).detach(), weight.state.absmax, [rows, columns]
    x, bias = torch.randn(3, 2, columns), torch.randn(rows)
    tried = [
        check_rule(packed_ops.gemm_4bit.default, x, words, size, scales, block, "nf4", dense=True),
        check_rule(packed_ops.gemm_4bit.default, x, words, size, scales, block, "nf4", bias, dense=True),
        check_rule(
            packed_ops.dequantize_4bit.default, words, scales, block, "nf4", size, torch.float32, dense=True
        ),
    ]
    assert min(tried) >= least and (least > 0 or tried == [0, 0, 0])


@pytest.mark.parametrize("dims", [(), ("(n:48 k:8)", "s:2", "t:256")])
def test_numbers_are_scaled_by_their_blocks_wherever_those_end(dims: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    state = Weight4.of(torch.randn(48, 256), 32, nested=True).state
    inner: Any = state.state2
    given = state.absmax, inner.absmax, inner.code, NESTED, torch.float32
    assert check_rule(packed_ops.dequantize_blockwise.default, *given, dims=dims, dense=True) >= 3


def test_rules_of_kernels_of_quanto_are_true() -> None:
    torch.manual_seed(0)
    numbers, scales = torch.randint(-9, 9, (6, 8), dtype=torch.int8), torch.rand(6, 1)
    for x in (torch.randn(3, 8), torch.randn(2, 3, 8)):
        assert check_rule(quanto.qbytes_mm.default, x, numbers, scales) >= 4
    assert check_rule(quanto.qbytes_mm.default, torch.randn(3, 8), numbers, torch.tensor(2.0)) == 0
    packed = torch.randint(0, 255, (6, 5), dtype=torch.uint8)
    assert min(check_rule(quanto.unpack.default, packed, bits) for bits in (2, 4)) >= 2


def _pointwise() -> list[Any]:
    """Every op that PyTorch tags as pointwise, that is no row and neither writes nor draws numbers."""
    found = []
    for name in dir(aten):
        packet = getattr(aten, name)
        for overload in packet.overloads() if isinstance(packet, torch._ops.OpOverloadPacket) else ():
            op = getattr(packet, overload)
            random = torch.Tag.nondeterministic_seeded in op.tags
            if torch.Tag.pointwise in op.tags and op not in TABLE and not random and rule_for(op) is not None:
                found.append(op)
    return found


_SHAPES = ([3, 4], [4], [3, 1], [1, 1, 4])
_MAKERS = (
    lambda *shape: torch.rand(shape, dtype=torch.float64) * 0.8 + 0.1,
    lambda *shape: torch.randint(1, 5, shape),
    lambda *shape: torch.rand(shape) > 0.5,
)


def _arguments(op: Any, make: Any) -> list[Any]:
    """Arguments of some kind for a schema; those that have a default are left out."""
    shapes = iter(_SHAPES)
    known: dict[str, Any] = {"int": 1, "float": 0.5, "number": 2, "bool": True, "str": "none"}
    given: list[Any] = []
    for argument in op._schema.arguments:
        if argument.has_default_value() or argument.kwarg_only:
            break
        kind = str(argument.type)
        given.append(make(*next(shapes)) if kind == "Tensor" else known.get(kind))
    return given


def _tried_pointwise(op: Any) -> int:
    count = 0
    for make in _MAKERS:
        given = _arguments(op, make)
        try:
            for device in ("cpu", "meta"):
                op(*(value.to(device) if isinstance(value, torch.Tensor) else value for value in given))
        except (RuntimeError, NotImplementedError, IndexError, ValueError, TypeError):
            continue  # not an op for such numbers
        count += check_rule(op, *given)
    return count


def test_pointwise_ops_are_true() -> None:
    """An op's tag stands for a row: broadcasting, and each index by itself."""
    counts = {str(op): _tried_pointwise(op) for op in _pointwise()}
    used = sum(map(bool, counts.values()))
    print(f"{sum(counts.values())} divisions of {used} of {len(counts)} pointwise ops")
    assert used > 150
    print("not run:", *(name for name, count in counts.items() if not count))
    named = ["gt.Tensor", "eq.Scalar", "maximum.default", "pow.Tensor_Scalar", "gelu.default", "silu.default"]
    assert all(
        counts[f"aten.{name}"] > 4 for name in [*named, "exp.default", "lerp.Tensor", "logical_and.default"]
    )


def test_pointwise_ops_with_optional_operands_are_true() -> None:
    x, low, high = torch.randn(3, 4), torch.zeros(4), torch.ones(3, 1)
    assert check_rule(aten.clamp.Tensor, x, low, high) > 4
    assert check_rule(aten.clamp.Tensor, x, None, high) > 4
    assert check_rule(aten.clamp.default, x, 0.0) > 4
