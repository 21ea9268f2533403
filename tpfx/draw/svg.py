"""Plans drawn: each graph as a chain of its blocks, alike layers once, with collectives on the arrows.

Path("llama.svg").write_text(svg(plan, parallels))       # needs nothing
Path("llama.dot").write_text(dot(plan, parallels))       # for Graphviz
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from xml.sax.saxutils import escape

from ..formatting import bytes_text
from ..ir.layout import Interval
from ..ir.parallel_graph import ParallelGraph
from ..plan.plan import Plan, WeightPlan
from .chain import Step, steps
from .module_tree import Weights, blocks

WIDTH, GAP, MARGIN = 440, 34, 28  # of a box; between boxes; around all
BAR, LINE = 120, 17  # the width of a weight's bar; the height of a line of text
COLOURS = ("#3d6fd6", "#e08a2b", "#2f9c79", "#c4477f", "#8560cc", "#a8931a", "#3aa3c2", "#cc4b3d")

_STYLE = """
text { font: 12px system-ui, "Segoe UI", "Liberation Sans", sans-serif; fill: #1d1c1a; }
.paper { fill: #f7f6f3; } .box { fill: #fff; stroke: #d5d0c6; } .frame { fill: none; stroke: #b3ada2; }
.name { font: 600 13px ui-monospace, Menlo, Consolas, "Liberation Mono", monospace; }
.title { font-size: 20px; font-weight: 600; } .quiet { fill: #66625b; }
.collective { fill: #a63d12; font-weight: 600; }
.arrow { stroke: #8b867c; fill: none; } .all { fill: #d5d0c6; }
@media (prefers-color-scheme: dark) {
text { fill: #ebe9e4; } .paper { fill: #131417; }
.box { fill: #1b1d21; stroke: #3a3e45; } .frame { stroke: #5c6068; }
.quiet { fill: #a5a199; } .collective { fill: #ffa578; } .arrow { stroke: #8b8f97; } .all { fill: #3a3e45; }
}
"""


def svg(plan: Plan, parallels: Sequence[ParallelGraph]) -> str:
    """The plan as a picture: a column for each graph, and beside each block how its weights are divided."""
    weights = Weights(plan)
    columns, height = [], 0
    for at, (parallel, graph) in enumerate(zip(parallels, plan.graphs, strict=True)):
        drawn = _Column(weights, plan.devices, MARGIN + at * (WIDTH + 2 * MARGIN))
        drawn.draw(graph.phase, steps(blocks(parallel, weights), graph))
        columns += drawn.parts
        height = max(height, drawn.y)
    width, tall = len(parallels) * (WIDTH + 2 * MARGIN), height + MARGIN
    title = (
        f"{plan.model} on {plan.devices} devices, {bytes_text(max(plan.bytes_per_device))} on each at most"
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{tall}" '
            f'viewBox="0 0 {width} {tall}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{escape(_STYLE)}</style>",
            f'<rect class="paper" width="{width}" height="{tall}"/>',
            _text(MARGIN, MARGIN + 14, plan.model, "title"),
            _text(MARGIN, MARGIN + 34, title.removeprefix(f"{plan.model} "), "quiet"),
            *columns,
            "</svg>",
        ]
    )


class _Column:
    """One graph being drawn, from top to bottom; `y` is where the next box begins."""

    def __init__(self, weights: Weights, devices: int, x: int) -> None:
        self.weights, self.devices, self.x, self.y = weights, devices, x, MARGIN + 84
        self.parts: list[str] = []

    def draw(self, phase: str, chain: Sequence[Step]) -> None:
        """All boxes, and the arrows between them."""
        self.parts.append(_text(self.x, self.y - 14, phase, "name"))
        for frame, inside in groupby(chain, lambda step: step.frame):
            if frame:
                self.y += 30
            top = self.y
            for step in inside:
                self.box(step)
                if step is not chain[-1]:
                    self.arrow(step.collectives)
            if frame:
                self.around(frame, top, self.y - GAP)

    def around(self, frame: str, top: int, bottom: int) -> None:
        """The frame of layers that are alike."""
        place = f'x="{self.x - 12}" y="{top - 28}" width="{WIDTH + 24}" height="{bottom - top + 40}"'
        self.parts.append(f'<rect class="frame" {place} rx="12"/>')
        self.parts.append(_text(self.x + WIDTH, top - 10, frame, "name", "end"))

    def box(self, step: Step) -> None:
        """One step: its name, what is said of it, and the bars of its weights."""
        named = [step.name] if step.name else []
        room = (WIDTH - 28 - (BAR + 12 if step.weights else 0)) // 7
        said = wrapped(step.lines, room, 2)
        height = max((len(named) + len(said)) * LINE, 7 * len(step.weights[:8])) + 14
        self.parts.append(
            f'<rect class="box" x="{self.x}" y="{self.y}" width="{WIDTH}" height="{height}" rx="8"/>'
        )
        for at, (text, kind) in enumerate([(n, "name") for n in named] + [(s, "quiet") for s in said]):
            self.parts.append(_text(self.x + 14, self.y + 20 + at * LINE, _shortened(text, room), kind))
        for at, index in enumerate(step.weights[:8]):
            self.parts += self.bar(self.weights.plans[index], self.y + 8 + 7 * at)
        self.y += height

    def bar(self, weight: WeightPlan, y: int) -> Iterator[str]:
        """A weight from its first row or column to its last, in the colours of the devices that hold it."""
        left = self.x + WIDTH - BAR - 14
        yield f'<rect class="all" x="{left}" y="{y}" width="{BAR}" height="5" rx="1.5"/>'
        if weight.shards is None or not weight.shards.dims:
            return
        dim, owned = weight.shards.dims[0]
        scale = BAR / max(1, weight.shape[dim])
        lane = 5 / len(owned) if _overlap(owned) else 0.0
        for rank, intervals in enumerate(owned):
            path = "".join(
                f"M{left + a * scale:.2f} {y + rank * lane:.2f}H{left + b * scale:.2f}v{lane or 5:.2f}"
                f"H{left + a * scale:.2f}z"
                for a, b in intervals
            )
            yield f'<path d="{path}" fill="{colour(rank)}"><title>device {rank}</title></path>'

    def arrow(self, collectives: Sequence[str]) -> None:
        """The way to the next box, with what is sent on it."""
        middle, end = self.x + 28, self.y + GAP
        self.parts.append(
            f'<path class="arrow" d="M{middle} {self.y}V{end - 2}m-4 -5l4 5l4 -5" stroke-width="1.5"/>'
        )
        if collectives:
            self.parts.append(
                _text(middle + 14, self.y + GAP // 2 + 4, " · ".join(collectives), "collective")
            )
        self.y = end


def _overlap(owned: Sequence[Sequence[Interval]]) -> bool:
    """Whether two devices hold the same part of a dimension."""
    every = sorted(interval for intervals in owned for interval in intervals)
    return any(start < stop for (_, stop), (start, _) in pairwise(every))


def colour(rank: int) -> str:
    """The colour of a device; beyond eight, round the circle of hues."""
    return COLOURS[rank] if rank < len(COLOURS) else f"hsl({(rank * 137.5) % 360:.0f} 55% 55%)"


def _text(x: int, y: int, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _shortened(text: str, room: int) -> str:
    return text if len(text) <= room else f"{text[: room - 1]}…"


def wrapped(words: Sequence[str], room: int, most: int) -> list[str]:
    """Words as a few lines of text, of which the last may end in an ellipsis."""
    if any(": " in word for word in words):
        return list(words)
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) + 3 <= room:
            lines[-1] += f" · {word}"
        else:
            lines.append(word)
    return lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1][: room - 2]} …"]
