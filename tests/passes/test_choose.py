"""The chooser's optimum is the optimum: against brute force on small programs, against an ILP on real
layers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array
from torch.fx import Graph
from torch.fx.experimental.proxy_tensor import make_fx

from tests.support.graphs import lines, parts, planned, read
from tests.support.models import inputs, tiny
from tpfx.capture.capture import capture
from tpfx.capture.graph import Phase
from tpfx.ir.annotations import Source, set_source
from tpfx.ir.shards import Shards
from tpfx.ir.splits import Splits
from tpfx.passes import choose
from tpfx.passes.choose import Problem
from tpfx.passes.infer_axes import infer_axes
from tpfx.passes.normalize import normalize
from tpfx.passes.simplify import simplify
from tpfx.planning.alike_ops import AlikeOps
from tpfx.planning.topology import Topology
from tpfx.planning.variable_elimination import Factor, minimise

RANKS = 2


def problem(
    function: Callable[..., torch.Tensor], weights: dict[str, torch.Tensor], x: torch.Tensor
) -> Problem:
    """The chooser's variables and tables for a function of some weights and an input."""
    graph = make_fx(function, tracing_mode="fake")(weights, x).graph
    return prepared(graph, [*(Source("parameter", name) for name in weights), Source("input", "x")])


def prepared(graph: Graph, sources: Sequence[Source]) -> Problem:
    """What `choose` solves for a captured graph."""
    for node, source in zip(graph.find_nodes(op="placeholder"), sources, strict=True):
        set_source(node, source)
    normalize(graph)
    simplify(graph)
    infer_axes(graph)
    return Problem(graph, RANKS, Topology(), Splits(graph, RANKS))


def sizes_and_factors(case: Problem) -> tuple[list[int], list[Factor]]:
    return [len(variable.states) for variable in case.variables], list(case.factors())


