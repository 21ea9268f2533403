"""What an example prints is looked at as its reader does."""

from __future__ import annotations

import re


def require(said: str, texts: list[str] | tuple[str, ...] = ()) -> None:
    """Whether an example has said these things, patterns, and no more than roundings differ."""
    for text in texts:
        assert re.search(text, said), f"{text!r} is not in:\n{said}"
    assert "False" not in said
    for number in re.findall(r"(?:largest difference|the outputs)[^:\n]*: (\S+)", said):
        assert float(number) < 1e-3, said
