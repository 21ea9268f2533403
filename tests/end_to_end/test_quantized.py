"""Quantized models: their weights are tensors that are made of others, and are split as any."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.compare import largest_error
from tests.support.models import inputs, tiny
from tests.support.quantized import Doubled, Halves4, Int8, Packed4, Quantized, Scaled8, quantized
from tests.support.sharded import whole
from tpfx.errors import ModelError
from tpfx.sharded_tensor.tensor import ShardedTensor
from tpfx.torch_internals.parameter_slots import leaves_of

KINDS = (Int8, Packed4, Doubled)
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8, "vocab_size": 256}


class Net(nn.Module):
    """A layer before which, and one after which, ranks have to talk."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


def net(kind: type[Quantized] = Int8, seed: int = 0) -> Any:
    return quantized(Net(seed), kind)


def split(model: Any, devices: int = 2, **options: Any) -> Any:
    return tpfx.compile(model, ["cpu"] * devices, example_inputs=(X,), **options)


def state(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    """The tensors of which each entry of a state dict is made."""
    return {name: list(leaves_of(value)) for name, value in model.state_dict().items()}


def agree(model: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(X), other(X))


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("kind", [*KINDS, Scaled8, Halves4], ids=lambda kind: kind.__name__)
def test_the_weights_are_divided_by_their_axes(kind: type[Quantized], devices: int) -> None:
    expected, model = net(kind), split(net(kind), devices)
    agree(model, expected)
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / devices
    assert [one.kind for one in report.collectives] == ["all_reduce"] and not report.whole_ops
    assert all(isinstance(leaf, ShardedTensor) for leaf in leaves_of(model.up.weight))
    assert type(model.up.weight) is kind and isinstance(model.up.weight, nn.Parameter)


@pytest.mark.parametrize("kind", [Int8, Packed4], ids=lambda kind: kind.__name__)
def test_a_language_model_writes_the_same_tokens_with_as_many_collectives_as_the_plain_one(
    kind: type[Quantized],
) -> None:
    plain = tpfx.compile(tiny("llama", **SIZES), 2)
    model = quantized(tiny("llama", **SIZES), kind, lambda name: name != "lm_head")
    given = inputs(model)
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**given, **options)
    model = tpfx.compile(model, 2)
    assert torch.equal(model.generate(**given, **options), expected)
    plain.generate(**given, **options)
    own, its = (len(tpfx.report(each).collectives) for each in (model, plain))
    assert own == its
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / 2


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_saved_is_what_was(kind: type[Quantized]) -> None:
    model = net(kind)
    before = {name: [leaf.clone() for leaf in leaves] for name, leaves in state(model).items()}
    split(model)(X)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=False)
    full = tpfx.full_state_dict(model)
    tpfx.unshard(model)
    for found in ({name: list(leaves_of(value)) for name, value in saved.items()}, state(model)):
        assert found.keys() == before.keys() == full.keys()
        for name, leaves in before.items():
            assert all(map(torch.equal, found[name], leaves)), name
            assert all(map(torch.equal, leaves_of(full[name]), leaves)), name
            assert all(
                type(leaf) is torch.Tensor for leaf in (*found[name][:-1], *list(leaves_of(full[name]))[:-1])
            )
    agree(model, net(kind))


@pytest.mark.parametrize("assign", [False, True])
def test_another_state_is_loaded_into_the_shards(assign: bool) -> None:
    model, other = split(net()), net(seed=1)
    model(X)
    model.load_state_dict(other.state_dict(), assign=assign)
    agree(model, other)
    assert all(isinstance(leaf, ShardedTensor) for leaf in leaves_of(model.up.weight))


def test_a_weight_that_is_given_later_is_divided() -> None:
    model, other = split(net()), net(seed=1)
    agree(model, net())
    model.up.weight = other.up.weight
    expected = net()
    expected.up.weight = net(seed=1).up.weight
    agree(model, expected)
    assert all(isinstance(leaf, ShardedTensor) for leaf in leaves_of(model.up.weight))


def test_the_dtype_changes_as_that_of_the_unsharded_one() -> None:
    model, expected = split(net()), net().to(torch.float64)
    model(X)
    model.to(torch.float64)
    assert model.up.weight.dtype == torch.float64
    with torch.no_grad():
        torch.testing.assert_close(model(X.double()), expected(X.double()))


