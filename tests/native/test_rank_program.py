"""Programs of the native executor give what the graph itself gives, errors and side effects too."""

from __future__ import annotations

import gc
import operator
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, GraphModule, Node

from tpfx.kernels.lookups import embedding_backward_shard, embedding_shard, gather_shard, scatter_shard
from tpfx.kernels.slices import take, take_unfolded
from tpfx.native.rank_program import RankProgram
from tpfx.runtime.thread_runtime import node_of

aten = torch.ops.aten


def module_of(write: Callable[..., Any], *names: str, **constants: Any) -> GraphModule:
    """A graph whose inputs have these names; `write(graph, *inputs)` returns its results."""
    graph = Graph()
    inputs = [graph.placeholder(name) for name in names]
    graph.output(tuple(write(graph, *inputs)))
    return GraphModule(constants, graph)


def same(write: Callable[..., Any], given: dict[str, Any], **constants: Any) -> list[Any]:
    """The results of the program, which are those of the graph's own code."""
    module = module_of(write, *given, **constants)
    expected = module(
        *(value.clone() if isinstance(value, torch.Tensor) else value for value in given.values())
    )
    found = RankProgram(module)(*given.values())
    torch.testing.assert_close(found, list(expected), rtol=0, atol=0)
    assert [type(one) for one in found] == [type(one) for one in expected]
    return found


def call(graph: Graph, op: Any, *args: Any, **kwargs: Any) -> Node:
    return graph.call_function(op, args, kwargs)


X = torch.arange(12.0).view(3, 4)


def test_ops_defaults_keywords_and_results_that_nobody_uses() -> None:
    def write(g: Graph, x: Node, unused: Node) -> list[Any]:
        call(g, aten.exp.default, x)
        total = call(g, aten.sum.dim_IntList, x, [1], keepdim=True)
        return [call(g, aten.add.Tensor, x, total, alpha=2), x, None, 3]

    same(write, {"x": X, "unused": torch.ones(2)})


def test_registers_in_lists_of_sizes_of_tensors_and_of_indices() -> None:
    def write(g: Graph, x: Node, rows: Node, at: Node) -> list[Any]:
        turned = call(g, aten.view.default, x, [rows, -1])
        joined = call(g, aten.cat.default, [turned, turned], 1)
        return [turned, joined, call(g, aten.index.Tensor, x, [None, at])]

    same(write, {"x": X, "rows": 2, "at": torch.tensor([3, 0])})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int32])
def test_a_number_in_the_place_of_a_tensor_does_not_widen_it(dtype: torch.dtype) -> None:
    def write(g: Graph, x: Node, number: Node) -> list[Any]:
        return [call(g, aten.mul.Tensor, x, 2), call(g, aten.mul.Tensor, x, number)]

    found = same(write, {"x": X.to(dtype), "number": 3})
    assert [one.dtype for one in found] == [dtype, dtype]


def test_arithmetic_of_sizes_is_pythons() -> None:
    signs = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod]

    def write(g: Graph, a: Node, b: Node, x: Node) -> list[Any]:
        size = call(g, aten.sym_size.int, x, 0)
        made = [call(g, sign, a, b) for sign in signs]
        return [*made, call(g, operator.mul, call(g, operator.floordiv, size, 2), 7)]

    for a, b in ((7, 2), (-7, 2), (7, -2), (-7, -2), (6, 3)):
        same(write, {"a": a, "b": b, "x": X})
    with pytest.raises(RuntimeError, match="division of a size by zero"):
        RankProgram(module_of(lambda g, a: [call(g, operator.mod, a, 0)], "a"))(1)


def test_floats_and_what_only_python_does() -> None:
    def write(g: Graph, a: Node, x: Node) -> list[Any]:
        return [call(g, operator.mul, a, 2), call(g, operator.truediv, a, 4), call(g, aten.mul.Scalar, x, a)]

    same(write, {"a": 2.5, "x": X})
    same(write, {"a": 3, "x": X})  # an int where the schema has a float


