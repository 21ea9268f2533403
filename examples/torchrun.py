"""Trains with one process per device, saves, and goes on from there, also on another number of devices.

    torchrun --nproc-per-node 2 torchrun.py --steps 5      # trains five steps, and saves
    torchrun --nproc-per-node 3 torchrun.py --steps 10     # finds that, and goes on from the sixth
    python torchrun.py --steps 10 --folder elsewhere       # unsharded, in one process: the same losses

The checkpoint is torch.distributed.checkpoint's: each process writes what it holds, and reads what it needs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

import tpfx


def build() -> nn.Module:
    """A small network; the same weights in every process."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 32))


def loss_of(model: nn.Module, step: int, device: torch.device) -> torch.Tensor:
    """How far the model is from turning a step's inputs around; they are the same in every process."""
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(step)).to(device)
    y: torch.Tensor = model(x)
    return (y - x.flip(-1)).square().mean()


def main() -> None:
    """Train from the checkpoint, where there is one, and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5, help="how many in all, those that were saved too")
    parser.add_argument("--folder", type=Path, default=Path("checkpoint"))
    options = parser.parse_args()

    model, launched = build(), "RANK" in os.environ
    if launched:  # torchrun has started this process: it has a GPU, or else a CPU device
        model = tpfx.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = not launched or dist.get_rank() == 0
    device = next(model.parameters()).device

    saved = max((int(path.name) for path in options.folder.glob("*")), default=0)
    if saved:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=options.folder / f"{saved}")
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
        if first:
            print(f"goes on after {saved} steps")
    for step in range(saved, options.steps):
        loss = loss_of(model, step, device)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if first:
            print(f"step {step + 1}: loss {loss.item():.5f}")
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    dcp.save(state, checkpoint_id=options.folder / f"{options.steps}")
    if launched:
        if first:
            print(tpfx.report(model))
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
