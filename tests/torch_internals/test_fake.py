"""Fake tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from tpfx.torch_internals import fake


def test_fakes_say_so_where_they_do_not_know() -> None:
    with fake.FakeTensorMode():
        flags = torch.ones(3, dtype=torch.bool)
        for unknown in (flags.nonzero, flags.sum().item):
            with pytest.raises(fake.UNKNOWN_TO_FAKES):
                unknown()


def test_fakes_of_known_sizes_vary_where_values_tell() -> None:
    mode = fake.fakes_of_known_sizes()
    x = mode.from_tensor(torch.ones(3, 2))
    with mode:
        rows = x[x.sum(-1) > 0]
    assert x.shape == (3, 2) and isinstance(rows.shape[0], torch.SymInt) and rows.shape[1] == 2


def test_fakes_are_told_the_shapes_of_an_op() -> None:
    """Of one with a kernel for the CPU alone; one that fakes know is left as it is."""
    library = torch.library.Library("tpfx_test", "FRAGMENT")
    library.define("halves(Tensor x) -> Tensor")
    library.impl("halves", lambda x: x / 2, "CPU")
    op = torch.ops.tpfx_test.halves.default
    with fake.FakeTensorMode(), pytest.raises(fake.UNKNOWN_TO_FAKES):
        op(torch.ones(3))
    undo = fake.tell_shapes(op, lambda x: torch.empty_like(x)).install()
    with fake.FakeTensorMode():
        assert op(torch.ones(3)).shape == (3,)
    assert op(torch.ones(2)).tolist() == [0.5, 0.5]
    assert undo()
    with fake.FakeTensorMode(), pytest.raises(fake.UNKNOWN_TO_FAKES):
        op(torch.ones(3))
    known = torch.ops.aten.relu.default
    before = dict(known.py_kernels)
    fake.tell_shapes(known, torch.empty_like).install()
    assert known.py_kernels == before


def test_fake_modes_can_be_left_for_a_while() -> None:
    with fake.FakeTensorMode():
        assert isinstance(torch.ones(2), fake.FakeTensor)
        with fake.unset_fake_temporarily():
            assert type(torch.ones(2)) is Tensor


def test_sizes_that_vary_are_expressions_that_can_be_renamed() -> None:
    env = ShapeEnv()
    mode = fake.FakeTensorMode(shape_env=env)
    y = mode.from_tensor(torch.ones(6, 4))
    with mode:
        one, other = (env.create_unbacked_symint() for _ in range(2))
        x = torch.empty_strided((one, 2 * one), (2 * one, 1))
    symbols: fake.Symbols = {fake.expression(one): fake.expression(other)}
    assert fake.expression(3) == 3 and fake.expression(2 * one) == 2 * one.node.expr
    made = fake.renamed((x, one, y, 5), symbols)
    assert [fake.expression(size) for size in made[0].shape] == [other.node.expr, 2 * other.node.expr]
    assert fake.expression(made[0].stride(0)) == 2 * other.node.expr and made[0].dtype is x.dtype
    assert fake.expression(made[1]) == other.node.expr and made[2] is y and made[3] == 5


def test_divisions_that_leave_no_rest_are_fractions() -> None:
    env = ShapeEnv()
    with fake.FakeTensorMode(shape_env=env) as mode:
        varying = StatelessSymbolicContext([DimDynamic.DYNAMIC] * 2)
        x = mode.from_tensor(torch.ones(12, 4), symbolic_context=varying)
        rows, half = x.shape[0], x.shape[0] // 2
        unknown = fake.expression(half)
        assert fake.with_exact_divisions(rows, 2 * unknown) == 2 * unknown
        x.view(2, -1, 4)
    known = fake.expression(half)
    assert fake.with_exact_divisions(rows, 2 * known) == fake.expression(rows)
    assert fake.with_exact_divisions(rows, 7) == 7


def test_what_is_assumed_of_sizes_is_noticed() -> None:
    env = ShapeEnv()
    with fake.FakeTensorMode(shape_env=env):
        size = env.create_unbacked_symint()
        x = torch.empty(size, 2)
        holds = fake.assumptions([x, 3])
        assert holds()
        torch._check(size >= 4)
        assert not holds()


def test_sizes_whose_products_are_equal_are_one() -> None:
    mode = fake.FakeTensorMode(shape_env=ShapeEnv(duck_shape=False))
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC] * 2)
    x, y, z = (mode.from_tensor(torch.zeros(2, n), symbolic_context=context) for n in (5, 7, 7))
    with mode:
        assert bool(x.shape[0] * y.shape[1] * 3 == y.shape[0] * y.shape[1] * 3)
        assert bool(y.shape[1] * x.shape[1] == z.shape[1] * x.shape[1])
    fake.equate_sizes([x, y, z, 3])
    first, second, third = (list(map(fake.expression, value.shape)) for value in (x, y, z))
    assert first[0] == second[0] != third[0]
    assert second[1] == third[1] != first[1]
    assert fake.expression(y.shape[0] * 8 // x.shape[0]) == 8
