"""Plans that are drawn, each made once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.drawn import CASES, captured
from tpfx.draw.sheet import sheet_of


@pytest.fixture(scope="session")
def captures() -> Callable[[str], Any]:
    """The model of each case, and its graphs, captured once."""
    return functools.cache(lambda name: captured(CASES[name][0], CASES[name][2]))


@pytest.fixture(scope="session")
def sheets(captures: Callable[[str], Any]) -> Callable[[str], Any]:
    """Each case, planned once."""
    return functools.cache(lambda name: sheet_of(*captures(name), CASES[name][1]))


@pytest.fixture(scope="session")
def plans(sheets: Callable[[str], Any]) -> Callable[[str], Any]:
    """The plan of a case, and its graphs."""
    return lambda name: (sheets(name).plan, sheets(name).parallels)
