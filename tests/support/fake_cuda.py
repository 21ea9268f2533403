"""Plan on GPUs that are not there, in a process of its own: torch built with CUDA, and `fake_cuda.cpp`.

python -m tests.support.fake_cuda flash generate,train causal:llama seq2seq:t5     # a JSON line for each
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

KERNELS = ("flash", "mem_efficient", "cudnn")
_SOURCE = Path(__file__).with_suffix(".cpp")


def planned(
    kernels: str, models: list[str], library: Path, phases: str = "generate,train", capability: int = 90
) -> list[dict[str, Any]]:
    """What was planned of models, "task:architecture", on two GPUs, H100s by default.

    Args:
        kernels: those of attention that are allowed, of `KERNELS`.
        models: which.
        library: what `build` made.
        phases: of each, "generate" for what that runs, or one call where nothing is generated; "train";
            "dropout" for training that drops values, in attention too.
        capability: of the GPUs; before 8.0 they compute in float16 alone.

    Returns:
        For each the kernels of attention; how many are divided and how many not of attention, of that with a
        bias or mask, and of dropout; findings; fingerprints.
    """
    env = os.environ | {"LD_PRELOAD": str(library), "FAKE_GPUS": "2", "FAKE_SM": str(capability)}
    command = [sys.executable, "-m", __spec__.name, kernels, phases, *models]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@cache
def headers() -> list[str] | None:
    """The folders of the headers that `fake_cuda.cpp` needs; None where the build of torch has no CUDA."""
    if not torch.backends.cuda.is_built():
        return None
    of_torch = Path(torch.__file__).parent / "include"
    found = [of_torch, of_torch / "torch/csrc/api/include"]
    for name, inner in (("nvidia", "cu*/include"), ("triton", "backends/nvidia/include")):
        spec = importlib.util.find_spec(name)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            found += Path(folder).glob(inner)
    return [f"-I{folder}" for folder in found]


def build(folder: Path) -> Path:
    """The library to load before all others."""
    made = folder / "libcuda.so.1"
    flags = ["-std=c++20", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(["g++", *flags, *(headers() or ()), str(_SOURCE), "-o", str(made)], check=True)
    return made


def _plan(task: str, arch: str, phase: Any) -> dict[str, Any]:
    from tests.support.architectures import tiny
    from tpfx.capture.capture import capture
    from tpfx.passes.lower import lower
    from tpfx.plan.generation import capture_generation
    from tpfx.plan.offline import plan_graphs
    from tpfx.runtime.mesh import Mesh
    from tpfx.torch_internals.fake import FakeTensorMode
    from tpfx.verify.findings import Findings
    from tpfx.verify.static_checks import check_graphs

    gpu = torch.device("cuda", 0)
    model, given = tiny(arch, task)
    half = torch.bfloat16 if int(os.environ["FAKE_SM"]) >= 80 else torch.float16
    model.to(half)
    if phase == "dropout":
        _let_drop(model)
    given = {name: one.to(half) if one.is_floating_point() else one for name, one in given.items()}
    if phase != "generate":
        captured = capture(model, given, phase="train", device=gpu)
    else:
        captured = capture_generation(model, given, device=gpu)
    names, found, ways = [], [], {"attention": [0, 0], "bias": [0, 0], "dropout": [0, 0]}
    plans = plan_graphs(captured, 2)
    for one in plans:
        root = one.graph.owning_module
        assert root is not None
        findings = Findings(one)
        with FakeTensorMode(
            allow_non_fake_inputs=True
        ):  # constants of a graph are brought to its ranks' GPUs
            ranks = lower(one.graph, Mesh((gpu, gpu)), root)
        check_graphs(one, ranks, findings)
        found += [str(finding) for finding in findings.listed()]
        for node in one.graph.nodes:
            for kind in _kinds(node):
                ways[kind][not _is_divided(node)] += 1
            if "attention" in str(node.target):
                names.append(node.target.name().removeprefix("aten::_scaled_dot_product_"))
    kernels = {name: names.count(name) for name in sorted(set(names))}
    prints = [one.fingerprint for one in plans]
    return {"model": arch, "phase": phase, "kernels": kernels, **ways, "found": found, "prints": prints}


def _let_drop(model: torch.nn.Module) -> None:
    """Have a model drop values in training, in attention too; it is made so as to drop none."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
        for name, value in vars(module).items():
            if "drop" in name and "layer" not in name and isinstance(value, float):
                setattr(module, name, 0.1)


def _kinds(node: Any) -> Iterator[str]:
    """What of interest a node is: attention, also with a bias or mask that is added to scores; dropout."""
    name = str(node.target)
    if "attention" in name:
        yield "attention"
        named = dict(zip((one.name for one in node.target._schema.arguments), node.args, strict=False))
        if (named | node.kwargs).get("attn_bias") is not None:
            yield "bias"
    elif name == "aten.native_dropout.default":
        yield "dropout"


def _is_divided(node: Any) -> bool:
    from tpfx.ir.annotations import choice_of
    from tpfx.ir.layout import Split

    choice = choice_of(node)
    return choice is not None and any(isinstance(one, Split) for one in choice.results)


def main(kernels: str, phases: str, *models: str) -> None:
    """Plan models with some of the attention kernels allowed, beside the one for all cases."""
    from torch.fx.experimental import proxy_tensor

    torch.cuda.is_available = lambda: False  # nothing is to be read from them
    proxy_tensor.CONSTANT_NUMEL_LIMIT = -1  # or constants would be computed on them
    for name in KERNELS:
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(name in kernels.split(","))
    for model in models:
        for phase in phases.split(","):
            print(json.dumps(_plan(*model.split(":"), phase)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
