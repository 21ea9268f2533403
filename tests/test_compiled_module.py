"""A compiled model is still a module: its weights, state dicts, copies, dtypes and gradients."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import tpfx
from tests.support.models import inputs, tiny
from tests.support.nets import TiedNet, state_of
from tests.support.sharded import CPUS
from tpfx import ShardedTensor

IDS = torch.arange(10).view(2, 5)


def net() -> TiedNet:
    torch.manual_seed(0)
    return TiedNet().eval()


@pytest.fixture
def ready() -> TiedNet:
    """Compiled, and planned."""
    return tpfx.compile(net(), CPUS, example_inputs=(IDS,))


def test_weights_that_forward_leaves_out_are_stored_evenly(ready: TiedNet) -> None:
    assert ready.spare.weight.pinned is None and ready.up.weight.pinned is not None
    assert [part.shape for part in ready.spare.weight.shards] == [(24, 16), (24, 16)]
    report = tpfx.report(ready)
    reference = net()
    held = {id(value): value for value in (*reference.parameters(), *reference.buffers())}
    assert report.total_bytes == sum(value.numel() * value.element_size() for value in held.values())
    assert sum(report.bytes_per_device) >= report.total_bytes
    assert torch.equal(tpfx.full_state_dict(ready)["spare.weight"], reference.spare.weight)


def test_tied_weights_stay_tied(ready: TiedNet) -> None:
    assert ready.head.weight is ready.embed.weight
    state = tpfx.full_state_dict(ready)
    assert state["head.weight"] is state["embed.weight"]
    assert len(list(ready.parameters())) == len(list(net().parameters()))


def test_it_still_looks_like_what_it_was(ready: TiedNet) -> None:
    assert inspect.signature(ready.forward) == inspect.signature(net().forward)
    assert all(isinstance(value, nn.Parameter) for value in ready.parameters())
    assert [name for name, _ in ready.named_parameters()] == [name for name, _ in net().named_parameters()]
    assert next(ready.parameters()).device == torch.device("cpu")


def test_what_others_noted_on_a_parameter_stays() -> None:
    model = net()
    model.up.weight.no_decay = True
    tpfx.compile(model, CPUS, example_inputs=(IDS,))
    assert model.up.weight.no_decay and isinstance(model.up.weight, ShardedTensor)


def test_parts_of_it_can_be_called_by_themselves(ready: TiedNet) -> None:
    x = torch.randn(2, 16)
    reference = net()
    torch.testing.assert_close(ready.up(x), reference.up(x))
    torch.testing.assert_close(ready.head(x), reference.head(x))
    torch.testing.assert_close(ready.spare(x), reference.spare(x))


def test_state_dicts_go_out_and_in(ready: TiedNet) -> None:
    sharded = ready.state_dict()
    assert isinstance(sharded["up.weight"], ShardedTensor) and sharded["up.weight"].shards is not None
    other = TiedNet().eval()
    assert set(sharded) == set(other.state_dict())
    for state in (other.state_dict(), tpfx.compile(copy.deepcopy(other), CPUS).state_dict()):
        ready.load_state_dict(tpfx.full_state_dict(net()))
        ready.load_state_dict(state)
        with torch.no_grad():
            torch.testing.assert_close(ready(IDS), other(IDS))


def test_loading_gathers_nothing(ready: TiedNet, monkeypatch: pytest.MonkeyPatch) -> None:
    state = TiedNet().state_dict()
    monkeypatch.setattr(ShardedTensor, "gathered", lambda self, _=None: pytest.fail(f"{self!r} is gathered"))
    for name in ("embed.weight", "up.weight", "down.weight"):
        assert ready.get_parameter(name).placement
    ready.load_state_dict({name: value for name, value in state.items() if "spare" not in name}, strict=False)
    monkeypatch.undo()
    torch.testing.assert_close(ready.down.weight.full(), state["down.weight"])


def test_the_full_state_dict_can_be_saved(ready: TiedNet) -> None:
    file = io.BytesIO()
    torch.save(tpfx.full_state_dict(ready, "cpu"), file)
    file.seek(0)
    other = TiedNet()
    other.load_state_dict(torch.load(file))
    torch.testing.assert_close(other.state_dict(), net().state_dict(), rtol=0, atol=0)


def test_a_copy_stands_alone(ready: TiedNet) -> None:
    reference = net()
    twin = copy.deepcopy(ready)
    with torch.no_grad():
        ready(IDS)
        twin.up.weight.zero_()
        reference.up.weight.zero_()
        torch.testing.assert_close(ready(IDS), net()(IDS))
        torch.testing.assert_close(twin(IDS), reference(IDS))
    assert (tpfx.report(twin).graphs, tpfx.report(ready).graphs) == (1, 1)


def test_pickling_a_model_says_what_to_do_instead(ready: TiedNet) -> None:
    with pytest.raises(tpfx.TpfxError, match=r"tpfx\.full_state_dict\(model\)"):
        pickle.dumps(ready)


@pytest.mark.parametrize("called", [False, True])
def test_the_dtype_can_change(ready: TiedNet, called: bool) -> None:
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


def test_moving_to_where_it_is_changes_nothing(ready: TiedNet) -> None:
    with torch.no_grad():
        ready(IDS)
        before = state_of(ready)
        assert ready.to("cpu", torch.float32).float() is ready and ready.up.cpu() is ready.up
        assert state_of(ready) == before
        ready(IDS)
    assert tpfx.report(ready).graphs == 1


def test_moving_it_elsewhere_is_refused(ready: TiedNet) -> None:
    with pytest.raises(tpfx.ModelError, match=r"cannot move embed\.weight to meta: the model is split over"):
        ready.to("meta")
    assert ready.up.weight.shards is not None


@pytest.mark.parametrize("layer", ["head", "embed", "up"])  # the first two are tied
def test_a_weight_can_be_replaced(ready: TiedNet, layer: str) -> None:
    reference = net()
    with torch.no_grad():
        ready(IDS)
        other = torch.randn(64 if layer == "up" else 40, 16)
        for model in (ready, reference):
            model.get_submodule(layer).weight = nn.Parameter(other.clone())
        torch.testing.assert_close(ready(IDS), reference(IDS))


def test_gradients_lie_as_their_weights_do(ready: TiedNet) -> None:
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
