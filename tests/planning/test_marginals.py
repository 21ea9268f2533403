"""What every value costs, beside what is found by solving again with that value alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpfx.planning.marginals import marginals
from tpfx.planning.variable_elimination import Factor, minimise


@st.composite
def problems(draw):
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    costs = st.sampled_from([0.0, 0.5, 1.0, 2.5, math.inf])
    factors = []
    for _ in range(draw(st.integers(0, 8))):
        scope = draw(st.lists(st.sampled_from(range(len(sizes))), min_size=0, max_size=3, unique=True))
        shape = [sizes[v] for v in scope]
        table = np.array([draw(costs) for _ in range(math.prod(shape))]).reshape(shape)
        factors.append(Factor(tuple(scope), table))
    return sizes, factors


def solved(sizes, factors):
    try:
        return minimise(sizes, factors).cost
    except ValueError:
        return math.inf


@given(problems())
def test_each_value_costs_what_solving_again_with_it_does(problem):
    sizes, factors = problem
    if solved(sizes, factors) == math.inf:
        return
    found = marginals(sizes, factors)
    assert [len(row) for row in found] == sizes
    for v, row in enumerate(found):
        for value, cost in enumerate(row):
            fixed = np.full(sizes[v], math.inf)
            fixed[value] = 0.0
            assert cost == pytest.approx(solved(sizes, [*factors, Factor((v,), fixed)]))


def test_a_table_beyond_the_limit_is_not_made():
    every = np.zeros((4, 4, 4))
    assert marginals([4, 4, 4], [Factor((0, 1, 2), every)], limit=63) is None
    assert marginals([4, 4, 4], [Factor((0, 1, 2), every)], limit=64) is not None
