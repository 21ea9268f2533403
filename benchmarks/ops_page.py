"""What `ops` finds out about torch's own samples, and the page that says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

PHASES = ("forward", "backward")
# Why an op is whole in all samples. The last is no fault of its rule: they have nothing else to divide.
NO_RULE, NO_SPLIT, NOT_OF_THESE = "no rule", "its rule allows no split", "no split of these samples"
VERDICTS = ("right", "torch", "refused", "crash", "WRONG")  # the best first


@dataclass(frozen=True)
class Job:
    """One op or module of torch's lists, `fft.fft` or `nn.Linear`, forward or backward.

    Attributes:
        kind: "op" or "module".
        name: its name, with that of the variant in brackets.
        phase: "forward" (without gradients), or "backward" (of what is forward too, with gradients).
        devices: how many.
        samples: how many calls at most.
    """

    kind: str
    name: str
    phase: str
    devices: int = 2
    samples: int = 5


@dataclass
class Outcome:
    """What became of a job.

    Attributes:
        job: what was tried.
        verdict: "right", "refused" (an error of tpfx), "crash" (any other), "WRONG", or "torch": it is as
            wrong, or raises, with `aot_eager`.
        problem: what was raised, or how far the numbers are apart.
        calls: how many samples there were.
        whole: the ATen ops that no sample could divide, with the reason.
        uncaptured: how many calls ran without a graph.
        seconds: how long it took.
    """

    job: Job
    verdict: str = "right"
    problem: str = ""
    calls: int = 0
    whole: dict[str, str] = field(default_factory=dict)
    uncaptured: int = 0
    seconds: float = 0.0


# Why ops are whole by their nature.
REASONS = {
    "aten.nonzero.default": "how many there are depends on all numbers",
    "aten.masked_select.default": "how many there are depends on all numbers",
    "aten._unique2.default": "how many there are depends on all numbers",
    "aten.unique_consecutive.default": "how many there are depends on all numbers",
    "aten.unique_dim.default": "how many there are depends on all numbers",
    "aten.repeat_interleave.Tensor": "how many there are depends on all numbers",
    "aten.bincount.default": "how many there are depends on all numbers",
    "aten.masked_scatter.default": "which number goes where depends on all of the mask before it",
    "aten.masked_scatter_backward.default": "which number went where depends on all of the mask before it",
    "aten.new_empty_strided.default": "memory with gaps",
    "aten._histogramdd_bin_edges.default": "how wide bins are depends on all numbers",
    "aten._histogramdd_from_bin_cts.default": "how wide bins are depends on all numbers",
    "aten._histogramdd_from_bin_tensors.default": "nobody has written one",
    "aten.mkldnn_rnn_layer.default": "a state depends on all of the last",
    "aten.mkldnn_rnn_layer_backward.default": "a state depends on all of the last",
    "tpfx.rnn_layer.default": "a state depends on all of the last",
    "aten.put.default": "writes to a tensor as if it were flat",
    "aten.as_strided.default": "reads memory, not a tensor's dimensions",
    "aten.nonzero_static.default": "where the next one goes depends on all numbers before it",
    "aten.resize.default": "reads memory, not a tensor's dimensions",
    "aten._pdist_forward.default": "pairs of rows lie one after the other: no dimension is that of the rows",
    "aten._pdist_backward.default": "pairs of rows lie one after the other: no dimension is that of the rows",
    "aten.histogram.bin_ct": "how wide bins are depends on all numbers",
    "aten.histogram.bins_tensor": "counts and edges are one result, of which only counts could be summed",
    "aten._ctc_loss.default": "the lengths of a batch are a list of numbers, the same on every rank",
    "aten._ctc_loss_backward.default": "the lengths of a batch are a list of numbers, the same on every rank",
    "aten._ctc_loss.Tensor": "how large a result is depends on the numbers",
    "aten._ctc_loss_backward.Tensor": "how large a result is depends on the numbers",
    "aten._scaled_mm.default": "kernels ask for multiples of 16, which shards need not be",
    "aten._scaled_mm_v2.default": "kernels ask for multiples of 16, which shards need not be",
    "torch_nn._linear_cross_entropy_batch_chunked.default": "a loss and gradients, chunk by chunk",
    "torch_nn._linear_cross_entropy_batch_chunked_no_reduction.default": "a loss, chunk by chunk",
    "aten.as_strided_scatter.default": "writes to memory, not to a tensor's dimensions",
}


def markdown(outcomes: Sequence[Outcome], listed: Mapping[tuple[str, str], int]) -> str:
    """Outcomes as a page: how many of those listed, by kind and phase; each that is not right, or whole."""
    outcomes = [one for one in outcomes if one.calls]  # of some no sample runs unsharded either
    devices = outcomes[0].job.devices
    lines = [
        "# torch's own samples of its ops and modules, split",
        "",
        f"torch {torch.__version__.partition('+')[0]}, {devices} CPU devices; `make ops` writes this.",
        "Whole is what has an ATen op without a rule, or one of which the rule allows no split at all.",
        "",
        "| | listed | tried | right | whole | refused | crash | wrong | as wrong in torch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in ("op", "module"):
        for phase in PHASES:
            mine = [one for one in outcomes if (one.job.kind, one.job.phase) == (kind, phase)]
            counts = [sum(one.verdict == word for one in mine) for word in VERDICTS]
            right, own, refused, crash, wrong = counts
            whole = sum(bool({NO_RULE, NO_SPLIT} & set(one.whole.values())) for one in mine)
            row = [listed[kind, phase], len(mine), right, whole, refused, crash, wrong, own]
            lines.append(f"| {kind}s, {phase} | {' | '.join(map(str, row))} |")
    lines += ["", "## Whole", "", "| ATen op | why | in |", "|---|---|---|", *_whole_rows(outcomes)]
    lines += ["", "## Not right", "", "| what | phase | verdict | what happens |", "|---|---|---|---|"]
    for one in outcomes:
        if one.verdict != "right":
            problem = one.problem.replace("|", "\\|")
            lines.append(f"| {one.job.name} | {one.job.phase} | {one.verdict} | {problem} |")
    return "\n".join(lines) + "\n"


def _whole_rows(outcomes: Sequence[Outcome]) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for one in outcomes:
        for op, why in one.whole.items():
            names = found.setdefault((op, REASONS.get(op, why)), [])
            names += [] if one.job.name in names else [one.job.name]
    for (op, why), names in sorted(found.items()):
        yield f"| `{op}` | {why} | {', '.join(names)} |"
