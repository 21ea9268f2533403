"""Plans for GPUs, with the kernels that torch chooses there, made without a GPU. Nothing is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support import fake_cuda
from tests.support.architectures import LISTED

pytestmark = pytest.mark.skipif(fake_cuda.headers() is None, reason="needs a build of torch with CUDA")

# Flash attention takes no mask, and transformers before 5.20 make one wherever a model is traced.
KERNELS = [pytest.param("flash", marks=pytest.mark.recent_models), "mem_efficient"]  # and cuDNN's, twice
FEW = {"flash": ["causal:gpt2"], "mem_efficient": ["seq2seq:t5"], "cudnn": ["causal:llama"]}
MORE = [f"{task}:{arch}" for task, archs in LISTED.items() for arch in archs][::3]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_cuda.build(tmp_path_factory.mktemp("fake_cuda"))


@pytest.mark.parametrize("kernels", KERNELS)
def test_attention_is_divided(kernels: str, library: Path) -> None:
    """Forward and backward, by heads, also where a bias has a gradient; and the graphs of the ranks hold."""
    require_divided(fake_cuda.planned(kernels, FEW[kernels], library), kernels)


def require_divided(found: list[dict[str, Any]], kernels: str) -> None:
    for one in found:
        divided, whole = one["attention"]
        assert one["found"] == [] and divided == sum(one["kernels"].values()) > 0 == whole, one
        assert all(kernels.removeprefix("mem_") in name for name in one["kernels"]), one
        assert one["bias"][1] == 0 and (one["bias"][0] > 0 or kernels != "mem_efficient"), one


def test_graphs_are_those_of_another_process(library: Path) -> None:
    """So a plan that was saved matches there: of the first call and the steps of `generate`, and training."""
    first, again = (fake_cuda.planned("cudnn", FEW["cudnn"], library) for _ in range(2))
    require_divided(first, "cudnn")
    assert [len(one["prints"]) for one in first] == [2, 1]
    assert first == again


def test_a_t4_has_one_kernel_and_divides_it(library: Path) -> None:
    """Whichever are allowed: it has none of flash attention, and computes in float16."""
    kernels = ",".join(fake_cuda.KERNELS)
    for one in fake_cuda.planned(kernels, ["causal:qwen2"], library, capability=75):
        divided, whole = one["attention"]
        assert one["found"] == [] and divided == sum(one["kernels"].values()) > 0 == whole, one
        assert all(name.startswith("efficient") for name in one["kernels"]), one


@pytest.mark.slow
def test_dropout_is_planned(library: Path) -> None:
    for kernels, models in FEW.items():
        for one in fake_cuda.planned(kernels, models, library, "dropout"):
            assert one["found"] == [] and sum(one["dropout"]) > 0, one


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kernels", fake_cuda.KERNELS)
def test_architectures_are_planned(kernels: str, library: Path) -> None:
    for one in fake_cuda.planned(kernels, MORE, library):
        assert one["found"] == [], one
