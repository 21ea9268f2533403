"""What a call costs beside its work: a graph of 200 tiny ops, run whole by each of one, two and four ranks.

    python -m benchmarks.tiny_ops

Ranks that hold nobody up take as long as one alone: a scale of 2 of two ranks, while there are as many cores.
"""

from __future__ import annotations

import time
import warnings
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

import tpfx

from .options import JsonFile, Repeats, console_beside, write_figures
from .samples import Spread
from .turns import machine

CALLS = 40  # in a sample


class TinyOps(torch.nn.Module):
    """Products too small to divide, and sums in a row between them."""

    def __init__(self, ops: int) -> None:
        super().__init__()
        self.ops = ops
        self.up, self.down = torch.nn.Linear(16, 64, bias=False), torch.nn.Linear(64, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, 16]` to the same."""
        hidden = self.up(x)
        for at in range(self.ops - 2):
            hidden = hidden + (at + 0.5)
        return self.down(hidden)


def compiled(ranks: int, ops: int) -> torch.nn.Module:
    """The model on so many ranks of one thread each."""
    torch.set_num_threads(ranks)
    with warnings.catch_warnings(action="ignore"):  # that nothing is divided
        model = tpfx.compile(TinyOps(ops).eval(), ["cpu"] * ranks)
        model(torch.randn(2, 16))
    torch.set_num_threads(1)
    return model


def seconds_of(model: torch.nn.Module) -> float:
    """Of one call."""
    x = torch.randn(2, 16)
    start = time.perf_counter()
    for _ in range(CALLS):
        model(x)
    return (time.perf_counter() - start) / CALLS


def main(
    ranks: Annotated[list[int] | None, typer.Option(help="may be repeated; 1, 2 and 4 if left out")] = None,
    ops: int = 200,
    repeats: Repeats = 15,
    json_file: JsonFile = None,
) -> None:
    """Time calls on some numbers of ranks, in turns."""
    counts = ranks or [1, 2, 4]
    with torch.no_grad():
        models = {count: compiled(count, ops) for count in counts}
        samples: dict[int, list[float]] = {count: [] for count in counts}
        for _ in range(repeats + 1):
            for count, model in models.items():
                samples[count].append(seconds_of(model))
    table = Table(title=f"one call of {ops} tiny ops", title_justify="left")
    for heading in ("ranks", "µs", "scale"):
        table.add_column(heading, justify="right")
    figures: dict[str, Any] = {"machine": machine(), "ops": ops, "seconds": samples}
    for count, seconds in samples.items():
        del seconds[0]  # to warm up
        scale = Spread.of([count * one / own for one, own in zip(samples[counts[0]], seconds, strict=True)])
        table.add_row(str(count), str(Spread.of([round(1e6 * one) for one in seconds])), str(scale))
    console_beside(json_file).print(table)
    write_figures(figures, json_file)


if __name__ == "__main__":
    typer.run(main)
