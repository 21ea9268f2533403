"""Unification: what it deduces of dimensions, on drawn structures and on the shapes of known models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from tests.support.axes_samples import structures
from tpfx.ir.annotations import dims_of
from tpfx.ir.axes import (
    Dim,
    Product,
    axes,
    concat,
    cut,
    factors,
    find,
    occurrences,
    product,
    quotient,
    same,
    segments,
    show,
    slice_of,
    unify,
)
from tpfx.ir.axes_text import read
from tpfx.passes.infer_axes import infer_axes

aten = torch.ops.aten
SIZES = st.sampled_from([4, 6, 8, 12, 24])


@st.composite
def pairs(draw: Any) -> tuple[str, str]:
    """Two structures of one size."""
    size = draw(SIZES)
    return draw(structures(size)), draw(structures(size))


def checked_size(dim: Dim) -> int:
    """A dimension's size, after checking that those of its parts make it up."""
    root = find(dim)
    assert isinstance(root.size, int)
    if root.form is not None:
        parts = [checked_size(part) for part in root.form.parts]
        total = 1 if isinstance(root.form, Product) else 0
        for part in parts:
            total = total * part if isinstance(root.form, Product) else total + part
        assert total == root.size
    return root.size


@given(SIZES.flatmap(structures))
def test_text_is_read_as_it_is_shown(text: str) -> None:
    shown = show(read(text))
    assert show(read(shown[0])) == shown


@given(pairs())
def test_what_is_unified_reads_the_same(texts: tuple[str, str]) -> None:
    left, right = (read(text)[0] for text in texts)
    size = checked_size(left)
    unified = unify(left, right)
    assert checked_size(left) == checked_size(right) == size
    if unified:
        names: dict[Dim, str] = {}
        assert show([left], names) == show([right], names)
        assert axes(left) == axes(right)
        assert same(left, right)


@given(SIZES.flatmap(structures), st.data())
def test_an_axis_takes_any_structure(text: str, data: st.DataObject) -> None:
    (dim,) = read(text)
    expected = str(dim)
    axis = Dim(find(dim).size)
    assert unify(*data.draw(st.permutations([axis, dim])))
    assert str(axis) == expected


@given(SIZES.flatmap(structures), st.data())
def test_cut_keeps_sizes(text: str, data: st.DataObject) -> None:
    (dim,) = read(text)
    size = checked_size(dim)
    at = data.draw(st.integers(1, size - 1))
    halves = cut(dim, at)
    assert checked_size(dim) == size
    if halves is not None:
        assert [checked_size(half) for half in halves] == [at, size - at]
        again = cut(dim, at)
        assert again is not None and all(unify(*pair) for pair in zip(halves, again, strict=True))


@given(SIZES.flatmap(structures), st.data())
def test_slice_has_its_size(text: str, data: st.DataObject) -> None:
    (dim,) = read(text)
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, checked_size(dim))] * 2)))
    part = slice_of(dim, start, stop)
    assert part is None or checked_size(part) == stop - start


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_products_multiply_and_concatenations_add_up(sizes: list[int]) -> None:
    dims = [Dim(size) for size in sizes]
    assert checked_size(product(dims)) == torch.Size(sizes).numel()
    assert checked_size(concat(dims)) == sum(sizes)
    assert factors(product(dims)) == [dim for dim in dims if dim.size != 1]
    assert segments(concat(dims)) == dims


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("a:24", "(h:4 d:6)", "(a:4 b:6)"),
        ("(a:12 b:2)", "(c:3 d:8)", "(a:3 b:4 c:2)"),
        ("(a:4 b:6)", "(c:6 d:4)", None),
        ("[a:8|b:16]", "[c:12|d:12]", "[a:8|b:4|c:12]"),
        ("(h:3 d:8)", "[a:16|b:8]", "([a:2|1] b:8)"),
        ("(h:3 d:8)", "[a:12|b:12]", None),
        ("[a:8|b:8]", "[(h:2 d:4)|e:8]", "[(a:2 b:4)|c:8]"),
        ("[r:4|r]", "[(h:2 d:2)|e:4]", "[(a:2 b:2)|(a:2 b:2)]"),
        ("a:1", "b:1", "1"),
        ("a:4", "b:6", None),
    ],
)
def test_unify(left: str, right: str, expected: str | None) -> None:
    (x,), (y,) = read(left), read(right)
    assert unify(x, y) == (expected is not None)
    if expected is not None:
        assert str(x) == str(y) == expected


