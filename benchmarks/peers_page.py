"""What `peers` finds out, how it compares, and the page that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.support.sharded import whole

TOLERANCES = {torch.bfloat16: 4e-2, torch.float16: 1e-2}  # of the scale of a tensor; others 1e-4
VERDICTS = ("right", "refused", "crash", "WRONG", "GROWS")

# Why a behaviour is refused, or not as of the undivided model.
REASONS: dict[str, str] = {}


@dataclass(frozen=True)
class Job:
    """One behaviour of one architecture, by name, on some devices."""

    arch: str
    behaviour: str
    devices: int = 2


@dataclass
class Outcome:
    """What became of a job.

    Attributes:
        job: what was tried.
        verdict: "right", "refused" (an error of tpfx), "crash" (any other), "WRONG", "GROWS" (the same once
            more made new graphs), or "none": the undivided model raises too.
        problem: what was raised, or where the first difference is.
        graphs: how many graphs it made.
        whole: how many calls ran without a graph.
        seconds: how long it took.
    """

    job: Job
    verdict: str = "right"
    problem: str = ""
    graphs: int = 0
    whole: int = 0
    seconds: float = 0.0


def differences(expected: Any, got: Any) -> str:
    """Where two results differ first, and by how much; "" where they are the same up to rounding."""
    return next(_differences(expected, got, ""), "")


def _differences(expected: Any, got: Any, where: str) -> Iterator[str]:
    if isinstance(expected, Tensor) and isinstance(got, Tensor):
        yield from _of_tensors(whole(expected).detach(), whole(got).detach(), where)
    elif isinstance(expected, Mapping) and isinstance(got, Mapping):
        if list(expected) != list(got):
            yield f"{where or 'result'} has {list(got)}, not {list(expected)}"
        for key in expected:
            yield from _differences(expected[key], got.get(key), f"{where}.{key}")
    elif isinstance(expected, (list, tuple)) and isinstance(got, (list, tuple)):
        if len(expected) != len(got):
            yield f"{where or 'result'} has {len(got)} parts, not {len(expected)}"
        for at, pair in enumerate(zip(expected, got, strict=False)):
            yield from _differences(*pair, f"{where}[{at}]")
    elif type(expected).__name__.endswith("Cache"):
        yield from _differences(_contents(expected), _contents(got), f"{where}.cache")
    elif expected != got:
        yield f"{where or 'result'} is {str(got)[:80]}, not {str(expected)[:80]}"


def _contents(cache: Any) -> Any:
    """Tensors of a cache, layer by layer."""
    if hasattr(cache, "self_attention_cache"):
        return [_contents(cache.self_attention_cache), _contents(cache.cross_attention_cache)]
    names = ("keys", "values", "conv_states", "recurrent_states")
    return [{name: getattr(layer, name, None) for name in names} for layer in cache.layers]


def _of_tensors(expected: Tensor, got: Tensor, where: str) -> Iterator[str]:
    if (expected.shape, expected.dtype) != (got.shape, got.dtype):
        said, wanted = (f"{one.dtype} {list(one.shape)}" for one in (got, expected))
        yield f"{where or 'result'} is {said}, not {wanted}"
    elif not expected.is_floating_point():
        if not torch.equal(expected, got):
            yield f"{where or 'result'}: {int((expected != got).sum())} of {expected.numel()} numbers differ"
    elif not torch.equal(expected.isfinite(), got.isfinite()):
        yield f"{where or 'result'}: other numbers are infinite"
    else:
        finite = expected.isfinite()
        left, right = expected[finite].double(), got[finite].double()
        scale = max(float(left.abs().max()) if left.numel() else 0.0, 1e-6)
        gap = float((left - right).abs().max()) / scale if left.numel() else 0.0
        if gap > TOLERANCES.get(expected.dtype, 1e-4):
            yield f"{where or 'result'}: error {gap:.0e}"


def markdown(outcomes: Sequence[Outcome], listed: Sequence[Job]) -> str:
    """Outcomes of those listed as a page: counts, behaviours by architectures, and each that is not right."""
    archs = list(dict.fromkeys(job.arch for job in listed))
    found = {(one.job.behaviour, one.job.arch): one for one in outcomes}
    releases = ", ".join(f"{of.__name__} {of.__version__.partition('+')[0]}" for of in (torch, transformers))
    lines = [
        "# What transformers' own testers ask, asked of split models",
        "",
        f"{releases}, {listed[0].devices} CPU devices, tiny random models; `make peers` writes this.",
        f"{len(outcomes)} of {len(listed)} have been tried; a question mark: not yet.",
        "A dot: not for this architecture, or the undivided model raises too.",
        "",
        f"| | {' | '.join(archs)} |",
        f"|---|{'---|' * len(archs)}",
    ]
    for verdict in VERDICTS:
        counts = [sum((one.job.arch, one.verdict) == (arch, verdict) for one in outcomes) for arch in archs]
        lines.append(f"| {verdict} | {' | '.join(map(str, counts))} |")
    lines += ["", f"| behaviour | {' | '.join(archs)} |", f"|---|{'---|' * len(archs)}"]
    for behaviour in dict.fromkeys(job.behaviour for job in listed):
        cells = [_cell(Job(arch, behaviour, listed[0].devices), found, listed) for arch in archs]
        lines.append(f"| {behaviour} | {' | '.join(cells)} |")
    lines += ["", "## Not right", "", *_failures(outcomes, VERDICTS[1:])]
    lines += ["", "## What the undivided model raises too", "", *_failures(outcomes, ("none",))]
    return "\n".join(lines) + "\n"


def _cell(job: Job, found: Mapping[tuple[str, str], Outcome], listed: Sequence[Job]) -> str:
    one = found.get((job.behaviour, job.arch))
    if one is None:
        return "?" if job in listed else "·"
    return "·" if one.verdict == "none" else one.verdict


def _failures(outcomes: Sequence[Outcome], verdicts: Sequence[str]) -> Iterator[str]:
    alike: dict[tuple[str, str, str], list[str]] = {}
    for one in outcomes:
        if one.verdict in verdicts:
            alike.setdefault((one.job.behaviour, one.verdict, one.problem), []).append(one.job.arch)
    if not alike:
        yield "Nothing."
        return
    yield from ("| behaviour | of | verdict | what happens | why |", "|---|---|---|---|---|")
    for (behaviour, verdict, problem), archs in alike.items():
        shown = problem.replace("|", "\\|")
        yield f"| {behaviour} | {', '.join(archs)} | {verdict} | {shown} | {REASONS.get(behaviour, '')} |"
