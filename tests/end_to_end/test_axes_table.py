"""What inference finds in the weights of every listed architecture, as one golden table.

The default run looks at a sample; `-m slow` at all. `TPFX_UPDATE_GOLDENS=1` rewrites what is looked at.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import pytest
import torch

from tests.support.architectures import LISTED, tiny
from tpfx.capture.capture import capture
from tpfx.errors import ModelError
from tpfx.ir.annotations import dims_of, source_of
from tpfx.ir.axes import Dim, find, show
from tpfx.ir.nodes import is_tensor
from tpfx.passes.context import Context
from tpfx.passes.pipeline import infer_structures

TABLE = Path(__file__).parents[1] / "axes.txt"
ALL = [(task, arch) for task, archs in LISTED.items() for arch in archs]
SAMPLE = {
    ("causal", arch) for arch in ("llama", "gpt2", "bloom", "phi3", "falcon", "gpt_neox", "gpt_bigcode")
}


def structures(task: str, arch: str) -> list[str]:
    """The matrices of which more is known than their sizes, those of alike layers once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = tiny(arch, task)
        try:
            graphs = capture(model, inputs, symbolic=False)
        except ModelError as problem:  # the model looks at numbers, which fake tensors do not have
            return [f"({problem})"]
    found: dict[str, list[Dim]] = {}
    for one in graphs:
        infer_structures(one.module.graph, one.sources, Context(2))
        for node in one.module.graph.find_nodes(op="placeholder"):
            source = source_of(node)
            if is_tensor(node) and source.kind == "parameter" and node.meta["val"].dim() > 1:
                name = re.sub(r"\b\d+\b", "*", source.name)
                found[name] = _finer(found.get(name), dims_of(node))
    packed = {name: dims for name, dims in found.items() if any(find(dim).form for dim in dims)}
    width = max(map(len, packed), default=0)
    return [f"{name:{width}}  {', '.join(show(dims))}" for name, dims in sorted(packed.items())]


def _finer(known: list[Dim] | None, dims: list[Dim]) -> list[Dim]:
    """The dimensions of alike weights of which inference found out more."""
    return max(known or dims, dims, key=lambda candidate: len("".join(show(candidate))))


def sections() -> dict[str, str]:
    text = TABLE.read_text() if TABLE.exists() else ""
    return dict(re.findall(r"^# (.+)\n((?:(?!# ).*\n)*)", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("task", "arch"),
    [pytest.param(*one, marks=[] if one in SAMPLE else [pytest.mark.slow]) for one in ALL],
)
def test_structures_of_weights(task: str, arch: str) -> None:
    torch._dynamo.reset()
    key, text = f"{task} {arch}", "".join(f"{line}\n" for line in structures(task, arch))
    known = sections()
    if os.environ.get("TPFX_UPDATE_GOLDENS"):
        known[key] = text
        order = [f"{task} {arch}" for task, arch in ALL]
        kept = sorted((name for name in known if name in order), key=order.index)
        TABLE.write_text("".join(f"# {name}\n{known[name]}" for name in kept))
    assert known.get(key) == text


def test_the_table_is_complete() -> None:
    assert list(sections()) == [f"{task} {arch}" for task, arch in ALL]
