"""What tpfx expects of Dynamo; a failure says what a release changed."""

from __future__ import annotations

import copy
import functools
import gc
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpfx
from tpfx.frontend.effects import own_backend
from tpfx.torch_internals import dynamo
from tpfx.torch_internals.dynamo_cache import capturing_for


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


def test_whether_dynamo_looks_at_what_runs() -> None:
    """Of a frame that it has left out for its loop it looks at what that calls; not so within `disable`."""
    seen = {}

    def look(where: str) -> None:
        seen[where] = dynamo.captures_frames()

    asked = dynamo.as_code_of(look, nn.Module._call_impl)

    def loop(x: Tensor) -> Tensor:
        for where in ("loop",):
            torch._dynamo.graph_break()
            torch.compiler.disable(lambda: asked("disabled"))()
            asked(where)
        return x + 1

    torch.compile(loop, backend="eager")(torch.ones(2))
    asked("outside")
    assert seen == {"loop": True, "disabled": False, "outside": False}


@pytest.mark.parametrize(("model", "needs"), [(nn.Sequential(nn.Linear(4, 4)), True), (Counting(), False)])
def test_methods_of_torchs_modules_are_captured_with_what_calls_them(model: nn.Module, needs: bool) -> None:
    captured = []

    def backend(module: Any, inputs: Any) -> Any:
        captured.append(module)
        return module.forward

    @torch.compile(backend=backend)
    def loop(x: Tensor) -> Tensor:
        for _ in range(1):
            torch._dynamo.graph_break()
            x = model.forward(x)
        return x

    loop(torch.ones(2, 4))
    assert dynamo.needs_a_frame(model.forward) == needs == (not captured)


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


def _positive(x: Tensor, asks: bool) -> Tensor:
    rows = x[x > 0] * 2
    if asks and rows.bincount().tolist():
        rows = rows + 1
    return rows


@pytest.mark.parametrize(("asks", "graphs"), [(False, 1), (True, 3)])
def test_sizes_that_values_tell_are_captured_unless_code_asks_for_them(asks: bool, graphs: int) -> None:
    torch._dynamo.reset()
    made: list[torch.fx.GraphModule] = []

    @own_backend
    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        made.append(module)
        return module.forward

    with capturing_for(backend):
        found = torch.compile(_positive, backend=backend)(torch.tensor([3, -1, 4]), asks)
    assert found.tolist() == ([7, 9] if asks else [6, 8])
    assert len(made) == graphs
    torch._dynamo.reset()
    plain = torch.compile(_positive, backend="eager", fullgraph=True)
    if not asks:
        assert dynamo.capturing_sizes_of_values(lambda: plain(torch.tensor([3, -1, 4]), False)).tolist() == [
            6,
            8,
        ]
    else:
        with pytest.raises(dynamo.ASKS_FOR_A_SIZE), torch._dynamo.config.patch(capture_scalar_outputs=True):
            torch.compile(_positive, backend="eager", fullgraph=True)(torch.tensor([3, -1, 4]), asks)


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
    backend = own_backend(lambda module, _: module.forward)
    torch.compile(forward, backend=backend, options={"guard_filter_fn": keep})(torch.ones(4))
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


def test_dynamo_skips_the_frames_of_a_package_while_told_to() -> None:
    import safetensors.torch
    from torch._dynamo import trace_rules

    def skipped() -> bool:
        return trace_rules.check(safetensors.torch.save)

    gc.collect()  # no model of an earlier test goes in the midst of this one
    folders, pattern = list(trace_rules.SKIP_DIRS), trace_rules.SKIP_DIRS_RE.pattern
    undo = dynamo.skip_frames("safetensors").install()
    assert skipped()
    assert undo()
    assert (trace_rules.SKIP_DIRS, trace_rules.SKIP_DIRS_RE.pattern) == (folders, pattern)
    assert not skipped()


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


