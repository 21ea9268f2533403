"""Plan on GPUs that are not there, in a process of its own: torch built with CUDA, and `fake_cuda.cpp`.

python -m tests.support.fake_cuda flash causal:llama seq2seq:t5     # a JSON line for each model and phase
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

KERNELS = ("flash", "mem_efficient", "cudnn")
_SOURCE = Path(__file__).with_suffix(".cpp")


def planned(kernels: str, models: list[str], library: Path, capability: int = 90) -> list[dict[str, Any]]:
    """What was planned of models, "task:architecture", each for inference and training, on two GPUs."""
    env = os.environ | {"LD_PRELOAD": str(library), "FAKE_GPUS": "2", "FAKE_SM": str(capability)}
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, kernels, *models], env=env, capture_output=True, text=True
    )
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
    from tpfx.ir.annotations import choice_of
    from tpfx.ir.layout import Split
    from tpfx.passes.lower import lower
    from tpfx.plan.offline import plan_graphs
    from tpfx.runtime.mesh import Mesh
    from tpfx.verify.findings import Findings
    from tpfx.verify.static_checks import check_graphs

    gpu = torch.device("cuda", 0)
    model, given = tiny(arch, task)
    captured = capture(model.to(torch.bfloat16), given, phase=phase, device=gpu)
    plans = plan_graphs(captured, 2)
    names, split, found = [], 0, []
    for one in plans:
        root = one.graph.owning_module
        assert root is not None
        findings = Findings(one)
        check_graphs(one, lower(one.graph, Mesh((gpu, gpu)), root), findings)
        found += [str(finding) for finding in findings.listed()]
        for node in one.graph.nodes:
            if "attention" in str(node.target):
                choice = choice_of(node)
                names.append(node.target.name().removeprefix("aten::_scaled_dot_product_"))
                split += choice is not None and isinstance(choice.results[0], Split)
    kernels = {name: names.count(name) for name in sorted(set(names))}
    return {"model": arch, "phase": phase, "attention": kernels, "split": split, "found": found}


def main(kernels: str, *models: str) -> None:
    """Plan models with one of the attention kernels allowed, beside the one for all cases."""
    from torch.fx.experimental import proxy_tensor

    torch.cuda.is_available = lambda: False  # nothing is to be read from them
    proxy_tensor.CONSTANT_NUMEL_LIMIT = -1  # or constants would be computed on them
    for name in KERNELS:
        getattr(torch.backends.cuda, f"enable_{name}_sdp")(name == kernels)
    for model in models:
        for phase in ("prefill", "train"):
            print(json.dumps(_plan(*model.split(":"), phase)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
