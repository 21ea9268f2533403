"""`variable_elimination` against brute force, against scipy's milp, and beyond its table limit."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from tpfx.ir.parallel_graph import Solution
from tpfx.planning.variable_elimination import Factor, minimise

Problem = tuple[list[int], list[Factor]]
PROFILE = settings(max_examples=200, deadline=None, derandomize=True, database=None)
COSTS = (0.0, 0.0, 1e-9, 0.1, 0.2, 0.3, 0.5, 1.0, math.inf)  # ties, sums that tie but for rounding, infs


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=9))
    scope = st.lists(st.integers(0, len(sizes) - 1), max_size=3, unique=True)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    costs = COSTS[: draw(st.sampled_from((4, 8, 9)))]
    scopes = draw(st.lists(scope, max_size=14))
    return sizes, [Factor(tuple(s), random.choice(costs, size=[sizes[v] for v in s])) for s in scopes]


def cost(factors: list[Factor], assignment: tuple[int, ...] | list[int]) -> float:
    return math.fsum(float(f.table[tuple(assignment[v] for v in f.variables)]) for f in factors)


def close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-11, abs_tol=1e-15)


def pairs(
    edges: list[tuple[int, int]], count: int, size: int, seed: int = 0, *, forbid: float = 0.0
) -> Problem:
    """Costs of one decimal, so that ties abound; (0, 0) is never forbidden."""
    random = np.random.default_rng(seed)
    sizes = [int(n) for n in random.integers(max(2, size - 2), size + 1, count)]
    factors = [Factor((v,), np.round(random.random(n), 1)) for v, n in enumerate(sizes)]
    for a, b in edges:
        table = np.round(random.random((sizes[a], sizes[b])), 1)
        table[random.random(table.shape) < forbid] = math.inf
        table[0, 0] = 1.0
        factors.append(Factor((a, b), table))
    return sizes, factors


def grid(rows: int, columns: int) -> list[tuple[int, int]]:
    cells = list(itertools.product(range(rows), range(columns)))
    down = [(r * columns + c, (r + 1) * columns + c) for r, c in cells if r + 1 < rows]
    return down + [(r * columns + c, r * columns + c + 1) for r, c in cells if c + 1 < columns]


def skips(layers: int, length: int) -> list[tuple[int, int]]:
    """A chain; the first variable of each layer also feeds the first of the next: the residual stream."""
    chain = [(i, i + 1) for i in range(layers * length - 1)]
    return chain + [(i, i + length) for i in range(0, (layers - 1) * length, length)]


def linear(sizes: list[int], factors: list[Factor]) -> float:
    """The optimum by integer programming: a binary for each value, a weight for each entry of a table."""
    starts = np.cumsum([0, *sizes])
    weights, entries, targets = [np.zeros(starts[-1])], [], [1.0] * len(sizes)
    entries += [(v, starts[v] + k, 1.0) for v, size in enumerate(sizes) for k in range(size)]
    offset = int(starts[-1])
    for factor in factors:
        weights.append(factor.table.ravel())
        ids = offset + np.arange(factor.table.size).reshape(factor.table.shape)
        for axis, v in enumerate(factor.variables):
            for k in range(sizes[v]):
                entries += [(len(targets), int(i), 1.0) for i in ids.take(k, axis=axis).ravel()]
                entries.append((len(targets), starts[v] + k, -1.0))
                targets.append(0.0)
        offset += factor.table.size
    rows, columns, values = zip(*entries, strict=True)
    costs = np.concatenate(weights)
    upper = np.where(np.isinf(costs), 0.0, 1.0)
    ties = LinearConstraint(
        coo_array((values, (rows, columns)), shape=(len(targets), offset)), targets, targets
    )
    whole = np.arange(offset) < starts[-1]
    found = milp(
        np.where(np.isinf(costs), 0.0, costs),
        constraints=ties,
        bounds=Bounds(0, upper),
        integrality=whole,
        options={"mip_rel_gap": 0.0},
    )
    assert found.success
    return float(found.fun)


@PROFILE
@given(problems())
def test_equals_brute_force(problem: Problem) -> None:
    sizes, factors = problem
    best = min(cost(factors, values) for values in itertools.product(*map(range, sizes)))
    if math.isinf(best):
        with pytest.raises(ValueError, match="no assignment is possible"):
            minimise(sizes, factors)
        return
    found = minimise(sizes, factors)
    assert found.optimal and found.bound == found.cost == cost(factors, found.assignment)
    assert close(found.cost, best)


@PROFILE
@given(problems(), st.sampled_from((1, 9, 27)))
def test_bound_and_cost_enclose_the_optimum_beyond_the_limit(problem: Problem, limit: int) -> None:
    sizes, factors = problem
    best = min(cost(factors, values) for values in itertools.product(*map(range, sizes)))
    if math.isinf(best):
        with pytest.raises(ValueError, match="assignment"):
            minimise(sizes, factors, limit=limit)
        return
    found = minimise(sizes, factors, limit=limit)
    assert found.bound <= best + 1e-11 and best <= found.cost + 1e-11
    assert found.cost == cost(factors, found.assignment) < math.inf
    assert not found.optimal or close(found.cost, best)


@PROFILE
@given(problems(), st.randoms(use_true_random=False), st.sampled_from((9, 1 << 22)))
def test_order_of_factors_does_not_matter(problem: Problem, shuffle: random.Random, limit: int) -> None:
    sizes, factors = problem
    shuffled = []
    for factor in shuffle.sample(factors, len(factors)):
        axes = shuffle.sample(range(len(factor.variables)), len(factor.variables))
        shuffled.append(Factor(tuple(factor.variables[i] for i in axes), factor.table.transpose(axes)))
    assert outcome(sizes, factors, limit) == outcome(sizes, shuffled, limit)


def outcome(sizes: list[int], factors: list[Factor], limit: int) -> Solution | str:
    try:
        return minimise(sizes, factors, limit=limit)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("forbid", [0.0, 0.3])
@pytest.mark.parametrize(
    ("edges", "count", "size"),
    [(skips(1, 60), 60, 6), (skips(10, 8), 80, 5), (grid(5, 8), 40, 4), (grid(2, 30), 60, 5)],
    ids=["chain", "skips", "grid", "ladder"],
)
def test_equals_integer_programming(
    edges: list[tuple[int, int]], count: int, size: int, forbid: float
) -> None:
    sizes, factors = pairs(edges, count, size, forbid=forbid)
    assert math.isclose(minimise(sizes, factors).cost, linear(sizes, factors), rel_tol=1e-6)


def test_long_chain_with_skips() -> None:
    sizes, factors = pairs(skips(250, 12), 3000, 8, forbid=0.2)
    found = minimise(sizes, factors)
    assert found.optimal and found.width == 2 and found.cost == cost(factors, found.assignment)
    # What is left of the whole when its second half is taken away costs no more, and the halves do not share.
    half = [f for f in factors if max(f.variables) < 1500]
    rest = [f for f in factors if min(f.variables) >= 1500]
    moved = [Factor(tuple(v - 1500 for v in f.variables), f.table) for f in rest]
    assert minimise(sizes[:1500], half).cost + minimise(sizes[1500:], moved).cost <= found.cost


@pytest.mark.parametrize("seed", range(3))
def test_split_buckets_bound_the_optimum(seed: int) -> None:
    sizes, factors = pairs(grid(12, 12), 144, 3, seed, forbid=0.1)
    best = minimise(sizes, factors, limit=1 << 24)
    found = minimise(sizes, factors, limit=27)
    assert best.optimal and not found.optimal and found.width < best.width
    assert found.bound < best.cost <= found.cost <= best.cost * 1.1
    assert found.bound >= best.cost * 0.9


def test_beyond_the_limit_feasible() -> None:
    sizes, factors = pairs(grid(12, 12), 144, 6, forbid=0.1)
    found = minimise(sizes, factors, limit=1 << 12)
    assert found.bound < found.cost < found.bound * 1.2 and not found.optimal
    assert found.cost == cost(factors, found.assignment)


def test_of_equal_values_the_lowest() -> None:
    # 0.1 + 0.2 > 0.3 by rounding alone, so value 0 of the first variable ties with value 1.
    factors = [Factor((0,), np.array([0.1, 0.3])), Factor((0, 1), np.array([[0.2, 0.2], [0.0, 0.0]]))]
    assert minimise([2, 2], factors).assignment == [0, 0]
    assert minimise([3, 1, 2], []) == Solution([0, 0, 0], 0.0, 0.0, True, 0)
    assert minimise([], []) == Solution([], 0.0, 0.0, True, 0)


def test_equal_layers_choose_alike() -> None:
    random = np.random.default_rng(3)
    tables = [np.round(random.random((4, 4)), 1) for _ in range(6)]
    factors = [Factor((i, i + 1), tables[i % 6]) for i in range(1199)]
    found = minimise([4] * 1200, factors).assignment
    layers = {tuple(found[i : i + 6]) for i in range(60, 1140, 6)}
    assert len(layers) == 1


def test_contradiction_names_its_variables() -> None:
    sizes, factors = pairs(skips(20, 10), 200, 3)
    differ = np.where(np.eye(2) == 1, math.inf, 0.0)
    sizes += [2, 2, 2]
    triangle = [Factor(pair, differ) for pair in ((200, 201), (201, 202), (200, 202))]
    with pytest.raises(ValueError) as error:
        minimise(sizes, [*factors, *triangle])
    assert str(error.value) == (
        "no assignment is possible: factors (200, 201), (200, 202), (201, 202) contradict on 200, 201, 202"
    )


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (Factor((0, 1), np.zeros((3, 2))), r"factor over \(0, 1\) has shape \(3, 2\), not \(2, 3\)"),
        (Factor((0, 0), np.zeros((2, 2))), "each variable once"),
        (Factor((0,), np.array([0.0, math.nan])), r"factor over \(0,\) holds NaN or -inf"),
        (Factor((0,), np.array([0.0, -math.inf])), r"factor over \(0,\) holds NaN or -inf"),
    ],
)
def test_malformed_factor(factor: Factor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minimise([2, 3], [factor])


def test_variable_without_values() -> None:
    with pytest.raises(ValueError, match="variable 1 has 0 values"):
        minimise([2, 0], [])
