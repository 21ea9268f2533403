"""A tiny Llama, captured once for all tests of plans, and its plans for 1, 2 and 3 devices."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.models import inputs, tiny
from tpfx.capture.capture import capture
from tpfx.plan.make import describe
from tpfx.plan.offline import plan_graphs
from tpfx.plan.plan import Plan
from tpfx.planning.topology import Topology


@pytest.fixture(scope="session")
def model() -> Any:
    return tiny("llama")


@pytest.fixture(scope="session")
def captured(model: Any) -> Any:
    return capture(model, inputs(model), phase="decode")


@pytest.fixture(scope="session")
def plans(model: Any, captured: Any) -> dict[int, Plan]:
    return {n: describe(model, captured, plan_graphs(captured, n), Topology()) for n in (1, 2, 3)}
