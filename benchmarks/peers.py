"""What transformers' own testers ask of a model, asked of tiny models undivided and split.

    python -m benchmarks.peers                                # every behaviour of all, on 2 devices
    python -m benchmarks.peers llama t5 --devices 3
    python -m benchmarks.peers llama --only "cache"           # behaviours whose name has this in it
    python -m benchmarks.peers --table benchmarks/results/peers.md --json peers.json

One line each: right, refused, crash, WRONG, GROWS (the same once more makes new graphs, again and again), or
none: the undivided model raises too. Exits with 1 where anything crashes, differs, grows or hangs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

# Read when transformers is imported: nothing is downloaded.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import torch
import typer
from rich.console import Console

import tpfx
from benchmarks import peers_caches, peers_calls, peers_generate, peers_weights
from benchmarks.peers_models import ARCHITECTURES, BEHAVIOURS, Trial
from benchmarks.peers_page import Job, Outcome, differences, markdown
from benchmarks.sweeps import alarm, sweep_in_view

REPEATED = 3  # times, at most, until nothing new is captured
PATIENCE = 300  # seconds for one behaviour, undivided and split
FAMILIES = (peers_calls, peers_weights, peers_generate, peers_caches)  # which register what they have
_TRIALS: dict[tuple[str, int], Trial] = {}  # the newest architecture's, whose models behaviours share


def check(job: Job) -> Outcome:
    """One behaviour of one architecture, undivided and split; what goes wrong is in the outcome."""
    outcome, start = Outcome(job), time.perf_counter()
    plain, split = _trials(job)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = _seen(outcome, job, plain)
        if outcome.verdict == "right":
            _compare(outcome, expected, split)
    if outcome.verdict not in ("right", "none"):
        _TRIALS.clear()
        torch._dynamo.reset()
    outcome.seconds = time.perf_counter() - start
    gc.collect()
    return outcome


def _trials(job: Job) -> tuple[Trial, Trial]:
    keys = (job.arch, 0), (job.arch, job.devices)
    if not all(key in _TRIALS for key in keys):
        _TRIALS.clear()
        torch._dynamo.reset()
        _TRIALS.update({key: Trial(*key) for key in keys})
    return _TRIALS[keys[0]], _TRIALS[keys[1]]


def _seen(outcome: Outcome, job: Job, trial: Trial) -> Any:
    behaviour, _ = BEHAVIOURS[job.behaviour]
    torch.manual_seed(1)
    try:
        with alarm(PATIENCE), torch.set_grad_enabled(False):
            return behaviour(trial)
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [""]
        refused = isinstance(problem, tpfx.TpfxError)
        outcome.verdict = "none" if not trial.devices else "refused" if refused else "crash"
        outcome.problem = f"{type(problem).__name__}: {lines[0][:300]}"
    return None


def _compare(outcome: Outcome, expected: Any, split: Trial) -> None:
    job, before = outcome.job, _graphs(split.made.values())
    found = _seen(outcome, job, split)
    if outcome.verdict != "right":
        return
    outcome.problem = differences(expected, found)
    if outcome.problem:
        outcome.verdict = "WRONG"
        return
    after, alone = _graphs(split.made.values()), _graphs(split.fresh_ones)
    split.fresh_ones.clear()
    outcome.graphs = after[0] - before[0] + alone[0]
    outcome.whole = after[1] - before[1] + alone[1]
    if after != before and outcome.verdict == "right":
        _go_on(outcome, expected, split)


def _go_on(outcome: Outcome, expected: Any, split: Trial) -> None:
    """The same once more makes no new graphs; once, sizes may become open."""
    made = [_graphs(split.made.values())[0]]
    for _ in range(REPEATED):
        again = differences(expected, _seen(outcome, outcome.job, split))
        if outcome.verdict == "right" and again:
            outcome.verdict, outcome.problem = "WRONG", f"when repeated, {again}"
        made.append(_graphs(split.made.values())[0])
        if outcome.verdict != "right" or made[-1] == made[-2]:
            return
    outcome.verdict = "GROWS"
    outcome.problem = f"{outcome.graphs} graphs, then, repeated, {made[-1] - made[0]} more"


def _graphs(models: Iterable[Any]) -> tuple[int, int]:
    """Of models that are split: graphs, and calls that ran whole."""
    reports = [tpfx.report(model) for model in models]
    return sum(one.graphs for one in reports), sum(one.whole_calls for one in reports)


def line(outcome: Outcome) -> str:
    """An outcome in one line."""
    colour = {"right": "green", "none": "dim"}.get(outcome.verdict, "red")
    what = f"{outcome.job.arch:8} {outcome.job.behaviour:36}"
    parts = [outcome.problem] if outcome.problem else []
    parts += [f"{outcome.graphs} graphs"] if outcome.graphs else []
    parts += [f"{outcome.whole} calls ran whole"] if outcome.whole else []
    return f"[{colour}]{outcome.verdict:7}[/] {what} {', '.join([*parts, f'{outcome.seconds:.0f} s'])}"


def jobs_of(archs: Sequence[str], devices: int, only: str = "") -> list[Job]:
    """Every behaviour of those architectures that have it."""
    return [
        Job(arch, name, devices)
        for arch in archs
        for name, (_, kinds) in BEHAVIOURS.items()
        if only in name and ({arch} | ARCHITECTURES[arch].kinds) & set(kinds)
    ]


def main(
    archs: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(ARCHITECTURES)}")] = None,
    devices: Annotated[int, typer.Option(min=2, help="how many")] = 2,
    only: Annotated[str, typer.Option(help="behaviours whose name has this in it")] = "",
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
    table: Annotated[Path | None, typer.Option(help="write the page to this file")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all outcomes to this file")] = None,
) -> None:
    """Ask split models what transformers' own testers ask, and compare with undivided ones."""
    jobs = jobs_of(archs or list(ARCHITECTURES), devices, only)
    console = Console(highlight=False, soft_wrap=True)
    outcomes = sweep_in_view(check, jobs, workers, line, console)
    if table is not None:
        table.write_text(markdown(outcomes, jobs))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    sys.exit(any(outcome.verdict in ("crash", "WRONG", "GROWS") for outcome in outcomes))


if __name__ == "__main__":
    typer.run(main)
