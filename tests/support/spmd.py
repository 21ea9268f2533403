"""A program that computes the same under python, with devices named, and under torchrun.

python -m tests.support.spmd OUT gpt2 --devices 2
torchrun --nproc-per-node 2 -m tests.support.spmd OUT gpt2
torchrun --nproc-per-node 4 -m tests.support.spmd OUT gpt2 --replicas 2     # 2 × 2: losses and weights only
torchrun --nproc-per-node 2 -m tests.support.spmd OUT gpt2 --shares 2 1     # one owns two ranks
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import tpfx
from tests.support.architectures import tiny as tiny_of
from tests.support.models import inputs, tiny
from tests.support.smollm2 import smollm2


def build(name: str, layers: int = 2) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny model, or SmolLM2, and inputs of a batch of 4."""
    if name == "t5":
        model, given = tiny_of("t5", "seq2seq")
        model.generation_config.decoder_start_token_id = 0
        return model, {key: value for key, value in given.items() if isinstance(value, torch.Tensor)}
    model = smollm2() if name == "smollm2" else tiny(name, num_hidden_layers=layers)
    return model, {key: torch.cat([value, value.flip(0)]) for key, value in inputs(model).items()}


def optimizer_for(model: Any) -> torch.optim.Optimizer:
    """AdamW; plain descent for a model that has learnt, whose gradients may be noise that AdamW enlarges."""
    weights = list(model.parameters())
    large = sum(weight.numel() for weight in weights) > 1e8
    return torch.optim.SGD(weights, lr=1e-2) if large else torch.optim.AdamW(weights, lr=1e-3)


def losses(model: Any, given: dict[str, torch.Tensor], steps: int = 10) -> list[float]:
    """Of training with clipping, dropout drawn anew in each step."""
    optimizer, found = optimizer_for(model.train()), []
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss = model(**given, labels=given["input_ids"]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(float(loss.detach()))
    return found


def results(model: Any, given: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Logits, tokens of three kinds, losses and weights after training."""
    found: dict[str, Any] = {}
    with torch.no_grad():
        found["logits"] = model(**given).logits
        for kind, options in {
            "greedy": {},
            "beams": {"num_beams": 3},
            "sampled": {"do_sample": True},
        }.items():
            torch.manual_seed(7)
            found[kind] = model.generate(given["input_ids"], max_new_tokens=6, min_new_tokens=6, **options)
    found["losses"] = losses(model, given)
    found["weights"] = tpfx.full_state_dict(model)
    return found


def compiled(
    name: str, devices: list[str] | None = None, group: Any = None, layers: int = 2
) -> dict[str, Any]:
    """The results of a model that `compile` has split, and the bytes that each device holds."""
    model, batch = build(name, layers)
    torch.manual_seed(int(os.environ.get("RANK", "0")))  # what the processes do about it is to be seen
    model = tpfx.compile(model, devices, group=group)
    found = results(model, batch)
    return {**found, "held": tpfx.report(model).bytes_per_device}


def replicated(name: str, replicas: int, layers: int) -> dict[str, Any]:
    """Losses, averaged over the replicas, each of which trains on its shard of the batch; and the weights."""
    model, batch = build(name, layers)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (replicas, dist.get_world_size() // replicas), mesh_dim_names=("dp", "tp"))
    own = {key: value.chunk(replicas)[mesh.get_local_rank("dp")] for key, value in batch.items()}
    tpfx.compile(model, mesh)
    found = torch.tensor(losses(model, own), dtype=torch.float64)
    dist.all_reduce(found, group=mesh.get_group("dp"))
    held = tpfx.report(model).bytes_per_device
    return {"losses": (found / replicas).tolist(), "weights": tpfx.full_state_dict(model), "held": held}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("name")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--replicas", type=int)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--shares", type=int, nargs="*", help="ranks of each process")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.replicas:
        torch.save(replicated(given.name, given.replicas, given.layers), f"{given.out}.{os.environ['RANK']}")
        return
    devices = None if given.devices is None else ["cpu"] * given.devices
    if given.shares:
        dist.init_process_group("gloo")
        devices = ["cpu"] * given.shares[dist.get_rank()]
    group = dist.group.WORLD if given.shares else None
    found = compiled(given.name, devices, group, given.layers)
    torch.save(found, f"{given.out}.{os.environ.get('RANK', '0')}")


if __name__ == "__main__":
    main()