def test_sums_of_sizes_are_no_calls_of_python() -> None:
    def write(g: Graph, a: Node, x: Node) -> list[Any]:
        size = call(g, aten.sym_size.int, x, 1)
        return [call(g, torch.sym_sum, (1, a, size)), call(g, torch.sym_sum, [a]), a]

    same(write, {"a": 5, "x": X})
    in_python = RankProgram(module_of(write, "a", "x")).in_python
    assert list(in_python) == ["sym_sum_1"]


def test_elements_of_tuples_and_lists() -> None:
    def write(g: Graph, x: Node) -> list[Any]:
        least = call(g, aten.min.dim, x, 1)
        parts = call(g, aten.split.Tensor, x, 2, 1)
        own = call(g, divmod, 7, 2)
        return [call(g, operator.getitem, one, at) for one in (least, parts, own) for at in (0, 1)]

    same(write, {"x": X})


def test_writes_reach_what_was_given_and_constants() -> None:
    count = torch.tensor(0)

    def write(g: Graph, x: Node) -> list[Any]:
        call(g, aten.add_.Tensor, g.get_attr("count"), 1)
        return [call(g, aten.mul_.Tensor, x, 2)]

    program, x = RankProgram(module_of(write, "x", count=count)), X.clone()
    (found,) = program(x)
    assert torch.equal(x, X * 2) and found.data_ptr() == x.data_ptr() and count == 1


def test_functions_of_kernels_become_ops() -> None:
    owned = ((0, 2),), ((2, 3), (5, 7))

    def write(g: Graph, table: Node, ids: Node, whole: Node) -> list[Any]:
        rows = call(g, embedding_shard, table, ids, ((4, 8),), 12)
        return [rows, *(call(g, take, whole, ((0, owned),), rank) for rank in (0, 1))]

    given = {"table": torch.randn(4, 3), "ids": torch.arange(12).view(3, 4), "whole": torch.randn(8, 2)}
    same(write, given)
    given["rest"], given["at"] = torch.randn(2, 3), torch.tensor([[5, 0, 4], [7, 3, 9]])

    def write_more(g: Graph, table: Node, ids: Node, whole: Node, rest: Node, at: Node) -> list[Any]:
        where = {"owned": ((4, 8),), "size": 12}
        return [
            call(g, embedding_backward_shard, call(g, embedding_shard, table, ids, ((4, 8),), 12), ids, 5,
                 ((4, 8),), 12),
            call(g, gather_shard, table, 0, at, ((4, 8),), 12),
            call(g, scatter_shard, aten.scatter.src, table, 0, at, rest, **where),
            call(g, scatter_shard, aten.scatter.value, table, 0, at, 7.0, **where),
            *(call(g, take_unfolded, whole, ((1, owned),), rank, ((0, (-1, 8)),)) for rank in (0, 1)),
        ]  # fmt: skip

    same(write_more, given)
    for functions in (write, write_more):
        names = list(given)[: 3 if functions is write else 5]
        assert RankProgram(module_of(functions, *names)).in_python == {}
    given = {name: given[name] for name in ("table", "ids", "whole")}
    outside = {**given, "ids": torch.tensor([3, 12])}
    for run in (module_of(write, *given), RankProgram(module_of(write, *given))):
        with pytest.raises(IndexError):
            run(*outside.values())


@torch.library.custom_op("tpfx_test::refuse", mutates_args=())
def refuse(x: torch.Tensor) -> torch.Tensor:
    raise LookupError("refused by its author")


def test_an_error_is_the_ops_own_and_names_the_node() -> None:
    def write(g: Graph, x: Node) -> list[Any]:
        fine = call(g, aten.exp.default, x)
        fine.name = "fine"
        bad = call(g, torch.ops.tpfx_test.refuse.default, fine)
        bad.name = "bad_one"
        return [bad]

    with pytest.raises(LookupError, match="refused by its author") as caught:
        RankProgram(module_of(write, "x"))(X)
    assert node_of(caught.value.__traceback__) == "bad_one"


