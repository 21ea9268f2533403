"""Every listed architecture, tiny and random, split over devices and compared with itself unsharded.

    python -m benchmarks.zoo                         # all that are listed, on 2 and on 3 devices
    python -m benchmarks.zoo llama mamba --devices 4
    python -m benchmarks.zoo --train --devices 2     # gradients instead of outputs and tokens
    python -m benchmarks.zoo --backend               # by torch.compile(model, backend="tpfx")
    python -m benchmarks.zoo --device-compiler inductor
    python -m benchmarks.zoo --json zoo.json

One line each: the largest error relative to the output's scale, how much of the weight matrices is split, the
collectives, ops that ran whole for want of a rule, graphs, and seconds. Exits with 1 where anything differs,
fails or hangs.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

# Read when transformers is imported: nothing is downloaded.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch
import typer
from rich.console import Console
from rich.table import Table

import tpfx
from benchmarks.sweeps import alarm, sweep_in_view
from tests.support.architectures import LISTED, tiny
from tests.support.compare import TOLERANCE, gradient_error, largest_error, tensors

SPLIT = 0.95  # the share of the bytes of weight matrices that should be split
NEW_TOKENS = 12
PATIENCE = 600  # seconds for one model on one number of devices


@dataclass(frozen=True)
class Way:
    """What is compared, and how a model is split for it.

    Attributes:
        train: gradients instead of outputs and tokens.
        backend: by `torch.compile(model, backend="tpfx")` instead of `tpfx.compile`.
        device_compiler: what runs each device's graph.
    """

    train: bool = False
    backend: bool = False
    device_compiler: str = "native"

    def split(self, model: torch.nn.Module, devices: int) -> torch.nn.Module:
        """The model, split, or to be split by its first call."""
        options = {"devices": ["cpu"] * devices, "timeout": 60, "device_compiler": self.device_compiler}
        if not self.backend:
            return tpfx.compile(model, **options)
        model.compile(backend="tpfx", options=options)  # in place, so that `generate` calls what is compiled
        return model


@dataclass
class Outcome:
    """What became of one architecture on one number of devices."""

    task: str
    arch: str
    devices: int
    way: Way = Way()
    problem: str = ""
    remark: str = ""
    error: float = float("nan")
    tokens: bool | None = None
    split: float = 0.0
    whole_weights: dict[str, int] = field(default_factory=dict)
    unused_bytes: int = 0
    collectives: dict[str, int] = field(default_factory=dict)
    whole_ops: dict[str, int] = field(default_factory=dict)
    optimal: bool = True
    graphs: int = 0
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        """Whether every number is the unsharded model's."""
        return not self.problem and self.error < TOLERANCE and self.tokens is not False


