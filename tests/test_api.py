"""What a user of `tpfx.compile` relies on: typed errors, nothing lost when it fails, still a module."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import tpfx
from tests.support.models import inputs, tiny
from tests.support.sharded import CPUS
from tpfx import ShardedTensor


class Net(nn.Module):
    """A tied pair, a buffer, a bias, and a layer that forward leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.spare = nn.Linear(16, 48)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, ids: Tensor, bias: Tensor | None = None, options: Any = None) -> Tensor:
        x = self.embed(ids)
        x = x + self.down(torch.relu(self.up(x))) * self.scale
        for item in (options or {}).get("extra", ()):
            x = x + item
        return self.head(x if bias is None else x + bias)


IDS = torch.arange(10).view(2, 5)


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def ready() -> Net:
    """Compiled, and planned."""
    return tpfx.compile(net(), CPUS, example_inputs=(IDS,))


def state_of(model: nn.Module) -> tuple[Any, ...]:
    """Every object that compile may touch, and what is in it."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    attributes = [sorted(vars(module)) for module in model.modules()]
    return {name: id(value) for name, value in named.items()}, attributes, model.training


# What compile refuses.


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], "empty list"),
        (0, "at least 1"),
        (["gpu"], r"devices\[0\] = 'gpu' is not a device"),
        (["cpu", "cuda:99"], "cuda:99"),
        (["meta"], "a meta device"),
        ("cpu", "must be a list"),
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


def test_a_model_is_compiled_once(ready: Net) -> None:
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


class Failing(Net):
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
        ((IDS.to("meta"),), tpfx.InputError, "ids is on meta, but the model takes its inputs on cpu"),
        (IDS, tpfx.InputError, "example_inputs is a Tensor; pass a tuple of arguments"),
    ],
)
def test_a_failed_compile_leaves_the_model_as_it_was(
    example: Any, error: type[Exception], message: str
) -> None:
    model = Failing().train()
    model.down.eval()
    before, expected = state_of(model), Net.forward(model, IDS)
    with pytest.raises(error, match=message):
        tpfx.compile(model, CPUS, example_inputs=example)
    assert state_of(model) == before and not model.down.training
    torch.testing.assert_close(Net.forward(model, IDS), expected)
    model.fails = False
    tpfx.compile(model, CPUS, example_inputs=(IDS,))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), expected)


def test_weights_that_were_divided_already_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model, divided = net(), []
    distribute = ShardedTensor.distribute

    def once(self: ShardedTensor, layout: Any) -> None:
        if divided:
            raise MemoryError("no room on device 1")
        divided.append(self.qualified_name)
        distribute(self, layout)

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
        torch.testing.assert_close(model(IDS), Net.forward(copy.deepcopy(model), IDS))


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
def test_inputs_on_the_wrong_device(ready: Net, args: Any, kwargs: Any, where: str) -> None:
    with pytest.raises(tpfx.InputError, match=rf"{where} is on meta, but the model takes its inputs on cpu"):
        ready(*args, **kwargs)
    assert tpfx.report(ready).graphs == 0


def test_inputs_may_be_numbers_none_and_containers(ready: Net) -> None:
    reference = net()
    for extra in ([1.0], [1.0, torch.ones(16)], (torch.tensor(2.0),)):
        with torch.no_grad():
            result = ready(IDS, None, options={"extra": extra})
            torch.testing.assert_close(result, reference(IDS, None, options={"extra": extra}))
        assert type(result) is torch.Tensor


# A compiled model is still a module.


def test_weights_that_forward_leaves_out_stay_whole(ready: Net) -> None:
    assert ready.spare.weight.shards is None and ready.up.weight.shards is not None
    report = tpfx.report(ready)
    reference = net()
    held = {id(value): value for value in (*reference.parameters(), *reference.buffers())}
    assert report.total_bytes == sum(value.numel() * value.element_size() for value in held.values())
    assert sum(report.bytes_per_device) >= report.total_bytes
    assert torch.equal(tpfx.full_state_dict(ready)["spare.weight"], reference.spare.weight)


def test_tied_weights_stay_tied(ready: Net) -> None:
    assert ready.head.weight is ready.embed.weight
    state = tpfx.full_state_dict(ready)
    assert state["head.weight"] is state["embed.weight"]
    assert len(list(ready.parameters())) == len(list(net().parameters()))


def test_it_still_looks_like_what_it_was(ready: Net) -> None:
    assert inspect.signature(ready.forward) == inspect.signature(net().forward)
    assert all(isinstance(value, nn.Parameter) for value in ready.parameters())
    assert [name for name, _ in ready.named_parameters()] == [name for name, _ in net().named_parameters()]
    assert next(ready.parameters()).device == torch.device("cpu")


def test_what_others_noted_on_a_parameter_stays() -> None:
    model = net()
    model.up.weight.no_decay = True
    tpfx.compile(model, CPUS, example_inputs=(IDS,))
    assert model.up.weight.no_decay and isinstance(model.up.weight, ShardedTensor)


def test_parts_of_it_can_be_called_by_themselves(ready: Net) -> None:
    x = torch.randn(2, 16)
    reference = net()
    torch.testing.assert_close(ready.up(x), reference.up(x))
    torch.testing.assert_close(ready.head(x), reference.head(x))
    torch.testing.assert_close(ready.spare(x), reference.spare(x))


def test_state_dicts_go_out_and_in(ready: Net) -> None:
    sharded = ready.state_dict()
    assert isinstance(sharded["up.weight"], ShardedTensor) and sharded["up.weight"].shards is not None
    other = Net().eval()
    assert set(sharded) == set(other.state_dict())
    for state in (other.state_dict(), tpfx.compile(copy.deepcopy(other), CPUS).state_dict()):
        ready.load_state_dict(tpfx.full_state_dict(net()))
        ready.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(ready(IDS), other(IDS))


def test_loading_gathers_nothing(ready: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    state = Net().state_dict()
    monkeypatch.setattr(ShardedTensor, "gathered", lambda self, _=None: pytest.fail(f"{self!r} is gathered"))
    for name in ("embed.weight", "up.weight", "down.weight"):
        assert ready.get_parameter(name).placement
    ready.load_state_dict({name: value for name, value in state.items() if "spare" not in name}, strict=False)
    monkeypatch.undo()
    torch.testing.assert_close(ready.down.weight.full(), state["down.weight"])


def test_the_full_state_dict_can_be_saved(ready: Net) -> None:
    file = io.BytesIO()
    torch.save(tpfx.full_state_dict(ready, "cpu"), file)
    file.seek(0)
    other = Net()
    other.load_state_dict(torch.load(file))
    torch.testing.assert_close(other.state_dict(), net().state_dict(), rtol=0, atol=0)


def test_a_copy_stands_alone(ready: Net) -> None:
    reference = net()
    twin = copy.deepcopy(ready)
    with torch.no_grad():
        ready(IDS)
        twin.up.weight.zero_()
        reference.up.weight.zero_()
        torch.testing.assert_close(ready(IDS), net()(IDS))
        torch.testing.assert_close(twin(IDS), reference(IDS))
    assert (tpfx.report(twin).graphs, tpfx.report(ready).graphs) == (1, 1)


def test_pickling_a_model_says_what_to_do_instead(ready: Net) -> None:
    with pytest.raises(tpfx.TpfxError, match=r"tpfx\.full_state_dict\(model\)"):
        pickle.dumps(ready)


@pytest.mark.parametrize("called", [False, True])
def test_the_dtype_can_change(ready: Net, called: bool) -> None:
    reference = net().double()
    with torch.no_grad():
        if called:
            ready(IDS)
        ready.double()
        assert ready.up.weight.dtype == ready.spare.weight.dtype == ready.scale.dtype == torch.float64
        assert ready.head.weight is ready.embed.weight
        result = ready(IDS)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, reference(IDS))


def test_moving_to_where_it_is_changes_nothing(ready: Net) -> None:
    with torch.no_grad():
        ready(IDS)
        before = state_of(ready)
        assert ready.to("cpu", torch.float32).float() is ready and ready.up.cpu() is ready.up
        assert state_of(ready) == before
        ready(IDS)
    assert tpfx.report(ready).graphs == 1


def test_moving_it_elsewhere_is_refused(ready: Net) -> None:
    with pytest.raises(tpfx.ModelError, match=r"cannot move embed\.weight to meta: the model is split over"):
        ready.to("meta")
    assert ready.up.weight.shards is not None


@pytest.mark.parametrize("layer", ["head", "embed", "up"])  # the first two are tied
def test_a_weight_can_be_replaced(ready: Net, layer: str) -> None:
    reference = net()
    with torch.no_grad():
        ready(IDS)
        other = torch.randn(64 if layer == "up" else 40, 16)
        for model in (ready, reference):
            model.get_submodule(layer).weight = nn.Parameter(other.clone())
        torch.testing.assert_close(ready(IDS), reference(IDS))


def test_gradients_lie_as_their_weights_do(ready: Net) -> None:
    result, reference = ready.train()(IDS), net()
    expected = reference(IDS)
    torch.testing.assert_close(result, expected)
    result.sum().backward()
    expected.sum().backward()
    for (name, weight), plain in zip(ready.named_parameters(), reference.parameters(), strict=True):
        if plain.grad is None:  # of a layer that nothing uses
            assert weight.grad is None, name
            continue
        assert isinstance(weight.grad, tpfx.ShardedTensor), name
        assert weight.grad.placement == weight.placement, name
        torch.testing.assert_close(weight.grad.full(), plain.grad)


def test_a_transformers_model_keeps_its_ways(tmp_path: Path) -> None:
    model, reference = (tiny("llama", num_hidden_layers=1, tie_word_embeddings=True) for _ in range(2))
    tpfx.compile(model, CPUS)
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.num_parameters() == reference.num_parameters()
    hidden = torch.randn(1, 64)
    torch.testing.assert_close(model.lm_head(hidden), reference.lm_head(hidden))
    given = inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**given).logits, reference(**given).logits)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded.state_dict(), reference.state_dict(), rtol=0, atol=0)


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
