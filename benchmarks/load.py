"""How much memory `tpfx.load` takes: a random Llama checkpoint, read in one process and by several.

    python -m benchmarks.load --gigabytes 2 --devices 2

Each process says the most that it has held (peak resident memory) and how much its own shards are. What a
process holds without any model is measured as well: Python, torch and transformers.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
LAYER = 12 * 2048**2 * 4  # bytes of a layer, about


def config(gigabytes: float) -> Any:
    """Of a Llama of about so many bytes in float32."""
    import transformers

    return transformers.LlamaConfig(
        hidden_size=2048,
        intermediate_size=5504,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_hidden_layers=max(1, round((gigabytes * 2**30 - 2 * 16000 * 2048 * 4) / LAYER)),
        vocab_size=16000,
        max_position_embeddings=2048,
    )


def write(folder: Path, gigabytes: float) -> int:
    """A checkpoint of random weights in several files; its bytes."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(gigabytes))
    model.save_pretrained(folder, max_shard_size="500MB")
    return sum(weight.nbytes for weight in model.parameters())


def read(folder: Path, gigabytes: float, devices: int | None) -> dict[str, Any]:
    """Load it, in this process or as one of several; what that took, and whether some values are right."""
    import accelerate
    import torch
    import transformers
    from safetensors import safe_open

    import tpfx

    torch.set_num_threads(1)
    before = peak()
    with accelerate.init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(config(gigabytes))
    start = time.perf_counter()
    tpfx.load(model, folder, None if devices is None else ["cpu"] * devices)
    seconds, most = time.perf_counter() - start, peak()
    held = tpfx.report(model).bytes_per_device
    rank = int(os.environ.get("RANK", "0"))
    name = "model.layers.0.mlp.down_proj.weight"
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(folder / index[name], framework="pt") as opened:
        same = torch.equal(model.get_parameter(name).full(), opened.get_tensor(name))
    own = sum(held) if devices is not None else held[rank]
    return {"before": before, "peak": most, "own": own, "seconds": seconds, "same": same}


def peak() -> int:
    """The most bytes that this process has held (getrusage would count what its parent held before)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def start(folder: Path, gigabytes: float, processes: int, devices: int | None) -> list[dict[str, Any]]:
    """Read it in so many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common |= {"TORCHELASTIC_RUN_ID": "load"} if devices is None else {}
    running = []
    for rank in range(processes):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.load", "--read", str(folder)]
        command += ["--gigabytes", str(gigabytes), *(["--devices", str(devices)] if devices else [])]
        command += [] if devices else ["--devices", "0"]
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
    read_folder: Annotated[Path | None, typer.Option("--read", hidden=True)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all figures to this file")] = None,
) -> None:
    """Measure the memory of reading a checkpoint."""
    if read_folder is not None:
        print(json.dumps(read(read_folder, gigabytes, devices or None)))
        return
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        with console.status("writing a checkpoint"):
            size = write(Path(name), gigabytes)
        with console.status(f"reading it in {devices} processes"):
            several = start(Path(name), gigabytes, devices, None)
        with console.status("reading it in one process"):
            one = start(Path(name), gigabytes, 1, devices)
    table = Table(title=f"reading {size / 2**20:,.0f} MiB, split over {devices}")
    for heading in ("process", "own shards", "peak", "above the shards", "of it before", "seconds", "values"):
        table.add_column(heading, justify="right")
    rows = {"one for all": one[0]} | {f"rank {rank}": found for rank, found in enumerate(several)}
    for what, found in rows.items():
        numbers = (found["own"], found["peak"], found["peak"] - found["own"], found["before"])
        cells = [f"{number / 2**20:,.0f} MiB" for number in numbers]
        table.add_row(what, *cells, f"{found['seconds']:.1f}", "the same" if found["same"] else "OTHERS")
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
