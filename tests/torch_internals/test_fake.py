"""Fake tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._python_dispatch import TorchDispatchMode

from tpfx.torch_internals import fake
from tpfx.torch_internals.effects import replace_method


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


@pytest.fixture
def quick() -> Iterator[None]:
    made = [effect.install() for effect in fake.QUICK_SIZES]
    with fake.quick_sizes():
        yield
    assert all([undo() for undo in made])


def open_fake(mode: fake.FakeTensorMode, *shape: int) -> Tensor:
    """A fake tensor whose first size varies."""
    sizes = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * (len(shape) - 1)]
    context = StatelessSymbolicContext(dynamic_sizes=sizes)
    return mode.from_tensor(torch.ones(shape), symbolic_context=context)


def closed_fake(mode: fake.FakeTensorMode, real: Tensor) -> Tensor:
    """A fake tensor of known sizes."""
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.STATIC] * real.dim())
    return mode.from_tensor(real, symbolic_context=context)


@pytest.fixture
def counted() -> Iterator[list[Any]]:
    """The products of sizes that torch works out."""
    seen: list[Any] = []

    def counting(work_out: Any) -> Any:
        return lambda *sizes: seen.append(sizes) or work_out(*sizes)

    undo = replace_method(SymNode, "_mul", counting)
    yield seen
    assert undo()


def test_sizes_are_worked_out_once(counted: list[Any], quick: None) -> None:
    """The same of the same two sizes, until one of them is known to be another."""
    env = ShapeEnv()
    mode = fake.FakeTensorMode(shape_env=env)
    (one, four), (other, _) = open_fake(mode, 6, 4).shape, open_fake(mode, 5, 4).shape
    assert isinstance(one, torch.SymInt) and isinstance(other, torch.SymInt)
    counted.clear()
    twice, again = (one.node.mul(one.node.wrap_int(7)) for _ in range(2))
    assert len(counted) == 1 and twice is not again and again.hint == 42
    assert str(twice.expr) == str(again.expr) == f"7*{one}"
    assert one.node.add(one.node.wrap_int(four)).hint == 10
    guards = len(env.guards)
    same = one.node.eq(other.node)
    assert not same.bool_() and len(env.guards) == guards + 1  # what is asked is noted all the same
    total = one.node.add(other.node)
    env._set_replacement(other.node.expr, one.node.expr, "of this test")
    assert str(total.expr) == str(one.node.add(other.node).expr) == f"2*{one}"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(6, 4), (6, 3, 4), (6, 3, 2, 4)])
def test_a_fake_linear_has_the_shape_and_strides_that_torch_says(shape: tuple[int, ...], bias: bool) -> None:
    mode = fake.FakeTensorMode(shape_env=ShapeEnv())
    x, weight = open_fake(mode, *shape), closed_fake(mode, torch.ones(5, 4))
    given = (x, weight, closed_fake(mode, torch.ones(5))) if bias else (x, weight)
    seen: list[Any] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(op)
            return op(*args, **(kwargs or {}))

    with enable_python_dispatcher(), Seen():
        with torch.no_grad():
            found = nn.functional.linear(*given)
        assert [op.__name__ for op in seen] == ["new_empty.default"]
        told = nn.functional.linear(*given)  # with gradients torch does it all
    assert {"mm.default", "addmm.default"} & {op.__name__ for op in seen}
    assert found.shape == told.shape and found.stride() == told.stride() and found.dtype == told.dtype


@pytest.mark.usefixtures("quick")
def test_a_fake_linear_that_fails_says_so() -> None:
    mode = fake.FakeTensorMode(shape_env=ShapeEnv())
    x = open_fake(mode, 6, 4)
    with enable_python_dispatcher(), torch.no_grad(), pytest.raises(RuntimeError, match="reduction dim"):
        nn.functional.linear(x, closed_fake(mode, torch.ones(5, 3)))


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
