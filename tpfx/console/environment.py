"""The environment variables that tpfx reads: all of them, and nowhere else is it said what they mean.

`tpfx --help` prints this table, and `tpfx doctor` names those that are set.
"""

from __future__ import annotations

from collections.abc import Mapping

VARIABLES = {
    "TPFX_PROGRESS": "0: no progress on standard error",
    "TPFX_LOGS": "plan, graphs, recompiles, all: what is told on standard error; +plan: at length",
    "TPFX_DUMP": "stages of the compiler (tpfx dump --help), or all: graphs on standard error",
    "TPFX_CACHE": "0: no plan is kept for later processes, or looked up",
    "TPFX_CACHE_DIR": "where plans and built executors are kept; tpfx in the user's cache folder if not set",
}


def table() -> str:
    """The variables, one a line."""
    return "\n".join(f"{name:15} {meaning}" for name, meaning in VARIABLES.items())


def unknown(environment: Mapping[str, str]) -> list[str]:
    """What is set that looks like one of them, and is none."""
    return sorted(name for name in environment if name.startswith("TPFX_") and name not in VARIABLES)