def test_an_error_of_a_function_that_is_called_back() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("in Python")

    program = RankProgram(module_of(lambda g, x: [call(g, broken, x)], "x"))
    with pytest.raises(KeyError, match="in Python") as caught:
        program(X)
    assert node_of(caught.value.__traceback__) == "broken"


def test_a_tensor_is_let_go_after_its_last_use() -> None:
    seen: list[bool] = []
    made: list[Any] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        made.append(weakref.ref(x))
        return x

    def look(x: torch.Tensor) -> torch.Tensor:
        gc.collect()
        seen.append(made[0]() is not None)
        return x.clone()

    def write(g: Graph, x: Node) -> list[Any]:
        first = call(g, note, call(g, aten.exp.default, x))
        second = call(g, look, call(g, aten.neg.default, first))
        return [call(g, look, call(g, aten.neg.default, second))]

    RankProgram(module_of(write, "x"))(X)
    assert seen == [False, False]


def test_other_threads_have_pythons_lock_meanwhile() -> None:
    """A rank that waits in a collective, in C++, for one that needs the lock."""
    from tpfx.runtime.mesh import Mesh
    from tpfx.runtime.thread_runtime import Runtime

    mesh = Mesh((torch.device("cpu"),) * 2)
    runtime = Runtime(mesh, timeout=20.0)
    c10d = torch.ops._c10d_functional

    def program(rank: int) -> RankProgram:
        def write(g: Graph, x: Node) -> list[Any]:
            x = call(g, torch.clone, x) if rank else x  # in Python
            return [
                call(
                    g,
                    c10d.wait_tensor.default,
                    call(g, c10d.all_reduce.default, x, "sum", mesh.group_name(rank)),
                )
            ]

        return RankProgram(module_of(write, "x"), rank, runtime.native_meeting())

    programs = [program(rank) for rank in (0, 1)]
    for _ in range(50):
        for (found,) in runtime.run([lambda one=one: one(X) for one in programs]):  # type: ignore[misc]
            assert torch.equal(found, 2 * X)
    runtime.close()


def test_values_of_other_types_pass_through() -> None:
    seen: list[Any] = []

    def note(*values: Any) -> str:
        seen.extend(values)
        return "text"

    def write(g: Graph, x: Node, other: Node) -> list[Any]:
        return [call(g, note, x, other), other]

    thing = object()
    found = RankProgram(module_of(write, "x", "other"))(torch.float16, thing)
    assert found == ["text", thing] and seen == [torch.float16, thing]


def test_instructions_are_called_as_the_nodes_of_the_graph() -> None:
    """Also where an op of an expansion has taken the name of a node that comes later."""

    def write(g: Graph, x: Node) -> list[Any]:
        own = g.call_function(take, (x, ((1, (((0, 2),), ((2, 4),))),), 1), name="own")
        return [own, g.call_function(aten.slice.Tensor, (x, 0, 0, 1), name="slice_tensor")]

    assert RankProgram(module_of(write, "x")).names == ["own", "slice_tensor"]


def test_times_are_noted_while_that_is_asked_for() -> None:
    def write(g: Graph, x: Node) -> list[Any]:
        half = call(g, aten.mul.Tensor, x, 0.5)
        return [call(g, aten.add.Tensor, half, x), call(g, operator.add, call(g, aten.sym_size.int, x, 0), 1)]

    program = RankProgram(module_of(write, "x"))
    program(X)
    program.time(True)
    before = time.perf_counter_ns()
    program(X), program(X)
    after = time.perf_counter_ns()
    program.time(False)
    program(X)
    names, times = program.take_times()
    assert names == program.names and times.shape == (2, len(names) + 1)
    assert (times.flatten().diff() >= 0).all() and before <= times[0, 0] and times[1, -1] <= after
    assert program.take_times()[1].shape[0] == 0
