"""Caches of keys and values that people cut, choose from, join and hand in again: the unsharded tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

import tpfx
from tests.support.compare import largest_error
from tests.support.models import tiny

IDS = torch.randint(3, 256, (2, 7), generator=torch.Generator().manual_seed(3))
GREEDY = {"do_sample": False, "max_new_tokens": 8}


class Remembers(nn.Module):
    """Adds what it is given to what came before: `[batch, length, 8]`, and all so far `[batch, any, 24]`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Linear(8, 24), nn.Linear(24, 8)

    def forward(self, x: Tensor, before: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        seen = self.into(x) if before is None else torch.cat([before, self.into(x)], 1)
        return self.out(torch.tanh(seen.cumsum(1))[:, -x.shape[1] :]), {"seen": seen}


class Holder:
    """Anything that is no list or dict, such as a cache."""

    def __init__(self, seen: Tensor) -> None:
        self.seen = seen


class TakesAHolder(Remembers):
    def forward(self, x: Tensor, holder: Holder | None = None) -> tuple[Tensor, Holder]:  # type: ignore[override]
        y, said = super().forward(x, None if holder is None else holder.seen)
        return y, Holder(said["seen"])


def split(model: nn.Module, devices: int, door: str = "compile") -> Any:
    cpus = ("cpu",) * devices
    if door == "compile":
        return tpfx.compile(model, cpus)
    model.forward = torch.compile(model.forward, backend="tpfx", options={"devices": cpus})  # type: ignore[assignment]
    return model


def cut_again_and_again(model: Any) -> list[Tensor]:
    """Views of views, of any length: of rows, of the last entries, of a part that was turned around twice."""
    x, said = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(1)), []
    _, holder = model(x)
    for cut in (
        lambda seen: seen[:, :5],
        lambda seen: seen[:, :-3][1:3],
        lambda seen: seen.transpose(0, 1)[2:].transpose(0, 1),
        lambda seen: seen[:, -2:].expand(2, -1, -1),
        lambda seen: seen.split(1)[1],
    ):
        holder.seen = cut(holder.seen)
        for length in (3, 1):
            y, holder = model(x[: len(holder.seen), :length], holder)
            said.append(y)
    return said


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_views_of_what_a_model_keeps_go_back_into_it(devices: int) -> None:
    with torch.no_grad():
        got, want = (cut_again_and_again(one) for one in (split(TakesAHolder(), devices), TakesAHolder()))
    assert largest_error(got, want) < 1e-5


def continued_twice(model: Any) -> list[Tensor]:
    """What several steps have made, gone on from twice, and written to while others hold it."""
    x, said = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1)), []
    _, holder = model(x)
    for _ in range(4):
        _, holder = model(x[:, :1], Holder(holder.seen))
    first = [model(x[:, at : at + 1], Holder(holder.seen)) for at in (2, 3)]
    for y, one in first:
        again, longer = model(x[:, :1], one)
        one.seen[:, 1] *= 2
        said += [y, again, model(x[:, :1], longer)[0], model(x[:, :1], one)[0]]
    return [*said, model(x[:, :1], holder)[0]]


def test_one_past_goes_on_twice() -> None:
    with torch.no_grad():
        got, want = (continued_twice(one) for one in (split(TakesAHolder(), 2), TakesAHolder()))
    assert largest_error(got, want) < 1e-5


def assisted(model: Any) -> list[Tensor]:
    """Tokens that a smaller model, the prompt, or the model's own first layer has proposed."""
    draft = tiny("llama", num_hidden_layers=1)
    ids = IDS[:1].repeat(1, 3)
    given = {"assistant_model": draft}, {"prompt_lookup_num_tokens": 3}, {"assistant_early_exit": 1}
    return [model.generate(ids, **one, **GREEDY) for one in given]


def padded(model: Any) -> list[Tensor]:
    """A mask, with which the model repeats heads of keys and values, and a rank does not."""
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    return [model.generate(IDS, attention_mask=mask, num_beams=count, **GREEDY) for count in (1, 3)]


def cropped(model: Any) -> list[Tensor]:
    cache, said = DynamicCache(config=model.config), []
    for dropped in (2, 3, 1):
        said.append(model(IDS, past_key_values=cache).logits)
        cache.crop(-dropped)
        other = copy.deepcopy(cache)
        other.crop(-1)
        said += [model(IDS[:, :1], past_key_values=one).logits for one in (other, cache)]
    return said


def joined(model: Any) -> list[Tensor]:
    """Rows of two prompts; some entries of one; what was on the CPU, written to, stacked and taken apart."""
    rows = [model(IDS[at : at + 1], use_cache=True).past_key_values for at in (0, 1)]
    cache, said = DynamicCache(config=model.config), []
    for at, (one, other) in enumerate(zip(*(row.layers for row in rows), strict=True)):
        cache.update(torch.cat([one.keys, other.keys]), torch.cat([one.values, other.values]), at)
    said.append(model(IDS[:, :2], past_key_values=cache).logits)
    for layer in cache.layers:
        layer.keys = torch.cat([layer.keys[..., :1, :], layer.keys[..., -3:, :]], -2)
        layer.values = torch.cat([layer.values[..., :1, :], layer.values[..., -3:, :]], -2).cpu()
        layer.keys[:, :, 1] *= 0.5
        layer.keys, layer.values = torch.stack([layer.keys, layer.values]).unbind(0)
    said.append(model(IDS[:, :2], past_key_values=DynamicCache([(x.keys, x.values) for x in cache.layers])))
    return [said[0], said[1].logits]


@pytest.mark.slow
@pytest.mark.parametrize("door", ["compile", "backend"])
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize("way", [assisted, padded, cropped, joined], ids=lambda way: way.__name__)
def test_a_cache_that_is_edited(way: Callable[[Any], list[Tensor]], devices: int, door: str) -> None:
    with torch.no_grad():
        want = way(tiny("llama"))
        assert largest_error(way(split(tiny("llama"), devices, door)), want) < 1e-4


def _places(cache: StaticCache) -> list[Any]:
    """Where what a cache keeps of the text lies: its tensors, and their memory on each device."""
    kept = [value for layer in cache.layers for value in (layer.keys, layer.values)]
    return [(id(value), [shard.data_ptr() for shard in value.shards]) for value in kept]


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_steps_write_into_a_static_cache_where_it_is(devices: int) -> None:
    """One graph for prompts and one for steps do for any text, greedy or not; memory stays where it is."""
    plain, split = (tiny("llama", num_hidden_layers=1) for _ in range(2))
    tpfx.compile(split, ["cpu"] * devices)
    for beams in (1, 3):
        given = {"num_beams": beams, "do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
        expected = plain.generate(IDS, cache_implementation="static", **given)
        cache, places = StaticCache(config=plain.config, max_cache_len=16), []

        def look(ids: Tensor, _: Tensor, places: Any = places, cache: Any = cache, **__: Any) -> Tensor:
            places.append(_places(cache))
            return torch.zeros(len(ids), dtype=torch.bool)

        found = split.generate(IDS, past_key_values=cache, stopping_criteria=[look], **given)
        assert torch.equal(found, expected)
        assert len(places) == 8 and (beams > 1 or all(one == places[0] for one in places))
        assert cache.layers[0].keys.shape[2] == 16 and cache.layers[0].keys.placement.dims
    assert tpfx.report(split).graphs == 2
