"""Lines of text in columns: name, type, expression, comment.

attn.q    f32[2, 128, 512/4]  = linear(ln1, attn.q.weight)  # column, split n
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDEST = 72  # a comment stands further right only where its own line is longer


@dataclass(frozen=True)
class Row:
    """One line, by columns."""

    name: str
    type: str
    expression: str = ""
    comments: tuple[str, ...] = ()


def block(heading: str, rows: Sequence[Row]) -> str:
    """Rows in columns, under a heading where there is one; nothing where there are no rows."""
    names = max((len(row.name) for row in rows), default=0)
    types = max((len(row.type) for row in rows), default=0)
    lines = [
        f"{row.name:{names}}  {row.type:{types}}  {'= ' * bool(row.expression)}{row.expression}"
        for row in rows
    ]
    start = names + types + 4
    widths = [len(line.rstrip()) for line, row in zip(lines, rows, strict=True) if row.comments]
    end = min(max(widths, default=0), start + WIDEST)
    noted = [
        f"{line.rstrip():{end}}  # {', '.join(row.comments)}" if row.comments else line.rstrip()
        for line, row in zip(lines, rows, strict=True)
    ]
    return "\n".join([f"# {heading}", *noted] if heading else noted) if rows else ""
