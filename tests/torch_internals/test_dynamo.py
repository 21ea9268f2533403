"""What tpfx expects of torch's compiler and its private names; a failure says what a release changed."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import tpfx
from tpfx.sharded_tensor.storage import Fake
from tpfx.sharded_tensor.tensor import ShardedTensor
from tpfx.torch_internals import aot, batch_guards, dynamo, fake, fx, inductor, wrapper_subclass


class Plain(Tensor):
    """The least that a wrapper needs."""

    __torch_function__ = wrapper_subclass.without_torch_function
    seen: list[str]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(str(func))
        return torch.zeros(3)


def wrapper(**given: Any) -> Any:
    Plain.seen = []
    return wrapper_subclass.make_wrapper_subclass(Plain, (2, 3), **given)


def test_a_wrapper_has_a_shape_and_a_stride_but_no_memory() -> None:
    made = wrapper(strides=(1, 2), dtype=torch.float64, device=torch.device("meta"), requires_grad=True)
    assert (made.shape, made.stride(), made.dtype) == (torch.Size([2, 3]), (1, 2), torch.float64)
    assert made.requires_grad and made.device.type == "meta"


def test_without_torch_function_ops_go_straight_to_dispatch() -> None:
    made = wrapper(dtype=torch.float32)
    torch.add(made, 1)
    assert Plain.seen == ["aten.add.Tensor"]


def test_data_goes_through_detach() -> None:
    made = wrapper(dtype=torch.float32)
    assert made.data is not made
    assert Plain.seen == ["aten.detach.default"]


def test_is_param_makes_a_parameter() -> None:
    made = wrapper(dtype=torch.float32)
    assert not isinstance(made, nn.Parameter)
    made._is_param = True
    assert isinstance(made, nn.Parameter)


def test_set_data_takes_over_the_dtype() -> None:
    one, other = wrapper(dtype=torch.float32), wrapper(dtype=torch.float64)
    wrapper_subclass.set_data(one, other)
    assert one.dtype == torch.float64


def test_traceable_wrappers_are_told_by_their_flatten_methods() -> None:
    assert not wrapper_subclass.is_traceable_wrapper_subclass(torch.ones(1))
    assert not wrapper_subclass.is_traceable_wrapper_subclass(wrapper(dtype=torch.float32))
    whole = torch.ones(1)
    assert wrapper_subclass.is_traceable_wrapper_subclass(ShardedTensor(None, whole, held=Fake()))


def test_conversions_of_a_module_go_through_apply() -> None:
    module, seen = nn.Linear(2, 2), []
    # type: ignore[method-assign]
    module._apply = lambda fn, recurse=True: seen.append(fn(module.weight).dtype)
    module.half()
    module.to(torch.float64)
    assert seen == [torch.float16, torch.float64]


def test_views_and_in_place_ops_are_told_by_their_schemas() -> None:
    aten = torch.ops.aten
    assert aten.slice.Tensor.is_view and aten.detach.default.is_view and not aten.clone.default.is_view
    assert (
        torch.Tag.inplace_view in aten.t_.default.tags and torch.Tag.inplace_view in aten.resize_.default.tags
    )
    assert aten.copy_.default._schema.arguments[0].alias_info.is_write
    assert torch.Tag.nondeterministic_seeded in aten.bernoulli.default.tags


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def graphs_for(sizes: list[int], mark: bool) -> int:
    """How many graphs Dynamo makes for inputs of these lengths."""
    count = 0

    def backend(module: Any, inputs: Any) -> Any:
        nonlocal count
        count += 1
        return module.forward

    compiled = torch.compile(lambda x: x * 2, backend=backend)
    for size in sizes:
        x = torch.ones(size, 4)
        if mark:
            dynamo.mark_dynamic_sizes(x, {0})
            assert dynamo.dynamic_sizes(x) == {0}
        compiled(x)
    return count


def test_marked_sizes_are_not_specialised_on() -> None:
    assert dynamo.dynamic_sizes(torch.ones(1)) is None
    assert graphs_for([3, 4, 5], mark=True) == 1
    torch._dynamo.reset()
    assert graphs_for([3, 4, 5], mark=False) == 2


def capture(function: Any, inputs: list[Tensor]) -> list[Any]:
    """Call a function with each input; of each graph that this takes, whether it serves any batch."""
    found = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        fakes = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
        found.append(batch_guards.serves_any_batch(fakes))
        return module.forward

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for one in inputs:
        dynamo.mark_dynamic_sizes(one, {0}, constant={1})
        with batch_guards.open_batches():
            torch.testing.assert_close(compiled(one), function(one))
    return found


def _part_of_heads(x: Tensor) -> Tensor:
    """Four of six heads of one token, before its place, with the strides of six."""
    return x.new_ones(x.shape[0], 1, 6, 2)[:, :, :4].transpose(1, 2)


@pytest.mark.parametrize("rows", [(1, 4), (4, 1), (2, 1, 3)], ids=str)
def test_graphs_of_open_batches_serve_one_row_too(rows: tuple[int, ...]) -> None:
    def function(x: Tensor) -> Tensor:
        return (x.expand(-1, 3).transpose(0, 1) @ x.new_ones(x.shape[0], 2)).sum(0)

    assert batch_guards.CAN_OPEN_BATCHES
    torch._dynamo.reset()
    assert capture(function, [torch.randn(n, 1) for n in rows]) == [True]
    assert not torch.fx.experimental._config.backed_size_oblivious


@pytest.mark.parametrize(
    ("function", "serves"),
    [
        (lambda x: x * 2 if x.shape[0] == 1 else x * 3, [False, False]),
        (lambda x: x * 2 if x.shape[0] < 3 else x * 3, [False, False]),
        (lambda x: x * 2 if x.shape[0] < 30 else x * 3, [True]),
        (lambda x: x.squeeze(0) @ x.new_ones(1, 3), [False, False]),
        (lambda x: x.squeeze((0, 1)) + x.squeeze().dim(), [False, False]),
        (lambda x: x * x.squeeze(0).dim(), [False, False]),
        (lambda x: x.unsqueeze(2).squeeze(1) @ x.new_ones(1, 3), [True]),
        (lambda x: _part_of_heads(x).reshape(x.shape[0], 4, 1, 2), [True]),
    ],
)
def test_guards_tell_which_graphs_mind_the_batch(function: Any, serves: list[bool]) -> None:
    torch._dynamo.reset()
    assert capture(function, [torch.randn(n, 1) for n in (1, 4)]) == serves


def test_batches_that_several_open_are_closed_in_the_end() -> None:
    """Whatever the order in which threads leave."""
    from torch.fx.experimental import _config

    first, second = batch_guards.open_batches(), batch_guards.open_batches()
    first.__enter__()
    second.__enter__()
    assert _config.backed_size_oblivious
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert not _config.backed_size_oblivious


def test_open_batches_leave_other_captures_alone() -> None:
    """Afterwards, torch says of unknown sizes what it said before."""
    with batch_guards.open_batches():
        pass

    def function(x: Tensor) -> Tensor:
        return x.nonzero().squeeze(0).transpose(0, 1).reshape(1, -1)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        x = torch.tensor([0.0, 1.0, 1.0])
        torch.testing.assert_close(compiled(x), function(x))


def test_constant_sizes_stay_so_though_they_vary() -> None:
    torch._dynamo.reset()
    assert capture(lambda x: x + 1, [torch.randn(2, n) for n in (1, 4, 5)]) == [True] * 3


def test_what_cannot_be_one_graph_says_so_before_it_runs() -> None:
    ran = []

    def breaks(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x + 1

    def refuses(*_: Any) -> Any:
        raise ValueError

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        return lambda *inputs: ran.append(1) or module(*inputs)

    torch._dynamo.reset()
    with pytest.raises(dynamo.NOT_CAPTURED, match="graph_break"):
        torch.compile(breaks, backend=backend, fullgraph=True)(torch.ones(2))
    with pytest.raises(dynamo.NOT_CAPTURED, match="backend='refuses' raised"):
        torch.compile(lambda x: x + 1, backend=refuses, fullgraph=True)(torch.ones(2))
    with torch._dynamo.config.patch(recompile_limit=1):
        limited = torch.compile(lambda x: x + 1, backend=backend, fullgraph=True, dynamic=False)
        limited(torch.ones(2))
        with pytest.raises(dynamo.NOT_CAPTURED, match="Hard failure due to fullgraph"):
            limited(torch.ones(3))
    assert ran == [1]


def test_twins_have_graphs_of_their_own_and_share_what_varies() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: int) -> Tensor:
            return x * scale

    torch._dynamo.reset()
    inputs: list[int] = []

    def backend(module: torch.fx.GraphModule, examples: Any) -> Any:
        inputs.append(len(examples))
        return module.forward

    first = dynamo.fresh(Scaled().forward)
    for forward, scale in ((first, 2), (dynamo.twin(first), 3)):
        assert torch.compile(forward, backend=backend)(torch.ones(1), scale) == scale
    assert inputs == [1, 2]


def test_guard_entries_say_what_tpfx_filters_by() -> None:
    entries: list[Any] = []

    def keep(found: Any) -> list[bool]:
        entries.extend(found)
        return [True] * len(found)

    model = tpfx.compile(Counting(), ["cpu"])
    model.twin = model.weight  # tied: one guard says that they are one
    forward = lambda x: model.weight.dim() + model.twin.dim() + x  # noqa: E731
    torch.compile(forward, backend="eager", options={"guard_filter_fn": keep})(torch.ones(4))
    weights = [entry for entry in entries if "._parameters[" in entry.name and entry.value is model.weight]
    assert {entry.guard_type for entry in weights} >= {"TYPE_MATCH", "TENSOR_MATCH", "DUPLICATE_INPUT"}


def test_another_backend_object_is_another_cache() -> None:
    calls: list[str] = []

    def backend(name: str) -> Any:
        return lambda module, inputs: calls.append(name) or module.forward

    model = Counting()
    for name in ("first", "second"):
        torch.compile(model.forward, backend=backend(name))(torch.ones(4))
    assert calls == ["first", "second"]


def test_aot_module_simplified_hands_over_an_aten_graph() -> None:
    seen: list[str] = []

    def compiler(module: Any, inputs: Any) -> Any:
        seen.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")

        def run(args: list[Any]) -> Any:
            result = module.forward(*args)
            args.clear()
            return result

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(module: Any, inputs: Any) -> Any:
        return aot.aot_module_simplified(
            module,
            inputs,
            fw_compiler=compiler,
            bw_compiler=compiler,
            inference_compiler=compiler,
            keep_inference_input_mutations=True,
        )

    with torch.no_grad():
        result = torch.compile(lambda x: torch.relu(x + 1), backend=backend)(torch.ones(3))
    assert seen == ["aten.add.Tensor", "aten.relu.default"]
    assert torch.equal(result, torch.full((3,), 2.0))


def test_what_a_backend_raises_is_inside_of_what_dynamo_raises() -> None:
    problem = KeyError("mine")

    def backend(module: Any, inputs: Any) -> Any:
        raise problem

    with pytest.raises(dynamo.BackendCompilerFailed) as caught:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(1))
    assert caught.value.inner_exception is problem


def test_a_function_is_captured_any_number_of_times() -> None:
    def double(x: Tensor) -> Tensor:
        return x * 2

    captured = []

    def capture(times: int) -> None:
        for _ in range(times):

            def backend(module: Any, inputs: Any) -> Any:
                captured.append(module)
                return module.forward

            torch.compile(double, backend=backend)(torch.ones(1))

    limit = torch._dynamo.config.recompile_limit
    with dynamo.capturing_again():
        capture(limit + 4)
    assert len(captured) == limit + 4
    assert torch._dynamo.config.recompile_limit == limit


def test_fakes_say_so_where_they_do_not_know() -> None:
    with fake.FakeTensorMode():
        flags = torch.ones(3, dtype=torch.bool)
        for unknown in (flags.nonzero, flags.sum().item):
            with pytest.raises(fake.UNKNOWN_TO_FAKES):
                unknown()


def test_fake_modes_can_be_left_for_a_while() -> None:
    with fake.FakeTensorMode():
        assert isinstance(torch.ones(2), fake.FakeTensor)
        with fake.unset_fake_temporarily():
            assert type(torch.ones(2)) is Tensor


def test_dynamo_skips_the_frames_of_tpfx(caplog: pytest.LogCaptureFixture) -> None:
    from torch._dynamo import trace_rules

    with caplog.at_level(logging.WARNING):
        assert trace_rules.check(tpfx.compile)


def test_a_joint_graph_is_parted_and_its_nodes_keep_their_names_and_notes() -> None:
    seen: list[set[str]] = []

    def partition(joint: Any, inputs: Any, *, num_fwd_outputs: int, **options: Any) -> Any:
        placeholders = [node.target for node in joint.graph.find_nodes(op="placeholder")]
        assert placeholders == ["primals_1", "primals_2", "tangents_1"]
        assert len(joint.graph.output_node().args[0]) == num_fwd_outputs + 2  # a gradient for each input
        for node in joint.graph.nodes:
            node.meta["note"] = node.name
        parts = aot.min_cut_rematerialization_partition(
            joint, inputs, num_fwd_outputs=num_fwd_outputs, **options
        )
        for part in parts:
            inner = [node for node in part.graph.nodes if node.op == "call_function"]
            assert inner and all(node.meta["note"] == node.name for node in inner)
            seen.append({node.name for node in inner})
        return parts

    def compiler(module: Any, inputs: Any) -> Any:
        def run(args: list[Any]) -> Any:
            return module.forward(*args)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    def backend(module: Any, inputs: Any) -> Any:
        return aot.aot_module_simplified(
            module, inputs, fw_compiler=compiler, bw_compiler=compiler, partition_fn=partition
        )

    x, y = torch.ones(3, requires_grad=True), torch.full((3,), 2.0, requires_grad=True)
    torch.compile(lambda x, y: (x * y).exp(), backend=backend)(x, y).sum().backward()
    assert len(seen) == 2
    torch.testing.assert_close(x.grad, 2 * torch.full((3,), 2.0).exp())


@pytest.mark.parametrize("module", [torch.nn.LSTM(2, 3), torch.nn.Linear(2, 3)])
def test_dynamo_captures_lstms_only_if_told_to(module: torch.nn.Module) -> None:
    assert not torch._dynamo.config.allow_rnn
    with dynamo.Settings(module):
        assert torch._dynamo.config.allow_rnn is isinstance(module, torch.nn.LSTM)
    assert not torch._dynamo.config.allow_rnn


def test_settings_may_be_nested() -> None:
    before = torch._dynamo.config.specialize_float
    settings = dynamo.Settings(torch.nn.Linear(2, 3))
    with settings, settings:
        assert torch._dynamo.config.specialize_float
    assert torch._dynamo.config.specialize_float == before


def test_numbers_of_one_model_do_not_vary_because_another_has_others() -> None:
    """Dynamo takes a number for one that varies when it has seen another at the same place of the code."""

    class Scaled(torch.nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    inputs: dict[bool, list[int]] = {}
    for alone in (True, False):
        torch._dynamo.reset()
        inputs[alone] = []

        def backend(module: Any, examples: Any, found: list[int] = inputs[alone]) -> Any:
            found.append(len(examples))
            return module.forward

        for scale in (0.5, 0.25):
            forward = Scaled(scale).forward
            torch.compile(dynamo.fresh(forward) if alone else forward, backend=backend)(torch.ones(3))
    assert inputs == {True: [1, 1], False: [1, 2]}


def test_graphs_keep_nodes_that_they_no_longer_have_until_told_to_forget_them() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    gone = graph.call_function(torch.neg, (x,))
    graph.output(graph.call_function(torch.neg, (x,)))
    graph.erase_node(gone)
    kept = weakref.ref(gone)
    del gone
    gc.collect()
    assert kept() is not None  # if not, `forget_erased` is no longer needed
    fx.forget_erased(graph)
    gc.collect()
    assert kept() is None
    graph.lint()
    assert [node.name for node in graph.nodes] == ["x", "neg_1", "output"]
    assert graph.call_function(torch.neg, (x,)).name == "neg_2"


def test_an_op_of_a_library_stands_for_one_overload() -> None:
    name = "tpfx_test::of_one"
    made = torch.library.custom_op(name, lambda x: x + 1, mutates_args=(), schema="(Tensor x) -> Tensor")
    overload = torch.ops.tpfx_test.of_one.default
    for op in (made, torch.ops.tpfx_test.of_one, overload):
        assert fx.overload_of(op) is overload
    for op in (torch.ops.aten.add, torch.add, None):
        assert fx.overload_of(op) is None


def test_results_that_stand_for_views_are_known() -> None:
    from torch._functorch import aot_autograd

    found = []

    def compiler(module: torch.fx.GraphModule, _: Any) -> Any:
        found.append(aot.aliased_outputs())
        return aot_autograd.make_boxed_func(module.forward)

    def backend(module: torch.fx.GraphModule, inputs: Any) -> Any:
        return aot.aot_module_simplified(module, inputs, compiler, inference_compiler=compiler)

    def function(x: torch.Tensor) -> Any:
        return x + 1, x[:, 1:], x

    torch.compile(function, backend=backend)(torch.ones(2, 3))
    assert found == [frozenset({1})]
    assert aot.aliased_outputs() == frozenset()


def test_foreach_is_allowed_for_a_kind_of_tensor() -> None:
    """Without it, clipping and optimizers fall back to a loop, in silence; on CPU, clipping shows it."""
    from torch.optim.optimizer import _foreach_supported_types as first
    from torch.utils._foreach_utils import _foreach_supported_types as second
    from torch.utils._foreach_utils import _has_foreach_support

    cpu = torch.device("cpu")
    assert not _has_foreach_support([torch.nn.Parameter(torch.ones(1))], cpu)
    tensor = wrapper(dtype=torch.float32, device=cpu)
    assert not _has_foreach_support([tensor], cpu)
    wrapper_subclass.allow_foreach(type(tensor))
    wrapper_subclass.allow_foreach(type(tensor))
    assert _has_foreach_support([tensor], cpu)
    for kinds in (first, second):
        assert kinds.count(type(tensor)) == 1
        kinds.remove(type(tensor))


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("cpp_wrapper", [False, True])
def test_inductor_compiles_a_graph_whose_sizes_vary(cpp_wrapper: bool) -> None:
    """Python functions as targets are traced through; the code runs for other sizes too."""
    shapes = ShapeEnv()
    mode = fake.FakeTensorMode(shape_env=shapes)
    context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
    like = mode.from_tensor(torch.zeros(3, 4), symbolic_context=context)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(lambda value: value.sin() + 1, (x,)),))
    run = inductor.compile_by_inductor(torch.fx.GraphModule({}, graph), [like], mode, cpp_wrapper)
    for rows in (3, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(run(x)[0], x.sin() + 1)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
def test_inductor_calls_the_linear_of_onednn() -> None:
    """From C++, with a weight that is an input; the op itself computes the same."""
    from torch._inductor.utils import run_and_get_code

    linear = inductor.linear_for_inductor()
    mode = fake.FakeTensorMode(shape_env=ShapeEnv())
    graph = torch.fx.Graph()
    product = graph.call_function(linear, (graph.placeholder("x"), graph.placeholder("weight")))
    graph.output((graph.call_function(torch.ops.aten.relu.default, (product,)),))
    x, weight = torch.randn(2, 3, 8), torch.randn(6, 8)
    fakes = [mode.from_tensor(x), mode.from_tensor(weight)]
    module = torch.fx.GraphModule({}, graph)
    with torch._inductor.config.patch(fx_graph_cache=False):  # what is found there has no code to look at
        run, code = run_and_get_code(inductor.compile_by_inductor, module, fakes, mode, True)
    expected = torch.nn.functional.linear(x, weight)
    torch.testing.assert_close(run(x, weight)[0], expected.relu())
    torch.testing.assert_close(linear(x, weight), expected)
    assert any("aoti_torch_cpu__linear_pointwise(" in text for text in code)
