"""What a user of `tpfx.compile` relies on: typed errors, nothing lost when it fails, still a module."""

from __future__ import annotations

import copy
import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.models import inputs, tiny
from tests.support.nets import TiedNet, state_of
from tests.support.sharded import CPUS
from tpfx import ShardedTensor, api
from tpfx.frontend.compiled_forward import Entry

IDS = torch.arange(10).view(2, 5)


def net() -> TiedNet:
    torch.manual_seed(0)
    return TiedNet().eval()


@pytest.fixture
def ready() -> TiedNet:
    """Compiled, and planned."""
    return tpfx.compile(net(), CPUS, example_inputs=(IDS,))


# What compile refuses.


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], "empty list"),
        (0, "at least 1"),
        (["gpu"], r"devices\[0\] = 'gpu' is not a device"),
        (["cpu", "cuda:99"], "cuda:99"),
        (["meta"], "a meta device"),
        ("cpu", "is one device"),
    ],
)
def test_devices_that_make_no_mesh(devices: Any, message: str) -> None:
    model = net()
    before = state_of(model)
    with pytest.raises(tpfx.DeviceError, match=message):
        tpfx.compile(model, devices)
    assert state_of(model) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_default_to_the_gpus() -> None:
    with pytest.raises(tpfx.DeviceError, match="every visible CUDA GPU, and there is none"):
        tpfx.compile(net())


class WithoutParameters(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.relu, "takes an nn.Module, got builtin_function_or_method"),
        (WithoutParameters, "WithoutParameters has no parameters"),
        (lazy, "0.weight has no shape yet"),
        (lambda: nn.Linear(3, 3, device="meta"), "weight is on the meta device"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_models_that_cannot_be_split(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(tpfx.ModelError, match=message):
        tpfx.compile(make(), CPUS)


def test_a_model_is_compiled_once(ready: TiedNet) -> None:
    with pytest.raises(tpfx.AlreadyCompiledError, match=r"compiled already, for \['cpu', 'cpu'\]"):
        tpfx.compile(ready, CPUS)
    with pytest.raises(tpfx.AlreadyCompiledError, match="weight is sharded already"):
        tpfx.compile(ready.up, CPUS)
    with pytest.raises(tpfx.AlreadyCompiledError, match=r"1\.scale is sharded already"):
        tpfx.compile(nn.Sequential(nn.Linear(2, 2), ready), CPUS)


def test_only_compiled_models_have_a_report() -> None:
    with pytest.raises(tpfx.ModelError, match="not compiled"):
        tpfx.report(net())


# Nothing is lost.


class Failing(TiedNet):
    fails = True

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.fails:
            raise LookupError("not now")
        return super().forward(ids)


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        ((IDS,), LookupError, "not now"),
        ({"ids": IDS}, LookupError, "not now"),
        ((IDS, 1, 2, 3), TypeError, "takes 2 positional arguments but 5 were given"),
        ({"wrong": IDS}, TypeError, "unexpected keyword argument 'wrong'"),
        ((IDS.to("meta"),), tpfx.InputError, "ids is on meta, without contents"),
        (IDS, tpfx.InputError, "example_inputs is a Tensor; pass a tuple of arguments"),
    ],
)
def test_a_failed_compile_leaves_the_model_as_it_was(
    example: Any, error: type[Exception], message: str
) -> None:
    model = Failing().train()
    model.down.eval()
    before, expected = state_of(model), TiedNet.forward(model, IDS)
    with pytest.raises(error, match=message):
        tpfx.compile(model, CPUS, example_inputs=example)
    assert state_of(model) == before and not model.down.training
    torch.testing.assert_close(TiedNet.forward(model, IDS), expected)
    model.fails = False
    tpfx.compile(model, CPUS, example_inputs=(IDS,))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), expected)


def test_a_compile_that_fails_once_it_has_planned_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama", num_hidden_layers=1)
    before = state_of(model)
    with monkeypatch.context() as patched:
        patched.setattr(Entry, "store_the_rest", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tpfx.compile(model, CPUS)
    assert state_of(model)[1:] == before[1:] and all(
        type(value) is nn.Parameter for value in model.parameters()
    )
    assert not any(module._state_dict_hooks for module in model.modules())


def test_a_model_in_training_is_not_planned_to_generate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "first_of_generate", lambda *given: 1 / 0)
    model = tpfx.compile(tiny("llama", num_hidden_layers=1).train(), CPUS)
    assert model.training and all(weight.shards is not None for weight in model.parameters())


