"""Dimensions from text, the inverse of `axes.show`.

read("b:2 (h:4 d:8) [r:3|r]")     # an axis, a product, a concatenation of the same thing twice
"""

from __future__ import annotations

import re

from .axes import Dim, concat, product
from .op_dims import Dims


def read(text: str, names: dict[str, Dim] | None = None) -> Dims:
    """Dimensions from text, the inverse of `axes.show`: `"b:2 (h:4 d:8) [r:3|r]"`.

    A name's first use gives its size; `_:4` is a new axis at each use.
    """
    names = {} if names is None else names
    tokens = re.findall(r"[()\[\]|]|\w+(?::\d+)?", text)
    made, rest = _read(tokens, names)
    if rest:
        raise ValueError(f"unmatched {rest[0]!r} in dimensions {text!r}")
    return made


def _read(tokens: list[str], names: dict[str, Dim]) -> tuple[Dims, list[str]]:
    """Dimensions up to a closing bracket or bar, and what follows."""
    made: Dims = []
    while tokens and tokens[0] not in (")", "]", "|"):
        token, *tokens = tokens
        if token == "(":
            inside, tokens = _read(tokens, names)
            made.append(product(inside))
            tokens = tokens[1:]
        elif token == "[":
            parts: Dims = []
            while not parts or tokens[0] == "|":
                inside, tokens = _read(tokens[1:] if parts else tokens, names)
                parts.append(product(inside))
            made.append(concat(parts))
            tokens = tokens[1:]
        else:
            made.append(_named(token, names))
    return made, tokens


def _named(token: str, names: dict[str, Dim]) -> Dim:
    name, _, size = token.partition(":")
    if name.isdigit():
        return Dim(int(name))
    if name == "_":
        return Dim(int(size))
    if name not in names:
        names[name] = Dim(int(size))
    return names[name]