def random_program(seed: int) -> Problem:
    """Two or three linear layers with sums, products and norms between them, of random sizes."""
    draw = random.Random(seed)
    width = draw.choice([8, 12])
    weights = {f"w{i}": torch.randn(width, width) for i in range(draw.choice([1, 2]))}
    if draw.random() < 0.5:
        weights["bias"] = torch.randn(width)
    steps = [draw.choice(["relu", "residual", "bias", "softmax"]) for _ in weights]

    def run(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        for (name, weight), step in zip(weights.items(), steps, strict=True):
            y = x + weight if name == "bias" else x @ weight.t()
            match step:
                case "relu":
                    y = y.relu()
                case "residual":
                    y = y + x
                case "bias" if "bias" in weights:
                    y = y * weights["bias"]
                case "softmax":
                    y = y.softmax(-1)
            x = y
        return x

    return problem(run, weights, torch.randn(3, width))


def brute_force(sizes: list[int], factors: list[Factor]) -> float:
    return min(
        sum(float(factor.table[tuple(values[v] for v in factor.variables)]) for factor in factors)
        for values in itertools.product(*map(range, sizes))
    )


@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force(seed: int) -> None:
    sizes, factors = sizes_and_factors(random_program(seed))
    if math.prod(sizes) > 20_000:
        pytest.skip(f"{math.prod(sizes)} assignments are too many to try")
    solution = minimise(sizes, factors)
    assert solution.optimal
    assert solution.cost == pytest.approx(brute_force(sizes, factors), rel=1e-9)


def test_brute_force_is_not_skipped_everywhere() -> None:
    small = [seed for seed in range(12) if math.prod(sizes_and_factors(random_program(seed))[0]) <= 20_000]
    assert len(small) >= 6


def ilp(sizes: list[int], factors: list[Factor]) -> float:
    """The least cost, by scipy's branch and bound: one 0/1 variable a state, edges as implications both
    ways."""
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    costs = np.zeros(offsets[-1])
    rows: list[tuple[list[int], list[float]]] = []
    for factor in factors:
        if len(factor.variables) == 1:
            (v,) = factor.variables
            costs[offsets[v] : offsets[v + 1]] += factor.table
            continue
        (u, v), allowed = factor.variables, np.isfinite(factor.table)
        assert not factor.table[allowed].any(), "edges only allow or forbid"
        for a, b, table in ((u, v, allowed), (v, u, allowed.T)):
            for i in range(sizes[a]):
                partners = [int(offsets[b] + j) for j in np.flatnonzero(table[i])]
                rows.append(([int(offsets[a] + i), *partners], [1.0, *[-1.0] * len(partners)]))
    one = [(list(range(offsets[v], offsets[v + 1])), [1.0] * size) for v, size in enumerate(sizes)]
    constraints = [
        LinearConstraint(_matrix(one, len(costs)), 1, 1),
        LinearConstraint(_matrix(rows, len(costs)), -np.inf, 0),
    ]
    scale = 1e6  # microseconds: the solver's tolerances are absolute
    result = milp(
        costs * scale, constraints=constraints, integrality=np.ones(len(costs)), bounds=Bounds(0, 1)
    )
    assert result.success, result.message
    return float(result.fun) / scale


def _matrix(rows: list[tuple[list[int], list[float]]], columns: int) -> coo_array:
    where = [(row, column) for row, (indices, _) in enumerate(rows) for column in indices]
    values = [value for _, row in rows for value in row]
    return coo_array((values, tuple(zip(*where, strict=True))), shape=(len(rows), columns))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_equals_an_ilp_on_real_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (captured,) = capture(tiny(name), inputs(tiny(name)), symbolic=False)
    case = prepared(captured.module.graph, captured.sources)
    require_as_alone(case, monkeypatch)
    sizes, factors = sizes_and_factors(case)
    solution = minimise(sizes, factors)
    assert solution.optimal
    assert solution.cost == pytest.approx(ilp(sizes, factors), rel=1e-6)


def require_as_alone(case: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """See that states, costs to the bit, and tables of edges are those that are made for each op alone."""
    factors = list(case.factors())
    with monkeypatch.context() as patched:
        patched.setattr(AlikeOps, "of", lambda self, node, partials: (node, []))
        patched.setattr(choose, "_related", lambda offers, needs: object())
        alone = Problem(case.graph, RANKS, Topology(), case.splits)
        assert [one.states for one in case.variables] == [one.states for one in alone.variables]
        assert [(one.variables, one.table.tolist()) for one in factors] == [
            (one.variables, one.table.tolist()) for one in alone.factors()
        ]
    assert len(case._seen) < 0.7 * len(alone._seen) and len(case._tables) < len(alone._tables)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "phase"), [("llama", "decode"), *((name, "train") for name in ("gpt2", "mixtral", "falcon_new"))]
)
def test_ops_that_are_alike_have_the_choices_that_each_has_alone(
    name: str, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in capture(tiny(name), inputs(tiny(name)), phase=phase):
        require_as_alone(prepared(one.module.graph, one.sources), monkeypatch)


# Graphs, text in and text out: what is chosen for two devices.
CASES = {
    "column, then row": """
        x: f32[3, 64]
        up: f32[256, 64] = parameter
        down: f32[64, 256] = parameter
        return linear(relu(linear(x, up)), down)
        ---
        x f32[3, 64]
        up f32[256/a, 64] # a:256, b:64
        down f32[64, 256/a] # c:64, a:256
        linear f32[3, 256/a] = linear(x, up) # column, split n
        relu f32[3, 256/a] = relu(linear) # split a
        linear_1 f32[3, 64]+ = linear(relu, down) # row, split k
        return linear_1
    """,
    "partial sums are added before they are reduced": """
        x: f32[3, 64]
        up: f32[256, 64] = parameter
        down: f32[64, 256] = parameter
        side: f32[256, 64] = parameter
        back: f32[64, 256] = parameter
        return add(linear(relu(linear(x, up)), down), linear(relu(linear(x, side)), back))
        ---
        x f32[3, 64]
        up f32[256/a, 64] # a:256, b:64
        down f32[64, 256/a] # c:64, a:256
        side f32[256/d, 64] # d:256, b:64
        back f32[64, 256/d] # c:64, d:256
        linear f32[3, 256/a] = linear(x, up) # column, split n
        relu f32[3, 256/a] = relu(linear) # split a
        linear_1 f32[3, 64]+ = linear(relu, down) # row, split k
        linear_2 f32[3, 256/d] = linear(x, side) # column, split n
        relu_1 f32[3, 256/d] = relu(linear_2) # split d
        linear_3 f32[3, 64]+ = linear(relu_1, back) # row, split k
        add f32[3, 64]+ = add(linear_1, linear_3) # partial sum
        return add
    """,
    "an op without a rule": """
        x: f32[64, 64]
        w: f32[64, 64] = parameter
        return linalg_det(linear(x, w))
        ---
        x f32[64, 64]
        w f32[64, 64/b] # a:64, b:64
        linear f32[64, 64]+ = linear(x, w) # row, split k
        linalg_det f32[] = linalg_det(linear) # whole: no rule
        return linalg_det
    """,
    "random numbers": """
        x: f32[3, 64]
        w: f32[64, 64] = parameter
        return rand_like(linear(x, w))
        ---
        x f32[3, 64]
        w f32[64, 64/b] # a:64, b:64
        linear f32[3, 64]+ = linear(x, w) # row, split k
        rand_like f32[3, 64] = rand_like(linear) # whole: random
        return rand_like
    """,
    "a vocabulary": """
        ids: i64[2, 5]
        table: f32[4096, 64] = parameter
        return linear(cos(embedding(table, ids)), table)
        ---
        ids i64[2, 5]
        table f32[4096, 64/b] # a:4096, b:64
        embedding f32[2, 5, 64/b] = embedding(table, ids) # split b
        cos f32[2, 5, 64/b] = cos(embedding) # split b
        linear f32[2, 5, 4096]+ = linear(cos, table) # row, split k
        return linear
    """,
    "what is written is written where it lies": """
        x: f32[3, 64]
        w: f32[256, 64] = parameter
        cache: f32[3, 256] = buffer
        y = linear(x, w)
        copy_(cache, y)
        return cos(y)
        ---
        x f32[3, 64]
        w f32[256/a, 64] # a:256, b:64
        cache f32[3, 256/a] # c:3, a:256
        linear f32[3, 256/a] = linear(x, w) # column, split n
        copy_ f32[3, 256/a] = copy_(cache, linear) # split a
        cos f32[3, 256/a] = cos(linear) # split a
        return cos
    """,
}


@pytest.mark.parametrize("name", CASES)
def test_choice(name: str) -> None:
    before, expected = parts(CASES[name])
    assert lines(planned(read(before), "choose"), inputs=True) == expected


def test_what_an_earlier_graph_has_chosen_stays() -> None:
    text = "x: f32[3, 64]\nw: f32[256, 64] = parameter\nreturn cos(linear(x, w))"
    rows = Shards(((0, (((0, 100),), ((100, 256),))),))
    split = lines(planned(read(text, w=rows), "choose"), inputs=True)
    assert "w f32[256/2, 64] # a:256, b:64, 100+156" in split
    whole = lines(planned(read(text, w=Shards()), "choose"), inputs=True)
    assert "w f32[256, 64] # a:256, b:64" in whole and "+" not in whole
