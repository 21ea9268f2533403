"""Where modules keep weights, what those are made of, and what is called in the place of a module."""

from __future__ import annotations

import copy

import torch
from torch import nn

from tests.support.quantized import Doubled, Int8, quantized
from tpfx.torch_internals.parameter_slots import (
    CALLED_INSTEAD,
    copy_noted,
    has_memory,
    is_traceable_wrapper_subclass,
    leaves_of,
    places_of,
    slots_of,
    tables_of,
    tensors_inside,
    with_hooks,
    with_inside,
)
from tpfx.torch_internals.wrapper_subclass import OfItsOwn


def test_what_is_called_instead_of_a_module_takes_the_place_of_its_hooks_too() -> None:
    layer, seen = torch.nn.Linear(2, 2), []
    layer.register_forward_hook(lambda *_: seen.append("hook"))
    vars(layer)[CALLED_INSTEAD] = lambda x: seen.append("instead")
    layer(torch.ones(2))
    with_hooks(layer, torch.ones(2))
    assert seen == ["instead", "hook"]
    assert CALLED_INSTEAD not in vars(copy.deepcopy(layer))


def test_what_a_weight_is_made_of_has_places_in_it_once_and_is_of_its_kind() -> None:
    model = quantized(nn.Sequential(nn.Linear(4, 2), nn.Linear(4, 2), nn.BatchNorm1d(2)), Doubled)
    model[1].weight = model[0].weight
    weights = [slot for slot in slots_of(model) if ".weight." in slot.name]
    assert [(slot.name, slot.kind) for slot in weights] == [
        ("0.weight.inner.qdata", "parameter"),
        ("0.weight.inner.scale", "parameter"),
        ("0.weight.factor", "parameter"),
    ]
    assert [slot.name for slot in places_of(model)][:3] == ["0.weight", "0.bias", "1.weight"]
    weights[0].table[weights[0].key] = torch.ones(2, 4, dtype=torch.int8)
    assert model[1].weight.inner.qdata.sum() == 8
    assert {kind for kind, table in tables_of(model[2]) if "running_mean" in table} == {"buffer"}


def test_tensors_inside_are_those_that_a_subclass_keeps_as_attributes() -> None:
    weight = Doubled.of(torch.randn(2, 4))
    assert is_traceable_wrapper_subclass(weight) and tensors_inside(weight) == ["inner", "factor"]
    assert not tensors_inside(torch.ones(1)) and not tensors_inside(nn.Parameter(torch.ones(1)))
    assert [tuple(leaf.shape) for leaf in leaves_of(weight)] == [(2, 4), (2, 1), (1,)]
    assert list(leaves_of(plain := torch.ones(1))) == [plain]

    class Kept(OfItsOwn, Int8):
        """One that counts as a tensor by itself."""

    class Hidden(Int8):
        """One that does not keep its tensors as attributes."""

        NAMES = ("one", "other")
        one = property(lambda self: self._own[0], lambda self, value: vars(self).update(_own=[value]))
        other = property(lambda self: self._own[1], lambda self, value: self._own.append(value))

    assert not tensors_inside(Kept.of(torch.randn(2, 4))) and not tensors_inside(Hidden.of(torch.randn(2, 4)))


def test_a_tensor_is_made_again_of_what_its_tensors_become() -> None:
    weight = nn.Parameter(Doubled.of(torch.randn(2, 4)), requires_grad=False)
    made = with_inside(weight, lambda one: one + 1)
    assert type(made) is Doubled and isinstance(made, nn.Parameter) and not made.requires_grad
    assert torch.equal(made.inner.qdata, weight.inner.qdata + 1) and made.factor == 3
    assert with_inside(torch.ones(1), lambda one: one + 1) == 2


class Holder:
    """What keeps things in attributes."""

    def __init__(self, **kept: object) -> None:
        vars(self).update(kept)


def test_what_is_kept_beside_a_frozen_or_packed_weight_has_places_too() -> None:
    layer = nn.Linear(4, 2)
    shared = Holder(table=torch.ones(3))
    inner = Holder(scale=torch.ones(2), deeper={"zero": torch.zeros(2), "kind": "nf4"}, shared=shared)
    inner.itself = inner  # type: ignore[attr-defined]
    layer.weight.state = inner  # type: ignore[assignment]
    assert not [slot for slot in slots_of(layer) if slot.beside], "of a weight that is trained"
    layer.weight.requires_grad_(False)
    layer.state, layer.meta = inner, {"other": torch.ones(1), "by": Holder(size=3)}
    beside = [slot for slot in slots_of(layer) if slot.beside]
    names = ["weight.state.scale", "weight.state.deeper.zero", "weight.state.shared.table"]
    assert [slot.name for slot in beside] == names and {slot.kind for slot in beside} == {"buffer"}
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.uint8), requires_grad=False)
    found = [slot.name for slot in slots_of(nn.Sequential(layer)) if slot.beside]
    assert found == ["0.state.scale", "0.state.deeper.zero", "0.state.shared.table", "0.meta.other"]
    beside[0].table[beside[0].key] = torch.zeros(2)
    assert inner.scale.sum() == 0  # type: ignore[attr-defined]


def test_what_only_lies_in_attributes_is_no_weight() -> None:
    layer = nn.Linear(4, 2)
    layer.cache, layer.mask, layer.steps = {"keys": torch.ones(2)}, torch.ones(2), [torch.ones(2)]
    assert [slot.name for slot in slots_of(layer)] == ["weight", "bias"]


def test_what_has_memory_is_no_tensor_that_is_made_of_others() -> None:
    class Kind(nn.Parameter):
        """A plain kind of a parameter."""

    kind = torch.ones(1).as_subclass(Kind)
    assert all(map(has_memory, (torch.ones(1), nn.Parameter(torch.ones(1)), kind)))
    assert not has_memory(Doubled.of(torch.ones(1, 2))) and not has_memory(1.0)


def test_what_is_noted_on_a_tensor_of_another_kind_is_copied_but_not_what_is_its_own() -> None:
    made, split = Holder(), Holder(plain_kind=nn.Parameter, own_attributes=("plain_kind", "own_attributes"))
    vars(split).update(mine=[1], state=Holder(of=split))
    memo: dict[int, object] = {id(split): made}
    copy_noted(made, split, memo)
    assert sorted(vars(made)) == ["mine", "state"]
    assert made.mine == [1] and made.mine is not split.mine  # type: ignore[attr-defined]
    assert made.state.of is made  # type: ignore[attr-defined]
    copy_noted(plain := Holder(), Holder(plain_kind=None, mine=1), {})
    assert vars(plain) == {}
