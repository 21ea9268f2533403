"""Every code block of the documentation and of the README runs, and prints what the page shows.

`TPFX_UPDATE_GOLDENS=1` rewrites what the pages show. tests/support/pages.py says what is replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tpfx
from tests.support.models import tiny
from tests.support.pages import ROOT, Block, Program, blocks

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
SLOW = {"torchrun.md"}  # of the documentation; of the README commands, which pages have too, and processes
NOT_RUN = {
    "docs/howto/diffusers.md": ["needs diffusers and the weights of Stable Diffusion 3"],
    "docs/howto/generate.md": ["needs a GPU for each process"],
    "docs/howto/quantized.md": ["needs torchao", *["needs bitsandbytes"] * 2, "needs gguf", "needs torchao"],
    "docs/howto/torchrun.md": ["needs two hosts", "needs processes with two GPUs each"],
}


@pytest.fixture
def folder(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the models that pages name."""
    for name in models.iterdir():
        (tmp_path / name.name).symlink_to(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _marked(page: Path) -> Any:
    return pytest.param(page, marks=[pytest.mark.slow] if page.name in SLOW else [], id=page.stem)


@pytest.mark.parametrize("page", [_marked(page) for page in PAGES if blocks(page)])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
def test_a_page_is_a_program(page: Path, folder: Path) -> None:
    program = Program({})
    for block in blocks(page):
        program.run(block)


def _shown_of_large_models() -> list[Any]:
    found = (block for page in [README, *PAGES] for block in blocks(page))
    return [
        pytest.param(one, id=one.where) for one in found if one.output is not None and one.is_of_a_large_model
    ]


@pytest.mark.slow
@pytest.mark.parametrize("block", _shown_of_large_models())
def test_what_is_shown_of_a_large_model_is_so(block: Block, folder: Path) -> None:
    Program({}, small=False).run(block)


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    found = {str(page.relative_to(ROOT)): _not_run(page) for page in [README, *PAGES]}
    assert {page: reasons for page, reasons in found.items() if reasons} == NOT_RUN


def _not_run(page: Path) -> list[str]:
    return [block.not_run for block in blocks(page) if block.not_run]


def _of_readme(block: Block) -> Any:
    starts = block.text.split()[0] in ("tpfx", "torchrun") or "processes=True" in block.text
    slow = [pytest.mark.slow] if starts else []
    return pytest.param(block, marks=slow, id=block.where.partition(":")[2])


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning")
@pytest.mark.parametrize("block", [_of_readme(block) for block in blocks(README)])
def test_a_block_of_the_readme_runs(block: Block, folder: Path) -> None:
    """Each by itself: what it takes for granted is there."""
    Program(_granted(folder)).run(block)


def _granted(folder: Path) -> dict[str, Any]:
    import accelerate
    from transformers import AutoConfig, AutoModelForCausalLM

    if not hasattr(torch.ops.mine, "scale"):
        op = torch.library.custom_op(
            "mine::scale", lambda x, d: x * d, mutates_args=(), schema="(Tensor x, Tensor d) -> Tensor"
        )
        op.register_fake(lambda x, d: torch.empty_like(x))
    (folder / "folder-with-safetensors").symlink_to(folder / "Llama-3.1-8B")
    (folder / "script.py").write_text("import torch, tpfx\nmodel = tpfx.compile(torch.nn.Linear(64, 64))\n")
    (folder / "generate.py").write_text(
        "import torch, tpfx\ntpfx.compile(torch.nn.Linear(64, 64), ['cpu', 'cpu'])(torch.ones(2, 64))\n"
    )
    for name in ("a.json", "b.json", "plan.json"):
        tpfx.plan(torch.nn.Linear(8, 8), 2, (torch.zeros(2, 8),)).save(name)
    return {
        "AutoModelForCausalLM": AutoModelForCausalLM,
        "accelerate": accelerate,
        "config": AutoConfig.from_pretrained("Llama-3.1-8B"),
        "model": tiny("llama"),
        "torch": torch,
        "tpfx": tpfx,
    }
