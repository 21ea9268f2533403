"""A program that loads models by exported plans, under torchrun.

torchrun --nproc-per-node 2 -m tests.support.exported DIRECTORY     # of models, each with both of its plans
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from tests.support.models import inputs


def in_transformers(path: Path) -> Any:
    """The model, loaded by `from_pretrained` with the plan."""
    plan = json.loads((path / "hf-tp-plan.json").read_text())["plan"]
    config = DistributedConfig(tp_size=int(os.environ["WORLD_SIZE"]), tp_plan=plan)
    return AutoModelForCausalLM.from_pretrained(path, distributed_config=config)


def in_torch(path: Path) -> Any:
    """The model, loaded whole and given to `parallelize` of the source file."""
    model = AutoModelForCausalLM.from_pretrained(path)
    source = runpy.run_path(str(path / "parallelize-module.py"))
    return source["parallelize"](model, init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),)))


def results(model: Any) -> dict[str, Any]:
    """Logits, the gradients of some weights, and how much of the weights this process has."""
    given = inputs(model.eval())
    with torch.no_grad():
        found = {"logits": model(**given, use_cache=False).logits}
    model(**given, labels=given["input_ids"], use_cache=False).loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    found["gradients"] = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in gradients.items()
    }
    found["held"] = sum(
        (weight.to_local() if isinstance(weight, DTensor) else weight).numel()
        for weight in model.parameters()
    )
    return found


def main() -> None:
    torch.set_num_threads(1)
    directory = Path(sys.argv[1])
    torch.distributed.init_process_group("gloo")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in sorted(path for path in directory.iterdir() if path.is_dir()):
            found = {
                "hf-tp-plan": results(in_transformers(path)),
                "parallelize-module": results(in_torch(path)),
            }
            torch.save(found, f"{path}.{os.environ['RANK']}")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
