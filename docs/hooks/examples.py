"""The example at the end of a docstring, `>>> …`, is code."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Gives such lines the heading by which a docstring's parser knows them."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called once for each object that has been read."""
        if obj.docstring and "Examples:" not in obj.docstring.value:
            obj.docstring.value = headed(obj.docstring.value)


def headed(text: str) -> str:
    """A docstring whose last lines, from the first `>>>` on, are a section of examples."""
    text = "\n".join(text.splitlines())
    before, found, example = text.partition("\n>>> ")
    if not found:
        return text
    lines = (found.strip("\n") + example).splitlines()
    return before + "\n\nExamples:\n" + "\n".join(re.sub("^", "    ", line) for line in lines)
