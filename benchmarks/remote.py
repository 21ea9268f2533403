"""Systems in processes of their own: `Remote(commands)` starts them and asks them for seconds.

One JSON object on a line in (a phase, say), one out (its seconds). Several processes that run one model get
the same questions. `serve` is what such a process does; it also runs in the peer's environment, so it needs
nothing of tpfx.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Remote:
    """Processes that run one model, one for all of its devices or one for each.

    Args:
        command: the program and its arguments; its first line in is `given`, and it says when it is ready.
        given: what it is told.
        environments: variables of each process, on top of this one's.
    """

    def __init__(
        self,
        command: Sequence[str],
        given: Mapping[str, Any],
        environments: Sequence[Mapping[str, str]] = ({},),
    ) -> None:
        self._command = list(command)
        self._processes = [
            subprocess.Popen(
                self._command,
                cwd=ROOT,
                env={**os.environ, **own},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for own in environments
        ]
        self.ready = self._ask(given)

    def measure(self, phase: str) -> float:
        """Seconds of one measurement, those of the first process."""
        return float(self._ask({"phase": phase})["seconds"])

    def held(self) -> list[int]:
        """Bytes on each device while it trains."""
        return [int(size) for size in self._ask({"held": True})["held"]]

    def tokens(self, count: int, beams: int) -> list[list[int]]:
        """What the model writes."""
        found: list[list[int]] = self._ask({"tokens": [count, beams]})["tokens"]
        return found

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            assert process.stdout is not None
            process.wait(timeout=60)
            process.stdout.close()

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        answers = [self._answer(process, question) for process in self._processes]
        return answers[0]

    def _answer(self, process: subprocess.Popen[str], question: Mapping[str, Any]) -> dict[str, Any]:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):  # libraries print too
                answer: dict[str, Any] = json.loads(line)
                return answer
        for other in self._processes:
            other.kill()
        raise RuntimeError(f"{' '.join(self._command)} ended ({process.wait()}) at {question}")


def given() -> dict[str, Any]:
    """What this process is told first."""
    told: dict[str, Any] = json.loads(sys.stdin.readline())
    return told


def serve(model: Any, ids: Any) -> None:
    """Answer questions about a model, until there are no more."""
    from .phases import PHASES, bytes_held, tokens

    _say(ready=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "held" in question:
            _say(held=bytes_held(model))
        elif "tokens" in question:
            _say(tokens=tokens(model, ids, *question["tokens"]).tolist())
        else:
            _say(seconds=PHASES[question["phase"]](model, ids))


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)
