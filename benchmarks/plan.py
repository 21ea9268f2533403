"""How long planning takes, stage by stage, and whether it grows in proportion to the depth of the model.

    python -m benchmarks.plan --devices 8 --layers 8 --layers 32

Layers of the shape of Llama 3 8B on fake tensors: no weights, no devices. Planning is everything from the
captured graph to the localized graph modules of all ranks; the capture before it is PyTorch's, and is timed
apart.
"""

from __future__ import annotations

import cProfile
import gc
import json
import pstats
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console

from tpfx.capture.capture import capture
from tpfx.capture.graph import Captured
from tpfx.ir.annotations import set_source
from tpfx.passes.context import Context
from tpfx.passes.invariants import check
from tpfx.passes.lower import lower
from tpfx.passes.pipeline import PASSES
from tpfx.planning.topology import Topology
from tpfx.runtime.mesh import Mesh, parse_devices

from .samples import over_linear, stage_table

SHAPES: dict[str, dict[str, int]] = {
    "8b": {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
    "tiny": {
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 256,
    },
}


def captured(shape: str, layers: int) -> Captured:
    """The graph of one forward that keeps keys and values."""
    config = transformers.LlamaConfig(
        **SHAPES[shape], num_hidden_layers=layers, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    ids = torch.zeros(2, 64, dtype=torch.int64)
    graphs = capture(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": True})
    return max(graphs, key=lambda one: len(one.module.graph.nodes))


def plan(one: Captured, devices: int) -> dict[str, float]:
    """Seconds of CPU of each stage, for all ranks."""
    for node, source in zip(one.module.graph.find_nodes(op="placeholder"), one.sources, strict=True):
        set_source(node, source)
    seconds: dict[str, float] = {}
    context = Context(devices, Topology())
    for one_pass in PASSES:
        with _clock(seconds, one_pass.name):
            one_pass.run(one.module.graph, context)
        with _clock(seconds, "checks"):
            check(one_pass.name, one_pass.holds_after, one.module.graph, devices)
    mesh = Mesh(parse_devices(["cpu"] * devices))
    with _clock(seconds, "localize, codegen"):
        lower(one.module.graph, mesh, one.module)
    return seconds


@contextmanager
def _clock(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.thread_time()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.thread_time() - start


def measure(
    shape: str, depths: list[int], devices: int, console: Console
) -> tuple[dict[int, dict[str, float]], dict[int, float]]:
    """Seconds of each stage, and of the capture, by depth."""
    stages, captures = {}, {}
    for layers in depths:
        with console.status(f"{layers} layers"):
            start = time.thread_time()
            one = captured(shape, layers)
            captures[layers] = time.thread_time() - start
            gc.collect()  # what the capture leaves behind is not charged to some stage of the planning
            stages[layers] = plan(one, devices)
    return stages, captures


def show_profile(shape: str, layers: int, devices: int) -> None:
    """Print where planning spends its time."""
    one = captured(shape, layers)
    profile = cProfile.Profile()
    profile.runcall(plan, one, devices)
    pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def main(
    layers: Annotated[list[int] | None, typer.Option(help="depths; 8, 16, 32 and 64 if left out")] = None,
    devices: Annotated[int, typer.Option(min=1)] = 8,
    shape: Annotated[str, typer.Option(help=f"of a layer: {', '.join(SHAPES)}")] = "8b",
    profile: Annotated[bool, typer.Option(help="profile the greatest depth instead")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
) -> None:
    """Time planning, stage by stage, for models of several depths."""
    if shape not in SHAPES:
        raise typer.BadParameter(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
    depths = sorted(layers or [8, 16, 32, 64])
    if profile:
        show_profile(shape, depths[-1], devices)
        return
    console = Console(highlight=False)
    captured(shape, 1)  # what is loaded and cached once is not the smallest model's doing
    stages, captures = measure(shape, depths, devices, console)
    console.print(stage_table(f"planning for {devices} devices, layers of shape {shape}", stages))
    totals = {depth: sum(times.values()) for depth, times in stages.items()}
    for depth, ratio in over_linear(totals).items():
        took = f"{totals[depth]:.2f} s, {ratio:.2f} of linear; capture {captures[depth]:.1f} s"
        console.print(f"{depth:3} layers: {took}")
    if json_file is not None:
        json_file.write_text(json.dumps(_figures(stages, captures, devices, shape), indent=1) + "\n")


def _figures(
    stages: Mapping[int, Mapping[str, float]], captures: Mapping[int, float], devices: int, shape: str
) -> dict[str, Any]:
    return {"devices": devices, "shape": shape, "stages": stages, "capture": captures}


if __name__ == "__main__":
    typer.run(main)
