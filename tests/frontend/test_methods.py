"""Methods beside `forward`: which of them are compiled, and that they compute what they did."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tpfx
from tests.support.sharded import CPUS
from tpfx.frontend.methods import method_names

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


class Machinery(nn.Module):
    """What a library brings: no `forward`."""

    def generate(self, x: Tensor) -> Tensor:
        return self.up(x)  # type: ignore[no-any-return]

    def encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Coder(Machinery):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 4))
        self.up = nn.Sequential(nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 8))
        self.scale = nn.Parameter(torch.ones(8))

    def encode(self, x: Tensor, *, twice: bool = False) -> Tensor:
        """A docstring."""
        return self.down(x) * (2 if twice else 1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        return self.up(z)  # type: ignore[no-any-return]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encode(x)
        torch._dynamo.graph_break()
        return self.decode(z), self(x)

    def indirect(self, x: Tensor) -> Tensor:
        return sum([self._inner(part) for part in (x, x)])  # type: ignore[return-value]

    def _inner(self, x: Tensor) -> Tensor:
        return x * self.scale

    def generate(self, x: Tensor) -> Tensor:
        return self.up(x)  # type: ignore[no-any-return]

    def parts(self, x: Tensor) -> Iterator[Tensor]:
        yield self.down(x)

    def width(self, x: Tensor) -> int:
        return x.shape[-1]

    def head(self) -> nn.Module:
        return self.up

    @staticmethod
    def fixed(x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.encode(x))  # type: ignore[no-any-return]


def split(**options: Any) -> Coder:
    return tpfx.compile(Coder(), CPUS, **options)


def test_which_methods_run_submodules() -> None:
    assert method_names(Coder(), None) == ["both", "decode", "encode", "head", "indirect"]
    assert method_names(Coder(), ["generate", "forward"]) == ["generate"]
    assert method_names(nn.Linear(2, 2), None) == ["reset_parameters"]  # which takes no tensor
    own = Coder()
    own.encode = own.decode  # type: ignore[method-assign, assignment]
    assert "encode" not in method_names(own, None)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("encode", r"pass a list of names, such as \['encode'\]"),
        (["fixed"], "no method of Coder; its own are: both"),
    ],
)
def test_methods_that_there_are_not(asked: Any, message: str) -> None:
    model = Coder()
    before = sorted(vars(model))
    with pytest.raises(tpfx.InputError, match=message):
        tpfx.compile(model, CPUS, methods=asked)
    assert sorted(vars(model)) == before and not isinstance(model.scale, tpfx.ShardedTensor)


def test_each_is_compiled_once_and_not_inside_of_another() -> None:
    plain, model = Coder(), split()
    for call, graphs in (
        ("encode", 1),
        ("__call__", 2),
        ("encode", 2),
        ("both", 5),
        ("both", 5),
        ("indirect", 6),
    ):
        expected, found = getattr(plain, call)(X), getattr(model, call)(X)
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(other, one)
        report = tpfx.report(model)
        assert (call, report.graphs, report.whole_calls) == (call, graphs, 0)
        assert max(report.bytes_per_device) < 0.6 * report.total_bytes
    torch.testing.assert_close(model.encode(X, twice=True), plain.encode(X, twice=True))
    assert model.encode.__doc__ == "A docstring." and model.head() is model.up and model.width(X) == 8


def test_gradients_of_a_method() -> None:
    plain, model = Coder(), split()
    for each in (plain, model):
        each.encode(X).square().sum().backward()
    torch.testing.assert_close(model.down[0].weight.grad.full(), plain.down[0].weight.grad)
    assert not model.decode(X[:, :4]).requires_grad and model.up[0].weight.grad is None


def test_methods_narrowed_and_widened() -> None:
    plain, model = Coder(), split(methods=["generate"])
    torch.testing.assert_close(model.encode(X), plain.encode(X))
    assert list(vars(model)["_tpfx_entry"].methods) == []  # but the part that it calls
    torch.testing.assert_close(model.generate(X[:, :4]), plain.generate(X[:, :4]))
    assert list(vars(model)["_tpfx_entry"].methods) == ["generate"] and tpfx.report(model).graphs == 2


def test_a_copy_has_methods_of_its_own() -> None:
    plain, model = Coder(), split()
    model.encode(X)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.down[0].weight.zero_()
        copied.down[0].bias.zero_()
        torch.testing.assert_close(copied.encode(X), copied.down[2].bias.full().expand(5, 4))
    torch.testing.assert_close(model.encode(X), plain.encode(X))
    assert tpfx.report(copied).graphs == 1
