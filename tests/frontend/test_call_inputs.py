"""What a call is given: moved to the first device, or described where the model cannot take it."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

import tpfx
from tests.support.nets import Net, TiedNet
from tpfx.frontend.call_inputs import brought_to

Pair = namedtuple("Pair", "left right")
THERE = torch.device("meta")  # a device that every machine has beside its CPU


def test_tensors_are_moved_wherever_they_are() -> None:
    x, number, label = torch.ones(3), torch.tensor(2.0), "text"
    given = (x, {"a": [x, 1], "b": OrderedDict(c=Pair(x, label))}, number)
    moved: Any = brought_to(THERE, given)
    assert [moved[0].device, moved[1]["a"][0].device, moved[1]["b"]["c"].left.device] == [THERE] * 3
    assert type(moved[1]["b"]) is OrderedDict and type(moved[1]["b"]["c"]) is Pair
    assert moved[1]["b"]["c"].right is label and moved[2] is number
    assert given[1]["a"][0].device.type == "cpu"


def test_what_lies_there_is_handed_on_as_it_is() -> None:
    given = ([torch.ones(3)], {"a": torch.ones(2)}, None)
    moved = brought_to(torch.device("cpu"), given)
    assert all(one is other for one, other in zip(moved, given, strict=True))


def test_gradients_flow_back_to_what_was_moved() -> None:
    x = torch.ones(3, requires_grad=True)
    assert brought_to(THERE, [x])[0].grad_fn is not None


IDS = torch.arange(15).view(3, 5)
FOUND_LATE = torch.__version__ < "2.13"


@pytest.mark.parametrize(
    ("net", "works", "given", "words"),
    [
        (
            Net,
            (torch.ones(4, 8),),
            (torch.ones(4, 7),),
            r"Net .* x float32\[4, 7\]: .*8, 24.*nets\.py.*self\.up",
        ),
        pytest.param(
            TiedNet,
            (IDS,),
            (IDS.float(),),
            r"ids float32\[3, 5\]: Expected tensor for argument #1 'indices'",
            marks=pytest.mark.skipif(
                FOUND_LATE, reason="this torch finds it when the graph runs, and says it"
            ),
        ),
        (
            TiedNet,
            (IDS,),
            (IDS, torch.ones(17)),
            r"ids int64\[3, 5\], bias float32\[17\]: The size of tensor a \(16\) must match .* b \(17\)",
        ),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_what_does_not_fit_is_said_in_the_models_words(
    net: type[nn.Module], works: Any, given: Any, words: str, before: bool
) -> None:
    plain = net()
    expected = plain(*works)
    model = tpfx.compile(plain, ["cpu", "cpu"])
    if before:
        model(*works)
    with pytest.raises(tpfx.InputError, match=words) as caught:
        model(*given)
    text = str(caught.value)
    assert isinstance(caught.value, RuntimeError) and "Dynamo" not in text and "FakeTensor" not in text
    assert ("A call that worked had" in text) == before
    torch.testing.assert_close(model(*works), expected)


@pytest.mark.cuda
def test_ids_on_the_cpu_are_moved_to_the_gpu() -> None:
    plain = TiedNet().cuda()
    expected = plain(IDS.cuda())
    torch.testing.assert_close(tpfx.compile(plain, ["cuda:0", "cuda:0"])(IDS), expected)
