"""A parallel graph as text: one line an op, deterministic.

      attn.q            f32[2, 128, 512/4]   = linear(ln1, attn.q.weight)      # split
      attn.o            f32[2, 128, 512]+    = linear(view, attn.o.weight)     # split
      attn.o.sum        f32[2, 128, 512]     = all_reduce(attn.o)              # 512 KiB
"""

from __future__ import annotations

from .pipeline import Parallel


def dump(parallel: Parallel) -> str:
    """The graph as text."""
    return str(parallel.graph)
