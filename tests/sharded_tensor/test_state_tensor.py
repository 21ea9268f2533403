"""What savers make of the state dict of a split model: the very files that they make of the unsharded one."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, load_model, save, save_file, save_model
from torch import Tensor, nn

import tpfx
from tests.support.nets import TiedNet
from tpfx.sharded_tensor.state_tensor import StateTensor
from tpfx.sharded_tensor.tensor import ShardedTensor

IDS = torch.arange(15).view(3, 5)


@pytest.fixture(params=[2, 3])
def nets(request: pytest.FixtureRequest) -> tuple[TiedNet, TiedNet]:
    """The same net, unsharded and split; one of its layers is in no graph, and so undivided."""
    plain = TiedNet().eval()
    return plain, split_net(plain, request.param)


def split_net(plain: TiedNet, devices: int = 2) -> TiedNet:
    split = tpfx.compile(copy.deepcopy(plain), ["cpu"] * devices)
    with torch.no_grad():
        split(IDS)
    return split


def untied(net: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in net.state_dict().items() if name != "head.weight"}


def rounded(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(torch.bfloat16).contiguous() for name, value in state.items()}


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def hub_files(net: nn.Module, folder: Path) -> None:
    huggingface_hub.save_torch_state_dict(net.state_dict(), folder, max_shard_size=1500)


class OnHub(TiedNet, huggingface_hub.PyTorchModelHubMixin):
    """As `save_pretrained` and, before it uploads, `push_to_hub` do it."""


def mixin(net: nn.Module, folder: Path) -> None:
    net.__class__ = OnHub
    net.save_pretrained(folder)


WAYS: dict[str, Callable[[nn.Module, Path], object]] = {
    "save_file": lambda net, folder: save_file(untied(net), folder / "a"),
    "save": lambda net, folder: (folder / "a").write_bytes(save(untied(net))),
    "rounded": lambda net, folder: save_file(rounded(untied(net)), folder / "a"),
    "a copy": lambda net, folder: save_file(copy.deepcopy(untied(net)), folder / "a"),
    "save_model": lambda net, folder: save_model(net, str(folder / "a")),
    "in several files": hub_files,
    "mixin": mixin,
}


def test_files_are_those_of_the_unsharded_model(nets: tuple[TiedNet, TiedNet], tmp_path: Path) -> None:
    for way, write in WAYS.items():
        written = []
        for name, net in zip(("plain", "split"), nets, strict=True):
            folder = tmp_path / way / name
            folder.mkdir(parents=True)
            write(net, folder)
            written.append(files_in(folder))
        assert written[0] == written[1], way


def test_tied_weights_are_refused_and_loaded_as_ever(nets: tuple[TiedNet, TiedNet], tmp_path: Path) -> None:
    plain, split = nets
    with pytest.raises(RuntimeError, match=r"share memory.*'(embed|head)\.weight'"):
        save_file(split.state_dict(), tmp_path / "a")
    save_model(TiedNet(), str(tmp_path / "b"))
    for net in nets:
        assert load_model(net, tmp_path / "b") == (set(), [])
    torch.testing.assert_close(tpfx.full_state_dict(split), dict(plain.state_dict()), rtol=0, atol=0)


def test_torch_save_writes_plain_tensors_and_ties_once(nets: tuple[TiedNet, TiedNet], tmp_path: Path) -> None:
    for name, net in zip(("plain", "split"), nets, strict=True):
        torch.save(net.state_dict(), tmp_path / name)
    sizes = [os.path.getsize(tmp_path / name) for name in ("plain", "split")]
    assert sizes[1] < sizes[0] + nets[0].head.weight.nbytes / 2
    loaded = torch.load(tmp_path / "split", weights_only=True)
    assert {type(value) for value in loaded.values()} == {Tensor}
    assert loaded["head.weight"].data_ptr() == loaded["embed.weight"].data_ptr()
    torch.testing.assert_close(dict(loaded), dict(nets[0].state_dict()), rtol=0, atol=0)


def test_what_is_saved_is_what_the_weights_are_by_then(tmp_path: Path) -> None:
    split = split_net(TiedNet())
    state, copied = untied(split), copy.deepcopy(untied(split))
    save_file(state, tmp_path / "before")
    with torch.no_grad():
        for weight in split.parameters():
            weight.add_(1)
    save_file(state, tmp_path / "after")
    save_file(copied, tmp_path / "copied")
    before, after, kept = (load_file(tmp_path / name) for name in ("before", "after", "copied"))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value + (name != "scale"))
        assert torch.equal(kept[name], value), name


@pytest.mark.filterwarnings("ignore:.*torch.distributed is .*:UserWarning")  # dcp in one process
def test_staged_for_an_asynchronous_checkpoint(tmp_path: Path) -> None:
    plain = TiedNet()
    dcp.async_save(split_net(plain).state_dict(), checkpoint_id=tmp_path).result()
    other = split_net(TiedNet(), 3)
    dcp.load(other.state_dict(), checkpoint_id=tmp_path)
    torch.testing.assert_close(tpfx.full_state_dict(other), dict(plain.state_dict()), rtol=0, atol=0)


def test_a_state_dict_is_the_model_still() -> None:
    """What is written into it the model has; nothing was gathered for it; a call may be made with it."""
    plain = TiedNet().eval()
    split = split_net(plain)
    state: dict[str, Any] = untied(split)
    assert {type(value) for value in state.values()} == {StateTensor}
    assert state["up.weight"].shards is not None
    with torch.no_grad():
        torch.testing.assert_close(torch.func.functional_call(split, state, (IDS,)), plain(IDS))
        state["up.weight"].fill_(2.0)
    assert torch.equal(split.up.weight.full(), torch.full_like(plain.up.weight, 2.0))
    assert type(split.state_dict(keep_vars=True)["up.weight"]) is ShardedTensor


def test_weights_themselves_have_no_address(tmp_path: Path) -> None:
    split = split_net(TiedNet())
    with pytest.raises(
        tpfx.ShardingError,
        match=r"embed\.weight.* lies in shards, and has no address: save model\.state_dict",
    ):
        save_file(dict(split.named_parameters()), tmp_path / "a")


def test_the_backends_model_is_saved_alike(tmp_path: Path) -> None:
    plain = TiedNet().eval()
    split = copy.deepcopy(plain)
    with torch.no_grad():
        torch.compile(split, backend="tpfx", options={"devices": ["cpu", "cpu"]})(IDS)
    for name, net in (("plain", plain), ("split", split)):
        save_model(net, str(tmp_path / name))
    assert (tmp_path / "plain").read_bytes() == (tmp_path / "split").read_bytes()
