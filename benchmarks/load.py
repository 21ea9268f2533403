"""How much memory `tpfx.load` takes: a random Llama checkpoint, read in one process and by several.

    python -m benchmarks.load --gigabytes 2 --devices 2

It is read into a Llama in plain PyTorch, and into transformers'. Each process says the most that it has held
(peak resident memory) and how much its own shards are; and what it held before there was a model: Python,
torch and tpfx, and transformers if the model is of that.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .reading import config, sizes

ROOT = Path(__file__).parent.parent
MODELS = {"plain": "a Llama in plain PyTorch", "transformers": "transformers' Llama"}


def write(folder: Path, gigabytes: float) -> int:
    """A checkpoint of random weights in several files; its bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(sizes(gigabytes)))
    model.save_pretrained(folder, max_shard_size="500MB")
    return sum(weight.nbytes for weight in model.parameters())


def start(
    folder: Path, gigabytes: float, processes: int, devices: int | None, kind: str
) -> list[dict[str, Any]]:
    """Read it in so many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common |= {"TORCHELASTIC_RUN_ID": "load"} if devices is None else {}
    running = []
    for rank in range(processes):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.reading", str(folder), str(gigabytes)]
        command += [str(devices or 0), kind]
        own = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=subprocess.PIPE, text=True))
    found = []
    for process in running:
        text = process.communicate()[0]
        if process.returncode:
            raise RuntimeError(f"a process ended with {process.returncode}")
        found.append(json.loads(text.splitlines()[-1]))
    return found


def main(
    gigabytes: Annotated[float, typer.Option(help="of the checkpoint, in float32")] = 2.0,
    devices: Annotated[int, typer.Option(min=0, help="ranks")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
) -> None:
    """Measure the memory of reading a checkpoint."""
    console = Console()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with console.status("writing a checkpoint"):
            size = write(folder, gigabytes)
        for kind, what in MODELS.items():
            with console.status(f"reading it into {what}"):
                (one,) = start(folder, gigabytes, 1, devices, kind)
                several = start(folder, gigabytes, devices, None, kind)
            rows[what] = {"one for all": one} | {f"rank {rank}": found for rank, found in enumerate(several)}
    table = Table(title=f"reading {size / 2**20:,.0f} MiB, split over {devices}")
    for heading in ("into", "process", "own shards", "peak", "above the shards", "of it before", "seconds"):
        table.add_column(heading, justify="left" if heading == "into" else "right")
    table.add_column("values")
    for what, processes in rows.items():
        for process, found in processes.items():
            numbers = (found["own"], found["peak"], found["peak"] - found["own"], found["before"])
            cells = [f"{number / 2**20:,.0f} MiB" for number in numbers]
            values = "the same" if found["same"] else "OTHERS"
            table.add_row(what, process, *cells, f"{found['seconds']:.1f}", values)
        table.add_section()
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
