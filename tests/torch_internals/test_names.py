"""No name that stands for something private of torch goes without a test in this folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from tpfx.torch_internals import dynamo, fx, inductor, parameter_slots

ROOM = Path(dynamo.__file__).parent
aten = torch.ops.aten


def public(tree: ast.Module) -> Iterator[str]:
    """What other rooms may take from a module: what it defines, and what it names anew (`x as x`)."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.ImportFrom(names=names):
                yield from (alias.name for alias in names if alias.asname == alias.name)


def untested(modules: dict[str, str], tests: str) -> list[str]:
    """The public names of some modules that no test mentions."""
    nodes = list(ast.walk(ast.parse(tests)))
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return sorted(
        f"{name}.{one}"
        for name, text in modules.items()
        for one in public(ast.parse(text))
        if not one.startswith("_") and one not in used
    )


def test_every_name_is_tested_here() -> None:
    modules = {path.stem: path.read_text() for path in ROOM.glob("*.py")}
    assert len(modules) > 8
    tests = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert untested(modules, tests) == []


def test_a_name_without_a_test_is_found() -> None:
    text = "from torch import a as a\nfrom torch import b\nK = 1\n_L = 2\ndef f(): ...\nclass C: ...\n"
    assert untested({"m": text}, "m.K") == ["m.C", "m.a", "m.f"]
    assert untested({"m": text}, "m.K, C(), m.a.b, f") == []


def test_kinds_of_ops() -> None:
    assert type(aten.add.Tensor) is fx.OpOverload
    assert type(aten.add) is fx.OpOverloadPacket
    assert isinstance(torch.ops.higher_order.cond, fx.HigherOrderOperator)


def test_the_linear_of_onednn_is_known_again() -> None:
    call = inductor.linear_of_onednn(torch.ones(2, 3), torch.ones(4, 3))
    if call is None:
        pytest.skip("torch was built without oneDNN")
    assert inductor.is_linear_of_onednn(call[0])
    assert not inductor.is_linear_of_onednn(aten.linear.default)


def test_slots_are_the_places_of_parameters_and_buffers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False))
    model.tied = model[0].weight
    model.register_buffer("nothing", None)
    slots = list(parameter_slots.slots_of(model))
    assert sorted(slot.name for slot in slots) == [
        "0.bias",
        "0.weight",
        "1.num_batches_tracked",
        "1.running_mean",
        "1.running_var",
        "tied",
    ]
    (tied,) = [slot for slot in slots if slot.name == "tied"]
    assert isinstance(tied, parameter_slots.Slot) and tied.value is model[0].weight
    tied.table[tied.key] = nn.Parameter(torch.zeros(2, 2))
    assert tied.value is model.tied is not model[0].weight


def test_a_recurrent_layer_keeps_its_workspace_without_gradients() -> None:
    assert inductor.has_rnn_layer()
    x, weights = torch.randn(5, 3, 8), [torch.randn(64, 8), torch.randn(64, 16), *torch.randn(2, 64)]
    states = torch.zeros(2, 3, 16)
    rest = (*states, False, [], 2, 16, 1, True, False, False, False)
    with torch.no_grad():
        kept, plain = (
            op(x, *weights, *rest)
            for op in (inductor.rnn_layer_for_training(), aten.mkldnn_rnn_layer.default)
        )
    assert plain[3] is None and kept[3].numel()
    torch.testing.assert_close(kept[:3], plain[:3])


def test_the_module_that_defines_an_op_is_known() -> None:
    @torch.library.custom_op("tpfx_names::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    assert fx.module_of(torch.ops.tpfx_names.twice.default) == __name__ == twice._init_fn.__module__
    assert fx.module_of(aten.add.Tensor) is None
