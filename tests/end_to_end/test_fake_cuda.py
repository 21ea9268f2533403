"""Plans for GPUs, with the kernels that torch chooses there, made without a GPU. Nothing is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support import fake_cuda
from tests.support.architectures import LISTED

pytestmark = [
    pytest.mark.skipif(fake_cuda.headers() is None, reason="needs a build of torch with CUDA"),
    pytest.mark.skipif(torch.__version__ < "2.12", reason="fakes choose no kernel of a GPU there"),
]
FEW = {"flash": ["causal:gpt2"], "mem_efficient": ["seq2seq:t5"], "cudnn": ["causal:llama"]}
MORE = [f"{task}:{arch}" for task, archs in LISTED.items() for arch in archs][::3]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_cuda.build(tmp_path_factory.mktemp("fake_cuda"))


@pytest.mark.parametrize("kernels", fake_cuda.KERNELS)
def test_attention_is_divided(kernels: str, library: Path) -> None:
    """Forward and backward, by heads, also where a bias has a gradient; and the graphs of the ranks hold."""
    for one in fake_cuda.planned(kernels, FEW[kernels], library):
        assert one["found"] == [] and one["split"] == sum(one["attention"].values()) > 0, one
        assert all(kernels.removeprefix("mem_") in name for name in one["attention"]), one


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kernels", fake_cuda.KERNELS)
def test_architectures_are_planned(kernels: str, library: Path) -> None:
    for one in fake_cuda.planned(kernels, MORE, library):
        assert one["found"] == [], one
