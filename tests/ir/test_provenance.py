"""Layers by their paths."""

from __future__ import annotations

import pytest

from tpfx.ir.provenance import layer_of, path_of_stack, stem_of


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("layers.3.self_attn.q_proj", "layers.3"),
        ("layers.3", "layers.3"),
        ("3.weight", "3"),
        ("encoder.layers.0.experts.1", "encoder.layers.0"),  # up to the first number
        ("lm_head", ""),
        ("block12.conv", ""),
        ("layers.0[1]", ""),  # a result of an op
        ("", ""),
    ],
)
def test_a_layer_is_the_path_up_to_its_first_number(path: str, layer: str) -> None:
    assert layer_of(path) == layer


def test_the_stem_and_the_number_of_a_layer() -> None:
    assert stem_of("encoder.layers.12") == ("encoder.layers", 12)
    assert stem_of("3") == ("", 3)
    assert stem_of("norm") == ("norm", None)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("L['self']._modules['layers']._modules['0'].norm", "layers.0.norm"),
        ("L['fn'].__self__._modules['layers'][3]._compiled_call_impl.__self__.norm", "layers.3.norm"),
        ("L['args'][0].layers.0.norm", "layers.0.norm"),  # of a forward that a decorator calls
        ("L['self']", ""),
    ],
)
def test_dynamos_name_of_a_module_is_its_path(name: str, path: str) -> None:
    assert path_of_stack({"one": (name, object)}) == path