def test_an_op_that_cannot_take_its_operands_says_why_and_where() -> None:
    """Without Dynamo's words, and with a line of the code that was captured."""

    def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x) + y

    with pytest.raises(dynamo.FailedOp) as caught:
        torch.compile(add, backend="eager", dynamic=True)(torch.ones(3), torch.ones(4))
    reason, place = dynamo.reason_of(caught.value), dynamo.place_of(caught.value)
    assert re.fullmatch(
        r"The size of tensor a \((3|\?)\) must match .* b \((4|\?)\) at .*dimension 0\)?", reason
    )
    assert re.search(r"test_dynamo\.py:\d+: return torch\.nn\.functional\.silu\(x\) \+ y", place or "")


@pytest.mark.parametrize("calls", ["a module of torch", "a partial function"])
def test_what_dynamo_calls_from_a_frame_of_its_own_has_one_for_itself(calls: str) -> None:
    made: list[int] = []

    def backend(module: Any, examples: Any) -> Any:
        made.append(len(examples))
        return module.forward

    def forward() -> Any:
        model = nn.Sequential(nn.Linear(3, 2))
        return model.forward if calls == "a module of torch" else functools.partial(nn.functional.relu)

    with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
        for _ in range(3):
            own = dynamo.fresh(forward())
            torch.compile(own, backend=backend)(torch.ones(3))
            torch.compile(dynamo.twin(own), backend=backend)(torch.ones(3))
    assert len(made) == 6


def test_dynamo_goes_by_the_file_of_a_functions_code() -> None:
    def here(x: Tensor) -> Tensor:
        return x + 1

    def there(x: Tensor) -> Tensor:
        return x + 1

    made = dynamo.as_code_of(there, copy.copy)
    assert made is there and made.__code__.co_filename == copy.copy.__code__.co_filename
    check = torch._dynamo.trace_rules.check
    assert check(made) and not check(here)
    assert not check(dynamo.as_code_of(made, here))


def test_graphs_are_captured_without_tensors_of_a_kind() -> None:
    class Kind(torch.Tensor):
        pass

    taken: list[Any] = []
    backend = lambda module, inputs: taken.extend(inputs) or module.forward  # noqa: E731
    with dynamo.capturing_without((Kind,)):
        made = torch.compile(lambda x, y: (x.dim(), y + 1), backend=backend)(
            torch.ones(2).as_subclass(Kind), torch.ones(2)
        )
    assert made[0] == 1 and [type(one) for one in taken] == [Tensor]


def test_a_graph_in_the_place_of_one_of_dynamos_has_what_dynamo_noted() -> None:
    seen: list[torch.fx.GraphModule] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        made = dynamo.as_of_dynamo(torch.fx.GraphModule(module, copy.deepcopy(module.graph)), module)
        seen.extend((module, made))
        return made.forward

    model, x = nn.Linear(3, 2), torch.ones(2, 3)
    torch.testing.assert_close(torch.compile(model, backend=backend)(x), model(x))
    module, made = seen
    assert made.meta is module.meta
    noted = [[node._dynamo_source for node in one.graph.find_nodes(op="placeholder")] for one in seen]
    assert noted[0] == noted[1] and len(noted[0]) == 3


def test_an_input_inside_of_another_has_a_place_of_its_own() -> None:
    found = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        (node,) = module.graph.find_nodes(op="placeholder")
        with module.graph.inserting_before(node):
            inner = module.graph.placeholder("inner")
        dynamo.note_source_inside(inner, node, ["a", "b"])
        found.append((dynamo.source_name(node), dynamo.source_name(inner)))
        module.graph.erase_node(inner)
        return module

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    ((outer, inner),) = found
    assert outer and inner == f"{outer}.a.b"
    made = torch.fx.Graph().placeholder("x")
    dynamo.note_source_inside(made, torch.fx.Graph().placeholder("y"), ["a"])
    assert dynamo.source_name(made) == ""
