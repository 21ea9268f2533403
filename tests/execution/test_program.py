"""What a compiled graph does with its arguments: resharding, lending, writing back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import tpfx
from tests.support.nets import Net
from tests.support.sharded import CPUS, sharded
from tpfx.ir.shards import Shards
from tpfx.runtime.mesh import Mesh
from tpfx.runtime.thread_runtime import Runtime


class Writes(torch.nn.Module):
    """Projects to 4 heads and writes them into a cache that the caller keeps, with a count of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(16, 64, bias=False)

    def forward(
        self, x: torch.Tensor, cache: torch.Tensor, at: torch.Tensor, count: torch.Tensor
    ) -> torch.Tensor:
        heads = self.project(x).view(*x.shape[:2], 4, 16).transpose(1, 2)
        cache.index_copy_(2, at, heads)
        count.add_(1)
        return (cache * 2).sum((1, 2))


def test_what_the_caller_keeps_is_written() -> None:
    plain = Writes()
    split = tpfx.compile(Writes(), ["cpu", "cpu"])
    split.load_state_dict(plain.state_dict())
    caches = [torch.zeros(2, 4, 6, 16) for _ in range(2)]
    counts = [torch.tensor(0) for _ in range(2)]
    for step in range(3):
        x, at = torch.randn(2, 2, 16), torch.tensor([2 * step, 2 * step + 1])
        with torch.no_grad():
            expected = plain(x, caches[0], at, counts[0])
            torch.testing.assert_close(split(x, caches[1], at, counts[1]), expected)
    assert counts == [3, 3]
    assert type(caches[1]) is torch.Tensor
    torch.testing.assert_close(caches[1], caches[0])
    shards = split.project.weight.shards
    assert [tuple(shard.shape) for shard in shards] == [(32, 16), (32, 16)]


def test_repeated_and_scalar_arguments() -> None:
    class Scales(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(8, 8)

        def forward(
            self, x: torch.Tensor, y: torch.Tensor, factor: float, nothing: None = None
        ) -> torch.Tensor:
            return self.inner(x) * factor + y

    plain = Scales()
    split = tpfx.compile(Scales(), 3)
    split.load_state_dict(plain.state_dict())
    x = torch.randn(5, 8)
    with torch.no_grad():
        for factor in (2.0, 3.0):
            torch.testing.assert_close(split(x, x, factor), plain(x, x, factor))


def test_a_view_of_a_sharded_cache_is_written_through() -> None:
    """Such a view has no shards of its own: what the ranks write goes to its base."""
    plain, split = Writes(), tpfx.compile(Writes(), ["cpu", "cpu"])
    split.load_state_dict(plain.state_dict())
    base = sharded(torch.zeros(2, 4, 12, 16), Shards(((2, (((0, 6),), ((6, 12),))),)))
    caches = [torch.zeros(2, 4, 6, 16), base[:, :, ::2]]
    x, at = torch.randn(2, 2, 16), torch.tensor([1, 4])
    with torch.no_grad():
        expected = plain(x, caches[0], at, torch.tensor(0))
        torch.testing.assert_close(split(x, caches[1], at, torch.tensor(0)), expected)
    torch.testing.assert_close(base.full()[:, :, ::2], caches[0])
    assert base.full()[:, :, 1::2].abs().sum() == 0


def test_a_split_cache_is_written_into_where_it_lies() -> None:
    """As one of a fixed size: a step neither makes it anew nor copies it."""
    split = tpfx.compile(Writes(), ["cpu", "cpu"])
    cache = sharded(torch.zeros(2, 4, 6, 16), Shards(((1, (((0, 2),), ((2, 4),))),)))
    assert cache.shards is not None
    before = [shard.data_ptr() for shard in cache.shards]
    with torch.no_grad():
        for step in range(3):
            split(torch.randn(2, 1, 16), cache, torch.tensor([step]), torch.tensor(0))
    assert [shard.data_ptr() for shard in cache.shards] == before
    assert cache.full()[:, :, :3].abs().min() > 0 and cache.full()[:, :, 3:].abs().max() == 0


@pytest.mark.parametrize("gpus", [[], [torch.device("cuda:0")]], ids=["cpu", "gpu"])
def test_ranks_on_gpus_run_where_their_streams_wait_for_the_callers(
    gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    def noting(name: str) -> Callable[..., Any]:
        method = getattr(Runtime, name)

        def called(self: Runtime, *args: Any) -> Any:
            ways.append(name)
            return method(self, *args)

        return called

    ways: list[str] = []
    model, x = tpfx.compile(Net(), CPUS), torch.randn(4, 8)
    monkeypatch.setattr(Mesh, "gpus", gpus)  # the threads are those of a CPU
    for name in ("run", "run_programs"):
        monkeypatch.setattr(Runtime, name, noting(name))
    torch.testing.assert_close(model(x), Net()(x))
    assert set(ways) == {"run" if gpus else "run_programs"}
