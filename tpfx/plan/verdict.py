"""The answer that a plan is asked for: does it fit, what is left for keys and values, how fast, does it pay?

verdict = Verdict(plan, hardware, Call(batch=1, length=4096), fewer=plan_for_one_device)
verdict.fits                    # None where nobody has said how much memory a device has
print(verdict)                  # a line for each answer, and one for what was assumed
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..formatting import bytes_text, counted, seconds_text
from ..planning import Hardware
from .estimate import Estimate
from .plan import Plan, WeightPlan


@dataclass(frozen=True)
class Call:
    """What was planned for.

    Attributes:
        batch: sequences, images, or other inputs.
        length: tokens in each; None where the inputs are no tokens.
        unit: what they are then: "image" or "input".
    """

    batch: int
    length: int | None
    unit: str = "input"

    def __str__(self) -> str:
        if self.length is None:
            return counted(self.batch, self.unit)
        return f"{counted(self.batch, 'sequence')} of {counted(self.length, 'token')}"


@dataclass(frozen=True)
class Need:
    """Bytes on the device that needs most.

    Attributes:
        weights: parameters and buffers.
        moments: the two of AdamW, where the plan is one of training.
        kept: keys, values and states.
        activations: what is computed, when that is most; in training gradients are among it.
    """

    weights: int
    moments: int
    kept: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.moments + self.kept + self.activations

    @staticmethod
    def of(plan: Plan) -> Need:
        """What a plan needs."""
        trains = any(graph.phase == "train" for graph in plan.graphs)
        needs = [
            Need(weights, 2 * weights * trains, *_most_at_once(plan, rank))
            for rank, weights in enumerate(plan.bytes_per_device)
        ]
        return max(needs, key=lambda need: need.total)


def _most_at_once(plan: Plan, rank: int) -> tuple[int, int]:
    """What is kept and computed in the phase that needs most: its graphs run one after the other."""
    runs = [
        (sum(run.kept[rank] for run in phase), max(run.activations[rank] for run in phase))
        for phase in _phases(plan).values()
    ]
    return max(runs, key=sum, default=(0, 0))


def _phases(plan: Plan) -> dict[str, list[Estimate]]:
    """What the graphs of each phase take."""
    phases: dict[str, list[Estimate]] = {}
    for graph in plan.graphs:
        phases.setdefault(graph.phase, []).append(graph.estimate)
    return phases


def _seconds(phase: Sequence[Estimate]) -> float:
    return sum(run.seconds for run in phase)


def about(number: float) -> str:
    """Three digits of a number, as an estimate has no more.

    >>> about(354595.2)
    '355,000'
    """
    digits = 0 if isinstance(number, int) or number >= 100 else 1
    return f"{float(f'{number:.3g}'):,.{digits}f}"


@dataclass(frozen=True)
class Verdict:
    """What a plan comes to on devices of one kind.

    Attributes:
        plan: for some number of devices.
        hardware: the devices.
        call: what was planned for.
        fewer: the same on the fewest devices that hold it; None where these are the fewest.
    """

    plan: Plan
    hardware: Hardware
    call: Call
    fewer: Plan | None = None

    @property
    def need(self) -> Need:
        """Bytes on the device that needs most."""
        return Need.of(self.plan)

    @property
    def fits(self) -> bool | None:
        """Whether every device holds what it has to; None where its memory is not known."""
        usable = self.hardware.usable
        return None if usable is None else self.need.total <= usable

    @property
    def fewest(self) -> int | None:
        """About how many devices would hold it, what every device has all of left aside; None where none do,
        or their memory is not known."""
        usable, whole = self.hardware.usable, self._bytes_of_whole()
        if usable is None or whole >= usable:
            return None
        return math.ceil((self.need.total - whole) * self.plan.devices / (usable - whole))

    @property
    def bytes_a_token(self) -> int | None:
        """By how much what is kept grows on a device with each token of a sequence; None if not known."""
        kept = {
            phase: max(map(sum, zip(*(run.kept for run in runs), strict=True)))
            for phase, runs in _phases(self.plan).items()
        }
        if self.call.length is None or not {"prefill", "decode"} <= kept.keys():
            return None
        return (kept["decode"] - kept["prefill"]) // self.call.batch

    def __str__(self) -> str:
        lines = [self._memory(), self._room(), self._speed(), self._whole(), self._assumed()]
        return "\n".join(line for line in lines if line)

    def _memory(self) -> str:
        need, device = self.need, self.hardware.title
        parts = {
            "weights": need.weights,
            "AdamW's moments": need.moments,
            f"{self._kept()} {self.call}": need.kept,
            "activations and gradients" if need.moments else "activations": need.activations,
        }
        told = ", ".join(f"{bytes_text(size)} {what}" for what, size in parts.items() if size)
        devices = f"{self.plan.devices} × {device}"
        if self.fits is None:
            return f"needs {bytes_text(need.total)} on each of {devices}: {told}"
        usable = bytes_text(self.hardware.usable or 0)
        if self.fits:
            return f"fits: {devices}, {bytes_text(need.total)} of {usable} on each: {told}"
        return (
            f"does not fit: {devices}, {bytes_text(need.total)} on each, which has {usable}: {told}; "
            f"{self._enough()}{self._smaller()}"
        )

    def _enough(self) -> str:
        if self.fewest is None:
            whole = bytes_text(self._bytes_of_whole())
            return f"no number of them would hold it: {whole} of weights are undivided, on every device"
        return f"about {counted(self.fewest, 'device')} would hold it"

    def _kept(self) -> str:
        """What is kept: only for steps that follow is it more than results that the graph itself uses."""
        steps = "decode" in _phases(self.plan)
        return "keys, values and states of" if steps else "results of"

    def _smaller(self) -> str:
        small = self._dtype() != "float32"
        return "" if small else "; in bfloat16 it takes half as much (--set dtype=bfloat16)"

    def _dtype(self) -> str:
        """That of most of the weights' bytes."""
        sizes: Counter[str] = Counter()
        for weight in self.plan.weights.values():
            sizes[weight.dtype] += weight.bytes
        return max(sizes, key=sizes.__getitem__, default="float32")

    def _room(self) -> str:
        """How much more can be kept."""
        each, usable = self.bytes_a_token, self.hardware.usable
        if not self.fits or usable is None or each is None or self.call.length is None:
            return ""
        left = usable - self.need.total + self.need.kept
        held = self.need.kept // self.call.batch
        if not each and held:
            return f"room: {about(left // held)} sequences at once, of any length: states do not grow"
        if each <= 0:
            return ""
        tokens, length = left // each, self.call.length
        several = f", or {about(tokens // length)} sequences of {length:,}" if tokens >= 2 * length else ""
        return (
            f"room: a sequence of {about(tokens)} tokens{several}; {bytes_text(each)} a token on each device"
        )

    def _speed(self) -> str:
        """Estimated, as the topology has it."""
        told = ", ".join(self._rate(phase, runs) for phase, runs in _phases(self.plan).items())
        return f"speed, estimated: {told}{self._gain()}"

    def _rate(self, phase: str, runs: Sequence[Estimate]) -> str:
        seconds = _seconds(runs)
        if phase == "decode":
            return f"writes {about(self.call.batch / seconds)} tokens a second"
        what = "tokens" if self.call.length is not None else f"{self.call.unit}s"
        verb = "trains on" if phase == "train" else "reads" if self.call.length is not None else "computes"
        return f"{verb} {about(max(run.tokens for run in runs) / seconds)} {what} a second"

    def _gain(self) -> str:
        if self.plan.devices == 1:
            return ""
        if self.fewer is None:
            return "; fewer devices do not hold it" if self.fits else ""
        phase = self.plan.graphs[-1].phase
        fewer, now = (_seconds(_phases(plan)[phase]) for plan in (self.fewer, self.plan))
        devices = counted(self.fewer.devices, "device")
        gain, possible = fewer / now, self.plan.devices / self.fewer.devices
        if gain < 1.05:
            return (
                f"; it does not pay: {devices} would be {'faster' if gain < 0.95 else 'as fast'}, and hold it"
            )
        return f"; {gain:.2f} times as fast as {devices}, of at most {possible:g}"

    def _whole(self) -> str:
        """What of the weights every device holds all of."""
        if self.plan.devices == 1:
            return ""
        whole = self._undivided()
        size = sum(one.bytes for one in whole)
        if not size:
            return "undivided: nothing"
        share = size / max(1, self.plan.total_bytes)
        of_all = f"{share:.2%}" if share >= 1e-4 else "less than 0.01%"
        named = counted(len(whole), "weight")
        return f"undivided: {named}, {bytes_text(size)}, {of_all} of all, on every device{self._why_whole()}"

    def _why_whole(self) -> str:
        """Which ops need the whole of most of them, if any do; what is small says nothing."""
        needed: Counter[str] = Counter()
        for one in self._undivided():
            if one.why is not None:
                needed[one.why] += one.bytes
        told = [f"{why}, {bytes_text(size)}" for why, size in needed.most_common(2)]
        more = f"; and {counted(len(needed) - 2, 'other reason')}" if len(needed) > 2 else ""
        return f": {'; '.join(told)}{more}" if told else ""

    def _undivided(self) -> list[WeightPlan]:
        return [one for one in self.plan.weights.values() if one.shards is not None and not one.shards.dims]

    def _bytes_of_whole(self) -> int:
        """Of weights that every device has all of, with their moments."""
        size = sum(one.bytes for one in self._undivided()) if self.plan.devices > 1 else 0
        return size * (3 if self.need.moments else 1)

    def _assumed(self) -> str:
        costs = self.hardware.topology
        return (
            f"assumed: {self._dtype()}, {self.call}; of a device {costs.flops / 1e12:,.0f} Tflop/s, "
            f"{costs.memory / 1e12:.3g} TB/s, {costs.bandwidth / 1e9:.3g} GB/s to others "
            f"after {seconds_text(costs.latency)} ({self.hardware.source}, less what is not reached), "
            "one after the other"
        )
