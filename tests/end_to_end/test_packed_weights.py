"""Weights of 4 bits with their scales beside them, as bitsandbytes has them: divided between their blocks."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.compare import largest_error
from tests.support.models import inputs, tiny
from tests.support.packed_linear import Weight4, packed
from tests.support.sharded import whole
from tpfx.frontend.plain_copy import plain_copy
from tpfx.sharded_tensor.tensor import ShardedTensor

SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "vocab_size": 512}


class Net(nn.Module):
    """A layer before which, and one after which, ranks have to talk."""

    def __init__(self, inside: int = 768, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(256, inside, bias=bias), nn.Linear(inside, 256, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).sin())


X = torch.randn(4, 256, generator=torch.Generator().manual_seed(0))


def net(nested: bool = True, **sizes: Any) -> Any:
    return packed(Net(**sizes), nested=nested)


def agree(model: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(X), other(X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_and_their_scales_are_divided(nested: bool, devices: int) -> None:
    model = tpfx.compile(net(nested), ["cpu"] * devices)
    agree(model, net(nested))
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / devices
    assert [one.kind for one in report.collectives] == ["all_reduce"] and not report.whole_ops
    for layer in (model.up, model.down):
        assert layer.weight.placement and layer.weight.state.absmax.placement
    assert "up.weight.state.absmax" in report.dump()


@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize(("inside", "bias"), [(512, True), (100, False), (96, True), (33, False), (1, True)])
def test_whatever_the_sizes_the_numbers_are_right(inside: int, bias: bool, block: int) -> None:
    expected, model = (packed(Net(inside, bias), block=block, nested=True) for _ in range(2))
    model = tpfx.compile(model, ["cpu"] * 3)
    agree(model, expected)
    x, other = X.clone().requires_grad_(), X.clone().requires_grad_()
    model(x).square().sum().backward(), expected(other).square().sum().backward()
    assert largest_error(other.grad, whole(x.grad)) < 1e-4 * other.grad.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_language_model_writes_the_same_tokens_with_as_many_collectives_as_the_plain_one(name: str) -> None:
    sizes = SIZES if name == "llama" else {"n_embd": 256, "n_head": 8, "vocab_size": 512}
    plain = tpfx.compile(tiny(name, **sizes), 2)
    model = packed(tiny(name, **sizes), lambda name: name != "lm_head", nested=True)
    given, options = inputs(model), {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**given, **options)
    model = tpfx.compile(model, 2)
    assert torch.equal(model.generate(**given, **options), expected)
    plain.generate(**given, **options)
    report = tpfx.report(model)
    assert len(report.collectives) == len(tpfx.report(plain).collectives)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / 2


def test_it_is_the_same_weight_before_and_after() -> None:
    model = net()
    state = model.up.weight.state
    scales, table = state.absmax.clone(), state.state2.code
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tpfx.compile(model, 2)(X)
    assert type(table) is torch.Tensor, "what others may share is as it was"
    assert isinstance(state.absmax, ShardedTensor) and model.up.weight.state is state
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    saved = torch.load(file)
    assert saved.keys() == before.keys() and all(torch.equal(saved[name], before[name]) for name in before)
    tpfx.unshard(model)
    assert type(model.up.weight) is Weight4 and not model.up.weight.requires_grad
    assert (
        model.up.weight.state is state
        and type(state.absmax) is torch.Tensor
        and torch.equal(state.absmax, scales)
    )
    agree(model, net())


def test_copies_have_scales_of_their_own() -> None:
    model = tpfx.compile(net(), 2)
    agree(model, net())
    twin = copy.deepcopy(model)
    agree(twin, net())
    assert twin.up.weight.state is not model.up.weight.state
    assert isinstance(twin.up.weight.state.absmax, ShardedTensor)
    plain = plain_copy(model)
    agree(plain, net())
    assert type(plain.up.weight) is Weight4 and type(plain.up.weight.state.absmax) is torch.Tensor


def test_adapters_on_packed_weights_are_trained() -> None:
    def adapted(model: Any) -> Any:
        torch.manual_seed(2)
        model.up.register_parameter("a", nn.Parameter(torch.randn(4, 256) / 16))
        model.up.register_parameter("b", nn.Parameter(torch.randn(768, 4) / 2))
        model.up.register_forward_hook(lambda layer, args, out: out + args[0] @ layer.a.T @ layer.b.T)
        return model

    expected, model = adapted(net()), tpfx.compile(adapted(net()), 2)
    for each in (expected, model):
        optimizer = torch.optim.AdamW([one for one in each.parameters() if one.requires_grad], lr=1e-2)
        for _ in range(3):
            each(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in expected.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                whole(model.get_parameter(name)), parameter, rtol=1e-3, atol=1e-4, msg=name
            )


def test_a_plan_names_what_is_beside_a_weight_and_is_followed() -> None:
    plan = tpfx.plan(net(), 2, (X,))
    assert plan.weights["up.weight.state.absmax"].shards
    model = tpfx.compile(net(), 2, plan=plan)
    agree(model, net())
    assert tpfx.report(model).followed == [("prefill", 1)]


def test_torchs_own_door_divides_them_too() -> None:
    model = net()
    compiled = torch.compile(model, backend="tpfx", options={"devices": ["cpu", "cpu"]})
    agree(compiled, net())
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / 2
    tpfx.unshard(model)
    assert type(model.up.weight) is Weight4 and type(model.up.weight.state.absmax) is torch.Tensor


def of_bitsandbytes(name: str, kind: str, nested: bool) -> Any:
    """A tiny language model whose linear layers are bitsandbytes' of 4 bits, in float32."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    sizes = {"n_embd": 256, "n_head": 8, "vocab_size": 512} if name == "gpt2" else SIZES
    model = tiny(name, **sizes)
    for path, layer in list(model.named_modules()):
        turned = type(layer).__name__ == "Conv1D"
        if path != "lm_head" and (turned or type(layer) is nn.Linear):
            weight = (layer.weight.T if turned else layer.weight).detach().contiguous()
            options = {"quant_type": kind, "compress_statistics": nested}
            made = bnb.nn.Linear4bit(weight.shape[1], weight.shape[0], compute_dtype=torch.float32, **options)
            made.weight = bnb.nn.Params4bit(weight, requires_grad=False, module=made, **options)
            made.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
            made.support_avx512bf16_for_cpu = False
            model.set_submodule(path, made)
    return model.to("cpu")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "nested"), [("nf4", True), ("fp4", False)])
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_bitsandbytes(name: str, devices: int, kind: str, nested: bool) -> None:
    model = of_bitsandbytes(name, kind, nested)
    given, options = inputs(model), {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**given, **options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model = tpfx.compile(model, devices)
    assert torch.equal(model.generate(**given, **options), expected)
    report = tpfx.report(model)
    assert max(report.bytes_per_device) <= 1.1 * report.total_bytes / devices
    assert sum(one.kind == "all_reduce" for one in report.collectives) == 5 and not report.whole_ops
    saved = tpfx.full_state_dict(model)
    assert saved.keys() == before.keys() and all(torch.equal(saved[name], before[name]) for name in before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("checkpointed", [False, True])
def test_qlora(checkpointed: bool, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")

    def adapted() -> Any:
        model = of_bitsandbytes("llama", "nf4", True)
        model.is_loaded_in_4bit = True
        model = peft.prepare_model_for_kbit_training(
            model, checkpointed, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        torch.manual_seed(0)
        config = peft.LoraConfig(
            r=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False
        )
        return peft.get_peft_model(model, config).train()

    expected, model = adapted(), tpfx.compile(adapted(), 2)
    ids = torch.randint(0, 512, (2, 16), generator=torch.Generator().manual_seed(0))
    for each in (expected, model):
        optimizer = torch.optim.AdamW([one for one in each.parameters() if one.requires_grad], lr=1e-3)
        for _ in range(10):
            each(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, parameter in expected.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(whole(model.get_parameter(name)), parameter, rtol=1e-3, atol=1e-4)
    model.save_pretrained(tmp_path)
    plain = peft.PeftModel.from_pretrained(of_bitsandbytes("llama", "nf4", True), tmp_path).eval()
    with torch.no_grad():
        logits = model.eval()(input_ids=ids).logits
        torch.testing.assert_close(logits, plain(input_ids=ids).logits, rtol=1e-3, atol=1e-4)