def test_copies_are_split_and_plain_copies_are_not() -> None:
    model = split(net())
    agree(model, net())
    twin = copy.deepcopy(model)
    agree(twin, net())
    assert all(isinstance(leaf, ShardedTensor) for leaf in leaves_of(twin.up.weight))
    assert twin.up.weight.qdata is not model.up.weight.qdata


def test_adapters_on_frozen_quantized_weights_are_trained() -> None:
    def adapted(model: Any) -> Any:
        torch.manual_seed(2)
        model.up.register_parameter("a", nn.Parameter(torch.randn(4, 64) / 8))
        model.up.register_parameter("b", nn.Parameter(torch.randn(256, 4) / 2))
        model.up.register_forward_hook(lambda layer, args, out: out + args[0] @ layer.a.T @ layer.b.T)
        return model

    expected, model = adapted(net()), split(adapted(net()))
    for each in (expected, model):
        each(X).square().sum().backward()
    for name, parameter in expected.named_parameters():
        found = model.get_parameter(name).grad
        if not parameter.requires_grad:
            assert found is None and parameter.grad is None
        else:
            assert largest_error(parameter.grad, whole(found)) < 1e-3 * parameter.grad.abs().max()


def test_a_gradient_of_a_quantized_weight_is_refused_and_without_one_it_runs() -> None:
    model = net()
    model.up.weight.requires_grad_()
    model = tpfx.compile(model, 2)
    with pytest.raises(ModelError, match=r"is wanted, a Int8, .*requires_grad_\(False\)"):
        model(X)
    agree(model, net())


def test_torchs_own_door_divides_them_too() -> None:
    model = net()
    compiled = torch.compile(model, backend="tpfx", options={"devices": ["cpu", "cpu"]})
    agree(compiled, net())
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / 2
    tpfx.unshard(model)
    assert all(type(leaf) is torch.Tensor for leaf in leaves_of(model.up.weight))
    agree(model, net())


def test_a_plan_names_the_tensors_inside_and_is_followed() -> None:
    plan = tpfx.plan(net(), 2, (X,))
    assert plan.weights["up.weight.qdata"].shards and plan.weights["up.weight.qdata"].kind == "parameter"
    model = tpfx.compile(net(), 2, plan=plan)
    agree(model, net())
    assert tpfx.report(model).followed == [("prefill", 1)]


def test_what_does_not_keep_its_tensors_as_attributes_is_refused() -> None:
    class Hidden(Int8):
        """One whose tensors are in a list."""

        qdata = property(lambda self: self._own[0], lambda self, value: vars(self).update(_own=[value]))
        scale = property(lambda self: self._own[1], lambda self, value: self._own.append(value))

    model = Net()
    model.up.weight = nn.Parameter(Hidden.of(model.up.weight.detach()), requires_grad=False)
    before = model.up.weight
    with pytest.raises(ModelError, match=r"up\.weight is a Hidden, which does not keep the tensors"):
        tpfx.compile(model, 2)
    assert model.up.weight is before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["int8", "int8 activations", "int4 in groups"])
def test_torchao(name: str) -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    configs = {
        "int8": torchao.Int8WeightOnlyConfig,
        "int8 activations": torchao.Int8DynamicActivationInt8WeightConfig,
        "int4 in groups": lambda: torchao.IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=torchao.granularity.PerGroup(32)
        ),
    }
    model = tiny("llama", **SIZES)
    torchao.quantize_(model, configs[name]())
    given = inputs(model)
    expected = model.generate(**given, max_new_tokens=4, do_sample=False)
    model = tpfx.compile(model, 2)
    assert torch.equal(model.generate(**given, max_new_tokens=4, do_sample=False), expected)
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / 2


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("name", ["qint8", "qint4"])
def test_quanto(name: str, devices: int) -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    sizes = {**SIZES, "hidden_size": 256, "intermediate_size": 1536, "num_key_value_heads": 4}
    model = tiny("llama", **sizes)
    quanto.quantize(model, weights=getattr(quanto, name), exclude="lm_head")
    quanto.freeze(model)
    given, options = inputs(model), {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**given, **options)
    model = tpfx.compile(model, devices)
    assert torch.equal(model.generate(**given, **options), expected)
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / devices
    assert len(report.collectives) == 6 and not report.whole_ops  # of the plain one as many