def test_weights_that_were_divided_already_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, divided = net(), []
    distribute = ShardedTensor.distribute

    def once(self: ShardedTensor, layout: Any, **how: Any) -> None:
        if divided:
            raise MemoryError("no room on device 1")
        divided.append(self.qualified_name)
        distribute(self, layout, **how)

    monkeypatch.setattr(ShardedTensor, "distribute", once)
    with pytest.raises(MemoryError, match="no room on device 1"):
        tpfx.compile(model, CPUS, example_inputs=(IDS,))
    assert len(divided) == 1
    assert all(type(value) is nn.Parameter and value.requires_grad for value in model.parameters())
    assert model.head.weight is model.embed.weight and type(model.scale) is torch.Tensor
    torch.testing.assert_close(dict(model.state_dict()), dict(net().state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(model(IDS), net()(IDS))


def test_a_first_call_that_raises_can_be_repeated() -> None:
    model = tpfx.compile(Failing().eval(), CPUS)
    with torch.no_grad():
        with pytest.raises(LookupError, match="not now"):
            model(IDS)
        model.fails = False
        torch.testing.assert_close(model(IDS), TiedNet.forward(copy.deepcopy(model), IDS))


class Cold(nn.Module):
    """Like a transformers model whose own dummy inputs do not suit it."""

    config = None
    dummy_inputs = {"nothing": torch.ones(1)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def test_dummy_inputs_that_do_not_suit_are_no_error(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tpfx"):
        model = tpfx.compile(Cold(), CPUS)
    assert "Cold cannot run its own dummy inputs" in caplog.text
    assert model.linear.weight.shards is None
    with torch.no_grad():
        model(torch.ones(2, 4))
    assert len(model.linear.weight.shards) == 2


# Inputs.


@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ((IDS.to("meta"),), {}, "ids"),
        ((IDS,), {"bias": torch.zeros(16, device="meta")}, "bias"),
        ((IDS, torch.zeros(16, device="meta")), {}, "bias"),
        ((IDS,), {"options": {"extra": [1.0, torch.zeros(16, device="meta")]}}, r"options\['extra'\]\[1\]"),
    ],
)
def test_inputs_without_contents(ready: TiedNet, args: Any, kwargs: Any, where: str) -> None:
    with pytest.raises(tpfx.InputError, match=rf"{where} is on meta, without contents"):
        ready(*args, **kwargs)
    assert tpfx.report(ready).graphs == 0


def test_inputs_may_be_numbers_none_and_containers(ready: TiedNet) -> None:
    reference = net()
    for extra in ([1.0], [1.0, torch.ones(16)], (torch.tensor(2.0),)):
        with torch.no_grad():
            result = ready(IDS, None, options={"extra": extra})
            torch.testing.assert_close(result, reference(IDS, None, options={"extra": extra}))
        assert type(result) is torch.Tensor


class Steps(nn.Module):
    """A step of one token a row; `minds` says what of it cannot be one graph for every number of rows."""

    def __init__(self, minds: str = "") -> None:
        super().__init__()
        self.embedding, self.out, self.minds = nn.Embedding(10, 8), nn.Linear(8, 10), minds

    def forward(self, ids: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = state + self.embedding(ids)
        if self.minds == "batch":
            state = state * 2 if ids.shape[0] == 1 else state * 3
        if self.minds == "print":
            torch._dynamo.graph_break()
        if self.minds == "squeeze":
            return self.out(state.squeeze(0) @ torch.eye(8)), state
        return self.out(state), state


@pytest.mark.parametrize(("minds", "graphs"), [("", 1), ("batch", 2), ("squeeze", 2), ("print", 4)])
def test_a_step_of_one_token_has_one_graph_for_all_batches_where_it_can(minds: str, graphs: int) -> None:
    """Where the model asks for the batch, drops it, or breaks its graph, one is for 1 and one for more."""
    model, plain = tpfx.compile(Steps(minds), ["cpu", "cpu"]), Steps(minds)
    plain.load_state_dict(tpfx.full_state_dict(model))
    with torch.no_grad():
        for rows in (1, 4, 3, 1):
            ids, state = torch.randint(10, (rows, 1)), torch.randn(rows, 1, 8)
            for _ in range(2):
                (logits, after), expected = model(ids, state), plain(ids, state)
                torch.testing.assert_close((logits, after), expected)
                state = after
    report = tpfx.report(model)
    assert report.graphs == graphs
    assert (report.batch_by_batch is None) == (not minds) == ("batch by batch" not in str(report))


def test_an_error_of_a_step_is_the_callers_and_not_tried_again() -> None:
    calls = []

    @torch.library.custom_op("tpfx_test::fails_at_seven", mutates_args=())
    def fails(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if (x == 7).any():
            raise ValueError("seven")
        return x.clone()

    @fails.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(x)

    class Failing(Steps):
        def forward(self, ids: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return super().forward(fails(ids), state)

    model = tpfx.compile(Failing(), ["cpu"])
    with torch.no_grad():
        model(torch.ones(2, 1, dtype=torch.int64), torch.zeros(2, 1, 8))
        calls.clear()
        with pytest.raises(ValueError, match="seven"):
            model(torch.full((2, 1), 7), torch.zeros(2, 1, 8))
    assert calls == [1]
    assert tpfx.report(model).graphs == 1


def test_a_plan_that_is_kept_holds_its_nodes_alone() -> None:
    model = tpfx.compile(tiny("llama"), ["cpu", "cpu"])
    with torch.no_grad():
        model(**inputs(model))
    plan = model.forward.session.newest
    gc.collect()
    held = [one for one in gc.get_objects() if type(one) is torch.fx.Node and one.graph is plan.graph]
    assert len(held) <= len(plan.graph.nodes) + 1  # the list of nodes begins with one that is none