def check(task: str, arch: str, devices: int, way: Way = Way(), **sizes: int) -> Outcome:
    """Build an architecture twice, split one, compare; what goes wrong is in the outcome."""
    outcome = Outcome(task, arch, devices, way)
    start = time.perf_counter()
    try:
        with alarm(PATIENCE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (_compare_training if way.train else _compare)(outcome, **sizes)
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [""]
        notes = "; ".join(note.splitlines()[0] for note in getattr(problem, "__notes__", ()))
        outcome.problem = f"{type(problem).__name__}: {lines[0]}" + (f" ({notes})" if notes else "")
    outcome.seconds = time.perf_counter() - start
    torch._dynamo.reset()
    gc.collect()
    return outcome


def _compare(outcome: Outcome, **sizes: int) -> None:
    plain, inputs = tiny(outcome.arch, outcome.task, **sizes)
    model = outcome.way.split(tiny(outcome.arch, outcome.task, **sizes)[0], outcome.devices)
    with torch.no_grad():
        outcome.error = largest_error(plain(**inputs), model(**inputs))
    report = tpfx.report(model)
    outcome.collectives = dict(Counter(collective.kind for collective in report.collectives))
    outcome.optimal = report.optimal
    _measure_weights(outcome, model)
    if outcome.task in ("causal", "seq2seq"):
        outcome.tokens = _same_tokens(plain, model, inputs["input_ids"])
    report = tpfx.report(model)
    outcome.graphs, outcome.whole_ops = report.graphs, report.whole_ops


def _compare_training(outcome: Outcome, **sizes: int) -> None:
    """Gradients of the mean square of all outputs, from the same random numbers.

    Some models amplify rounding errors, BatchNorm over few numbers most of all. Where the gap is too large,
    all is done again in float64: there rounding errors are too small to matter, and wrong numbers are not.
    """
    _compare_gradients(outcome, torch.float32, **sizes)
    if outcome.error >= TOLERANCE:
        rounded = outcome.error
        _compare_gradients(outcome, torch.float64, **sizes)
        outcome.remark = f"error {outcome.error:.0e} in float64 ({rounded:.0e} in float32)"


def _compare_gradients(outcome: Outcome, dtype: torch.dtype, **sizes: int) -> None:
    plain, inputs = _tiny_of(dtype, outcome, **sizes)
    try:
        expected = _gradients(plain, inputs)
    except Exception as problem:
        outcome.error, outcome.split = 0.0, 1.0
        outcome.remark = f"does not train unsharded: {type(problem).__name__}"
        return
    model = outcome.way.split(_tiny_of(dtype, outcome, **sizes)[0], outcome.devices)
    outcome.error = gradient_error(expected, _gradients(model, inputs))
    report = tpfx.report(model)
    outcome.collectives = dict(Counter(collective.kind for collective in report.collectives))
    outcome.optimal, outcome.graphs, outcome.whole_ops = report.optimal, report.graphs, report.whole_ops
    _measure_weights(outcome, model)


def _tiny_of(dtype: torch.dtype, outcome: Outcome, **sizes: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    model, inputs = tiny(outcome.arch, outcome.task, **sizes)
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    return model.to(dtype), cast


def _gradients(model: torch.nn.Module, inputs: Mapping[str, Any]) -> dict[str, torch.Tensor | None]:
    torch.manual_seed(1)
    values = [value for value in tensors(model.train()(**inputs), torch.Tensor) if value.requires_grad]
    torch.stack([value.square().mean() for value in values]).sum().backward()
    return {
        name: weight.grad.full() if isinstance(weight.grad, tpfx.ShardedTensor) else weight.grad
        for name, weight in model.named_parameters()
    }


def _measure_weights(outcome: Outcome, model: torch.nn.Module) -> None:
    total = split = 0
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or not isinstance(weight, tpfx.ShardedTensor):
            continue
        size = weight.numel() * weight.element_size()
        if weight.placement is None:
            outcome.unused_bytes += size
            continue
        total += size
        if weight.placement:
            split += size
        else:
            outcome.whole_weights[name] = size
    outcome.split = split / total if total else 1.0


def _same_tokens(plain: Any, model: Any, ids: torch.Tensor) -> bool | None:
    """Whether both write the same text; None where the architecture writes none."""
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    try:
        expected = plain.generate(ids, **options)
    except Exception as problem:
        logging.getLogger(__name__).info("%s does not generate: %s", type(plain).__name__, problem)
        return None
    return torch.equal(model.generate(ids, **options), expected)


def check_job(job: tuple[str, str, int, Way]) -> Outcome:
    """`check` of a job of the sweep."""
    return check(*job)


def line(outcome: Outcome) -> str:
    """An outcome in one line."""
    mark = "[green]right[/]" if outcome.right else "[red]WRONG[/]"
    what = f"{outcome.task:8} {outcome.arch:22} ×{outcome.devices}"
    if outcome.problem:
        return f"{mark}  {what}  {outcome.problem[:300]}"
    if outcome.remark:
        return f"{mark}  {what}  {outcome.remark}"
    words = {True: "same tokens", False: "OTHER TOKENS", None: "no tokens"}[outcome.tokens]
    words = "gradients" if outcome.way.train else words
    parts = [
        f"error {outcome.error:.0e}",
        words,
        f"{outcome.split:4.0%} split",
        _counts(outcome.collectives) or "no collectives",
        f"{outcome.graphs} graphs",
        f"{outcome.seconds:.0f} s",
    ]
    if outcome.whole_ops:
        parts.append(f"whole: {_counts(outcome.whole_ops)}")
    return f"{mark}  {what}  {', '.join(parts)}"


def _counts(counts: dict[str, int]) -> str:
    return " + ".join(f"{count} {kind}" for kind, count in counts.items())


def summary(outcomes: Sequence[Outcome]) -> Table:
    """How many are right, well split, and without whole ops, for each number of devices."""
    table = Table(title="architectures", title_justify="left")
    for heading in ("devices", "models", "right", f"≥ {SPLIT:.0%} split", "no op whole", "proven cheapest"):
        table.add_column(heading, justify="right")
    for devices in sorted({outcome.devices for outcome in outcomes}):
        mine = [outcome for outcome in outcomes if outcome.devices == devices]
        done = [outcome for outcome in mine if not outcome.problem]
        counts = [
            len(mine),
            sum(outcome.right for outcome in mine),
            sum(outcome.split >= SPLIT for outcome in done),
            sum(not outcome.whole_ops for outcome in done),
            sum(outcome.optimal for outcome in done),
        ]
        table.add_row(str(devices), *map(str, counts))
    return table


def remarks(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What there is to say of those that are not as they should be."""
    for outcome in outcomes:
        who = f"{outcome.task} {outcome.arch} ×{outcome.devices}"
        if not outcome.right:
            yield line(outcome)
        if not outcome.problem and outcome.split < SPLIT:
            largest = sorted(outcome.whole_weights.items(), key=lambda item: -item[1])[:4]
            names = ", ".join(f"{name} ({size:,} B)" for name, size in largest)
            yield f"{who}: {outcome.split:.0%} split; whole are {names}"
        if outcome.whole_ops:
            yield f"{who}: whole for want of a rule: {_counts(outcome.whole_ops)}"


def main(
    archs: Annotated[list[str] | None, typer.Argument(help="names; all that are listed if left out")] = None,
    devices: Annotated[list[int] | None, typer.Option(help="may be repeated; 2 and 3 if left out")] = None,
    task: Annotated[str | None, typer.Option(help=f"one of {', '.join(LISTED)}")] = None,
    train: Annotated[bool, typer.Option(help="compare gradients instead")] = False,
    backend: Annotated[bool, typer.Option(help='split by torch.compile(model, backend="tpfx")')] = False,
    device_compiler: Annotated[str, typer.Option(help="native, inductor or eager")] = "native",
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all outcomes to this file")] = None,
) -> None:
    """Split every listed architecture and compare it with itself unsharded."""
    names = [
        (kind, arch)
        for kind, listed in LISTED.items()
        for arch in listed
        if (task in (None, kind)) and (not archs or arch in archs)
    ]
    if not names:
        raise typer.BadParameter(f"none of {archs} is listed")
    way = Way(train, backend, device_compiler)
    jobs = [(kind, arch, count, way) for kind, arch in names for count in devices or (2, 3)]
    console = Console(highlight=False, soft_wrap=True)
    outcomes = sweep_in_view(check_job, jobs, workers, line, console)
    console.print(summary(outcomes))
    for remark in remarks(outcomes):
        console.print(f"- {remark}")
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    sys.exit(not all(outcome.right for outcome in outcomes))


if __name__ == "__main__":
    typer.run(main)
