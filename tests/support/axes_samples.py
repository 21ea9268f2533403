"""Drawn structures of dimensions, in the notation of `tpfx.ir.axes_text`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def structures(draw: Any, size: int, depth: int = 2) -> str:
    """What a dimension may be made of, as text."""
    divisors = [divisor for divisor in range(2, size) if size % divisor == 0]
    kinds = ["axis", *(["product"] * 2 if divisors else []), *(["concat", "twice"] if size > 1 else [])]
    kind = draw(st.sampled_from(kinds)) if depth else "axis"
    if kind == "product":
        major = draw(st.sampled_from(divisors))
        return f"({draw(structures(major, depth - 1))} {draw(structures(size // major, depth - 1))})"
    if kind == "concat" or (kind == "twice" and size % 2):
        at = draw(st.integers(1, size - 1))
        return f"[{draw(structures(at, depth - 1))}|{draw(structures(size - at, depth - 1))}]"
    return f"[r{size // 2}:{size // 2}|r{size // 2}]" if kind == "twice" else f"_:{size}"