def test_occurrences_along_an_index() -> None:
    names: dict[str, Dim] = {}
    both, one, other = read("[r:4|r] [r|b:3] (b r)", names)
    r, b = find(names["r"]), find(names["b"])
    assert [occurrences(dim, r) for dim in (both, one, other)] == [(1, 1), (0, 1), (1, 1)]
    assert [occurrences(dim, b) for dim in (both, one, other)] == [(0, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("size", "divisor", "expected"), [(12, 4, 3), (12, 5, None), (12, 0, None), (0, 4, 0), (4, 12, None)]
)
def test_quotient(size: int, divisor: int, expected: int | None) -> None:
    assert quotient(size, divisor) == expected


def inferred(function: Callable[..., Any], *shapes: tuple[int, ...]) -> list[str]:
    """The dimensions of a function's inputs, as its ops make them out."""
    graph = make_fx(function, tracing_mode="fake")(*(torch.randn(shape) for shape in shapes)).graph
    infer_axes(graph)
    names: dict[Dim, str] = {}
    return [" ".join(show(dims_of(node), names)) for node in graph.find_nodes(op="placeholder")]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of `[batch, length, heads, size]`, the result flat."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    output = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]
    return output.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1)


def rotate(x: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x + torch.cat([-x[..., half:], x[..., :half]], -1)


def test_llama() -> None:
    """Two KV heads serve two query heads each, rotary halves: q is (kv rep [r|r])."""

    def function(x: torch.Tensor, wq: torch.Tensor, wk: torch.Tensor, wv: torch.Tensor) -> torch.Tensor:
        q, k, v = ((x @ w.t()).view(2, 3, -1, 8) for w in (wq, wk, wv))
        k, v = (y[:, :, :, None].expand(2, 3, 2, 2, 8).reshape(2, 3, 4, 8) for y in (rotate(k), v))
        return attend(rotate(q), k, v)

    q, k, v = inferred(function, (2, 3, 5), (32, 5), (16, 5), (16, 5))[1:]
    assert (q, k, v) == ("(d:2 e:2 [f:4|f:4]) c:5", "(d:2 [f:4|f:4]) c:5", "(d:2 g:8) c:5")


def test_packed_qkv() -> None:
    def function(x: torch.Tensor, w: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        q, k, v = ((y.view(2, 3, 4, 8)) for y in (x @ w).split(32, -1))
        return attend(q, k, v) @ o

    x, w, o = inferred(function, (2, 3, 5), (5, 96), (32, 5))
    assert (x, w, o) == ("a:2 b:3 c:5", "c:5 [(d:4 e:8)|(d:4 e:8)|(d:4 f:8)]", "(d:4 f:8) g:5")


def test_interleaved_qkv() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        packed = (x @ w.t()).view(2, 3, 4, 3, 8)
        return attend(packed[..., 0, :], packed[..., 1, :], packed[..., 2, :])

    w = inferred(function, (2, 3, 5), (96, 5))[1]
    assert w == "(d:4 [1|1|1] e:8) c:5"


def test_multi_query() -> None:
    """All heads read one pair of keys and values, packed behind the queries."""

    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        packed = (x @ w.t()).view(2, 3, 6, 8)
        return attend(packed[:, :, :-2], packed[:, :, -2:-1], packed[:, :, -1:])

    w = inferred(function, (2, 3, 5), (48, 5))[1]
    assert w == "([d:4|1|1] e:8) c:5"
