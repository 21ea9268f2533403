"""What tpfx tells of what it does, to whoever asks for it in the manner of TORCH_LOGS.

TPFX_LOGS=plan,recompiles python train.py       # on standard error; +plan: at length
logging.getLogger("tpfx.plan")                  # the same for a program's own handlers
"""

from __future__ import annotations

import logging
import os
import sys

from ..errors import InputError

VARIABLE = "TPFX_LOGS"
LOGS = {
    "plan": "how each graph is divided: collectives, their bytes, predicted time; +plan: op by op",
    "graphs": "each graph that is captured: its ops and inputs; +graphs: op by op",
    "recompiles": "why code is captured again",
}


class Errors(logging.Handler):
    """Writes to standard error as it is then."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            sys.stderr.write(f"[{record.name}] {record.getMessage()}\n")
        except Exception:
            self.handleError(record)


_HANDLER = Errors()


def log_of(name: str) -> logging.Logger:
    """One of `LOGS`."""
    return logging.getLogger(f"tpfx.{name}")


def heed() -> None:
    """Show what the environment asks for, and nothing else that it asked for before.

    Raises:
        InputError: it asks for what is not there.
    """
    asked = _asked(os.environ.get(VARIABLE, ""))
    for name in LOGS:
        log = log_of(name)
        shown = name in asked
        if shown or _HANDLER in log.handlers:
            log.setLevel(asked.get(name, logging.NOTSET))
            log.propagate = not shown  # else a program's own handlers would show it again
            (log.addHandler if shown else log.removeHandler)(_HANDLER)


def _asked(text: str) -> dict[str, int]:
    """The level of each log that is asked for."""
    asked = {}
    for word in filter(None, map(str.strip, text.split(","))):
        name = word.removeprefix("+")
        if name not in LOGS and name != "all":
            raise InputError(
                f"{VARIABLE}={text}: there is no log {name!r}; there are {', '.join(LOGS)}, or all; +plan "
                "tells at length"
            )
        level = logging.DEBUG if word.startswith("+") else logging.INFO
        asked.update(dict.fromkeys(LOGS if name == "all" else (name,), level))
    return asked
