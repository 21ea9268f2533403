"""Models split over processes, one rank each, as torchrun starts them.

ranks = Ranks("tpfx", 2, shape, batch=1, length=64)      # or "tp_plan"

The processes run this file as a program.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from .models import build, config, prompt
from .remote import Remote, given, serve


class Ranks(Remote):
    """`processes` processes that run one model, one thread each.

    Args:
        system: "tpfx", or "tp_plan", which is transformers' `tp_plan="auto"`.
        options: keyword arguments of `tpfx.compile`.
    """

    def __init__(
        self, system: str, processes: int, shape: dict[str, Any], batch: int, length: int, **options: Any
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        common |= {"TORCHELASTIC_RUN_ID": "ranks", "OMP_NUM_THREADS": "1"}
        told = {"system": system, "shape": shape, "batch": batch, "length": length, "options": options}
        own = [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
        super().__init__([sys.executable, "-W", "ignore", "-m", "benchmarks.ranks"], told, own)


def _by_tpfx(shape: dict[str, Any], options: dict[str, Any]) -> Any:
    import tpfx

    return tpfx.compile(build(config(**shape)), **options)


def _by_tp_plan(shape: dict[str, Any], options: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    with (
        tempfile.TemporaryDirectory() as folder
    ):  # of each process, which in a group the first alone would write
        build(config(**shape)).save_pretrained(Path(folder))
        torch.distributed.init_process_group("gloo")
        model = AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.float32)
    return model.eval()


_SYSTEMS = {"tpfx": _by_tpfx, "tp_plan": _by_tp_plan}


def main() -> None:
    """Split the model that the first line tells of, and answer questions about it."""
    told = given()
    torch.set_num_threads(1)
    model = _SYSTEMS[told["system"]](told["shape"], told["options"])
    serve(model, prompt(told["length"], told["batch"]))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    main()
