"""What one process of `benchmarks.load` does: read a checkpoint, and say what that took.

    python -m benchmarks.reading FOLDER GIGABYTES DEVICES KIND         # 0 devices: one of several processes

It imports little, since what it holds is measured.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from .llama import Llama, Sizes

LAYER = 12 * 2048**2 * 4  # bytes of a layer, about


def sizes(gigabytes: float) -> Sizes:
    """Of a Llama of about so many bytes in float32."""
    hidden, vocabulary = 2048, 16000
    layers = max(1, round((gigabytes * 2**30 - 2 * vocabulary * hidden * 4) / LAYER))
    return Sizes(vocabulary, hidden, inner=5504, heads=16, layers=layers)


def config(sizes: Sizes) -> Any:
    """The same for transformers."""
    import transformers

    return transformers.LlamaConfig(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.inner,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads,
        num_hidden_layers=sizes.layers,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=2048,
    )


def empty(model: str, gigabytes: float) -> tuple[Any, int]:
    """A model without weights, and the most bytes that this process held before it was made."""
    import torch

    if model == "plain":
        before = peak()
        with torch.device("meta"):
            return Llama(sizes(gigabytes)), before
    import accelerate
    import transformers

    before = peak()
    with accelerate.init_empty_weights():
        return transformers.AutoModelForCausalLM.from_config(config(sizes(gigabytes))), before


def read(folder: Path, gigabytes: float, devices: int | None, kind: str) -> dict[str, Any]:
    """Load it, in this process or as one of several; what that took, and whether all values are right."""
    import torch
    from safetensors import safe_open

    import tpfx

    torch.set_num_threads(1)
    model, before = empty(kind, gigabytes)
    ids = torch.ones(1, 8, dtype=torch.int64)
    start = time.perf_counter()
    tpfx.load(model, folder, None if devices is None else ["cpu"] * devices, example_inputs=(ids,))
    seconds, most = time.perf_counter() - start, peak()
    held = tpfx.report(model).bytes_per_device
    rank = int(os.environ.get("RANK", "0"))
    same = True
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in sorted(opened.keys()):
                same &= torch.equal(model.get_parameter(name).full(), opened.get_tensor(name))
    own = sum(held) if devices is not None else held[rank]
    return {"before": before, "peak": most, "own": own, "seconds": seconds, "same": same}


def peak() -> int:
    """The most bytes that this process has held (getrusage would count what its parent held before)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


if __name__ == "__main__":
    where, how_much, how_many, which = sys.argv[1:]
    print(json.dumps(read(Path(where), float(how_much), int(how_many) or None, which)))
