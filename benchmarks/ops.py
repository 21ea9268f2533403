"""torch's own samples of its ops and modules (`op_db`, `module_db`), split over devices and compared.

    python -m benchmarks.ops                          # all of them, forward and backward, on 2 devices
    python -m benchmarks.ops nn.functional. fft.      # those whose names begin so
    python -m benchmarks.ops --devices 3 --samples 8
    python -m benchmarks.ops --table benchmarks/results/ops.md --json ops.json

The operands of a few samples become the weights of a model, so that the op may be divided; collectives cost
next to nothing, so that it is wherever its rule allows it. One line each: right, refused, crash or WRONG, and
which ATen ops ran whole in every sample, for want of a rule or because theirs allows no split. Exits with 1
where anything crashes, differs or hangs and torch's own compilation (`aot_eager`) does not.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn
from torch.fx import Graph
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

import tpfx
from benchmarks.ops_page import NO_RULE, NO_SPLIT, NOT_OF_THESE, PHASES, VERDICTS, Job, Outcome, markdown
from benchmarks.sweeps import alarm, sweep_in_view
from tests.support.compare import gradient_error, largest_error
from tpfx.ir.annotations import bound_of
from tpfx.ir.nodes import is_check, tensor_nodes
from tpfx.ir.splits import Splits
from tpfx.passes.stages import observing
from tpfx.planning.choices import split_choice
from tpfx.rules import is_random, rule_of
from tpfx.rules.whole_dims import unsplit

PATIENCE = 120  # seconds for the samples of one op, forward or backward
TOLERANCE = 1e-4  # of the scale of an output or a gradient
FREE = tpfx.Topology(latency=1e-12, bandwidth=1e30, flops=1.0, memory=1.0, launch=1e-12)


class Calls(nn.Module):
    """Calls of an op or a module, whose tensors are parameters and buffers."""

    def __init__(self, calls: Sequence[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> None:
        super().__init__()
        self.ops = [op for op, _, _ in calls]
        for at, op in enumerate(self.ops):
            if isinstance(op, nn.Module):
                self.add_module(f"op{at}", op)
        leaves, self.spec = tree_flatten([(args, kwargs) for _, args, kwargs in calls])
        self.fixed = [None if isinstance(leaf, Tensor) else (leaf,) for leaf in leaves]
        for at, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                self._hold(f"x{at}", leaf.detach().clone(), leaf.requires_grad)
        self.unused = nn.Parameter(torch.zeros(2))  # there must be one

    def _hold(self, name: str, value: Tensor, trained: bool) -> None:
        if value.is_floating_point() or value.is_complex():
            self.register_parameter(name, nn.Parameter(value, requires_grad=trained))
        else:
            self.register_buffer(name, value)

    def forward(self) -> list[Any]:
        """The results of all calls."""
        leaves = [getattr(self, f"x{at}") if one is None else one[0] for at, one in enumerate(self.fixed)]
        calls = zip(self.ops, tree_unflatten(leaves, self.spec), strict=True)
        return [op(*args, **kwargs) for op, (args, kwargs) in calls]


@cache
def listed() -> dict[tuple[str, str], Any]:
    """What torch lists, by kind and name."""
    from torch.testing._internal import common_methods_invocations as ops
    from torch.testing._internal.common_modules import module_db

    ops.wrapper_set_seed = lambda op, *args, **kwargs: op(*args, **kwargs)  # it would break graphs
    named: dict[tuple[str, str], Any] = {}
    for one in ops.op_db:
        variant = f"[{one.variant_test_name}]" if one.variant_test_name else ""
        named["op", one.name + variant] = one
    return named | {("module", one.name): one for one in module_db}


def calls_of(job: Job) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Calls to try: those with most dimensions to divide, and others from all over the list."""
    info, trained = listed()[job.kind, job.name], job.phase == "backward"
    torch.manual_seed(0)
    if job.kind == "module":
        found = list(_module_calls(info, trained))
    else:
        found = [
            (info.op, (one.input, *one.args), one.kwargs)
            for one in info.sample_inputs("cpu", _dtype(info), requires_grad=trained)
        ]
    widest = sorted(range(len(found)), key=lambda at: _dims(found[at][1:]), reverse=True)
    spread = [at * len(found) // job.samples for at in range(job.samples)]
    chosen = dict.fromkeys([*widest[: (job.samples + 1) // 2], *spread])
    return [found[at] for at in sorted(list(chosen)[: job.samples]) if at < len(found)]


def _dtype(info: Any) -> torch.dtype:
    known = info.supported_dtypes("cpu")
    return next(one for one in (torch.float32, torch.complex64, torch.int64, *known) if one in known)


def _module_calls(info: Any, trained: bool) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    for one in info.module_inputs_func(info, "cpu", torch.float32, trained, True):
        if one.forward_input is not None:
            made, given = one.constructor_input, one.forward_input
            module = info.module_cls(*made.args, **made.kwargs)
            if isinstance(module, LazyModuleMixin):  # has its shapes with its first call
                module(*given.args, **given.kwargs)
            yield module, tuple(given.args), given.kwargs


def _dims(given: Any) -> tuple[int, int]:
    shapes = [leaf.shape for leaf in tree_leaves(given) if isinstance(leaf, Tensor) and leaf.numel()]
    divisible = max((sum(size > 1 for size in one) for one in shapes), default=0)
    return divisible, sum(one.numel() for one in shapes)


def has_phase(kind: str, name: str, phase: str) -> bool:
    """Whether there is anything to try."""
    info = listed()[kind, name]
    if kind == "module":
        return True
    known = info.supported_dtypes("cpu")
    trained = info.supports_autograd and any(one.is_floating_point or one.is_complex for one in known)
    return bool(known) and (trained or phase == "forward")


def check(job: Job) -> Outcome:
    """Compare the calls of an op with themselves split; one by one where something goes wrong."""
    outcome, start = Outcome(job), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls = [call for call in calls_of(job) if _runs(job, call)]
        outcome.calls = len(calls)
        if calls:
            _try(outcome, calls)
        if outcome.verdict != "right" and len(calls) > 1:
            _try_each(outcome, calls)
    outcome.whole = {op: why for op, why in outcome.whole.items() if why}
    outcome.seconds = time.perf_counter() - start
    gc.collect()
    return outcome


def _runs(job: Job, call: Any) -> bool:
    """Whether a call can be made here, of copies of its operands: not of sparse ones or views of more."""
    try:
        _run(job, copy.deepcopy(Calls([call])))
    except Exception:
        return False
    return True


def _try_each(outcome: Outcome, calls: Sequence[Any]) -> None:
    """The worst of all calls, each by itself."""
    alone = [Outcome(outcome.job) for _ in calls]
    for one, call in zip(alone, calls, strict=True):
        _try(one, [call])
    worst = max(alone, key=lambda one: VERDICTS.index(one.verdict))
    if worst.verdict != "right":
        outcome.verdict, outcome.problem = worst.verdict, f"sample {alone.index(worst)}: {worst.problem}"
    outcome.whole = _always(one.whole for one in alone)
    outcome.uncaptured = sum(one.uncaptured for one in alone)


def _always(found: Any) -> dict[str, str]:
    """What was whole wherever it was."""
    seen = list(found)
    everything = {op: why for one in seen for op, why in one.items()}
    return {op: why for op, why in everything.items() if all(one.get(op, why) for one in seen)}


def _try(outcome: Outcome, calls: Sequence[Any]) -> None:
    plain = Calls(calls)
    with alarm(PATIENCE):
        expected = _run(outcome.job, copy.deepcopy(plain))
        _compare(outcome, plain, expected, _split)
    if outcome.verdict in ("crash", "WRONG"):
        own = Outcome(outcome.job)
        with alarm(PATIENCE):
            _compare(own, plain, expected, _as_torch)
        if own.verdict == outcome.verdict:
            outcome.verdict = "torch"


def _compare(
    outcome: Outcome, plain: Calls, expected: Any, made: Callable[[Outcome, Calls], Callable[[], Any]]
) -> None:
    torch._dynamo.reset()
    try:
        error = error_of(expected, made(outcome, copy.deepcopy(plain))())
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [""]
        outcome.verdict = "refused" if isinstance(problem, tpfx.TpfxError) else "crash"
        outcome.problem = f"{type(problem).__name__}: {lines[0][:200]}"
    else:
        if error >= TOLERANCE and _same(expected, _run(outcome.job, copy.deepcopy(plain))):
            outcome.verdict, outcome.problem = "WRONG", f"error {error:.0e}"


def _split(outcome: Outcome, plain: Calls) -> Callable[[], Any]:
    def run() -> Any:
        model = tpfx.compile(plain, ["cpu"] * outcome.job.devices, topology=FREE, timeout=30)
        could: dict[str, str] = {}

        def note(stage: str, graph: Graph) -> None:
            if stage == "choose":
                for op, why in undivided(graph, outcome.job.devices):
                    could[op] = why and could.get(op, why)

        with observing(note):
            found = _run(outcome.job, model)
        outcome.whole = could
        outcome.uncaptured = tpfx.report(model).whole_calls
        return found

    return run


def _as_torch(outcome: Outcome, plain: Calls) -> Callable[[], Any]:
    compiled = torch.compile(plain, backend="aot_eager")
    return lambda: _run(outcome.job, compiled)


def undivided(graph: Graph, devices: int) -> Iterator[tuple[str, str]]:
    """The ops of a graph that are given more than a number, and why each is whole: "" if it can be split."""
    splits = Splits(graph, devices)
    for node in graph.nodes:
        bound = bound_of(node) if node.op == "call_function" else None
        given = [operand.meta["val"].numel() for operand in tensor_nodes(node)] if bound is not None else []
        if bound is None or is_random(node) or is_check(node) or max(given, default=0) <= 1:
            continue
        near, rule = splits.of([*bound.operands, *bound.results]), rule_of(node)
        if rule is None:
            yield str(node.target), NO_RULE
        elif near:
            can = any(split_choice(bound, split) for split in near)
            yield str(node.target), "" if can else NO_SPLIT if rule.pattern is unsplit else NOT_OF_THESE


def _run(job: Job, model: Any) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    """What the calls return, and the gradients of their operands."""
    torch.manual_seed(0)
    with torch.set_grad_enabled(job.phase == "backward"):
        results = [leaf for leaf in tree_leaves(model()) if isinstance(leaf, Tensor)]
    if job.phase == "forward":
        return [_plain(one) for one in results], {}
    trained = [one for one in results if one.requires_grad]
    torch.manual_seed(1)
    if trained:
        torch.autograd.backward(trained, [torch.randn(one.shape, dtype=one.dtype) for one in trained])
    gradients = {name: one.grad for name, one in model.named_parameters()}
    return [_plain(one) for one in results], {
        name: None if one is None else _plain(one) for name, one in gradients.items()
    }


def _plain(value: Tensor) -> Tensor:
    return (value.full() if isinstance(value, tpfx.ShardedTensor) else value).detach()


def error_of(expected: Any, got: Any) -> float:
    """How far results and gradients are apart."""
    (left, gradients), (right, others) = expected, got
    others = {name.removeprefix("_orig_mod."): value for name, value in others.items()}
    return max(largest_error(left, right), gradient_error(gradients, others) if gradients else 0.0)


def _same(one: Any, other: Any) -> bool:
    """Whether a model says the same when it is asked twice: what is left as memory was does not."""
    return error_of(one, other) < TOLERANCE


def line(outcome: Outcome) -> str:
    """An outcome in one line."""
    job, color = outcome.job, "green" if outcome.verdict in ("right", "torch") else "red"
    text = f"[{color}]{outcome.verdict:7}[/]  {job.kind:6} {job.name:40} {job.phase:8} ×{job.devices}"
    parts = [outcome.problem] if outcome.problem else []
    parts += [f"{why}: {op}" for op, why in outcome.whole.items()]
    parts += [f"{outcome.uncaptured} calls without a graph"] if outcome.uncaptured else []
    return f"{text}  {', '.join([*parts, f'{outcome.seconds:.1f} s'])}"


def main(
    names: Annotated[list[str] | None, typer.Argument(help="how names begin; all if left out")] = None,
    devices: Annotated[int, typer.Option(min=1)] = 2,
    samples: Annotated[int, typer.Option(min=1, help="calls of each, at most")] = 5,
    kind: Annotated[str | None, typer.Option(help='"op" or "module"')] = None,
    phase: Annotated[str | None, typer.Option(help='"forward" or "backward"')] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="write all outcomes to this file")] = None,
    table: Annotated[
        Path | None, typer.Option(help="write what is not right, or whole, to this page")
    ] = None,
) -> None:
    """Split torch's own samples of its ops and modules, and compare."""
    jobs = [
        Job(*one, which, devices, samples)
        for one in listed()
        for which in PHASES
        if kind in (None, one[0]) and phase in (None, which) and one[1].startswith(tuple(names or [""]))
        if has_phase(*one, which)
    ]
    console = Console(highlight=False, soft_wrap=True)
    outcomes = sweep_in_view(check, jobs, workers, line, console)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1) + "\n")
    if table is not None:
        every = ((one[0], which) for one in listed() for which in PHASES if has_phase(*one, which))
        table.write_text(markdown(outcomes, Counter(every)))
    sys.exit(any(outcome.verdict in ("crash", "WRONG") for outcome in outcomes))


if __name__ == "__main__":
    typer.run(main)
