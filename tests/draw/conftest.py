"""Plans that are drawn, each made once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.drawn import CASES, planned


@pytest.fixture(scope="session")
def plans() -> Callable[[str], Any]:
    """Each case, planned once."""
    made: dict[str, Any] = {}

    def plan(name: str) -> Any:
        if name not in made:
            made[name] = planned(*CASES[name])
        return made[name]

    return plan
