"""What every value of every variable costs, all others chosen anew around it, in two passes over the tables.

    differ = np.array([[0.0, 2.0], [2.0, 0.0]])
    marginals([2, 2], [Factor((0, 1), differ), Factor((1,), np.array([1.0, 0.0]))])
    # [array([0., 1.]), array([1., 0.])]

The first pass is that of `minimise`. The second goes back, and tells each bucket what the cheapest of all the
others comes to (min-marginals by message passing in a bucket tree: Kask, Dechter, Larrosa, Dechter, 2005).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .variable_elimination import (
    Bucket,
    Factor,
    Scope,
    Table,
    Tables,
    elimination_order,
    joint_table,
    merged,
    restricted,
    supported,
)


def marginals(sizes: Sequence[int], factors: Sequence[Factor], *, limit: int = 1 << 22) -> list[Table] | None:
    """For each variable, what the cheapest assignment costs that has each of its values; infinity for none.

    Args:
        sizes: as `minimise` takes them, and the factors.
        factors: at least one assignment of finite cost is possible.
        limit: entries of a table.

    Returns:
        One array for each variable; None where a table would be larger than the limit.
    """
    tables = merged(sizes, factors)
    kept = supported(sizes, tables)
    largest, order = elimination_order(kept, small := restricted(tables, kept))
    if largest > limit:
        return None
    place = {v: i for i, v in enumerate(order)}
    domains = [len(kept[v]) for v in order]
    named = [Factor(tuple(place[v] for v in scope), table) for scope, table in small.items()]
    least, rows = _rows(domains, merged(domains, named))
    found = [np.full(size, math.inf) for size in sizes]
    for v, values in enumerate(kept):
        found[v][values] = least + rows[place[v]] if v in place else least
    return found


def _rows(sizes: list[int], tables: Tables) -> tuple[float, list[Table]]:
    """The least cost, and how much more than that each value of each variable costs."""
    buckets: list[Bucket] = [[] for _ in sizes]
    least = float(tables.get((), 0.0))
    for scope, table in tables.items():
        if scope:
            buckets[scope[0]].append((scope, table))
    scopes, totals, sent = list[Scope](), list[Table](), list[Table]()
    for at, bucket in enumerate(buckets):
        scope = tuple(sorted({at}.union(*(each for each, _ in bucket))))
        total = joint_table(scope, bucket, sizes) if bucket else np.zeros(sizes[at])
        message = total.min(axis=0)
        if len(scope) > 1:
            buckets[scope[1]].append((scope[1:], message))
        else:
            least += float(message)
        scopes.append(scope)
        totals.append(total)
        sent.append(message)
    return least, _backwards(scopes, totals, sent)


def _backwards(scopes: list[Scope], totals: list[Table], sent: list[Table]) -> list[Table]:
    """What each value costs: each bucket's table with what all others come to, from the last to the first."""
    rows = [np.zeros(0)] * len(scopes)
    for at in reversed(range(len(scopes))):
        scope, total = scopes[at], totals[at]
        if len(scope) > 1:  # the bucket that its message went to is done
            above = scopes[scope[1]]
            aligned = sent[at].reshape(
                [n if v in scope else 1 for v, n in zip(above, totals[scope[1]].shape, strict=True)]
            )
            with np.errstate(invalid="ignore"):  # inf - inf: it is impossible anyway
                rest = np.nan_to_num(totals[scope[1]] - aligned, nan=math.inf, posinf=math.inf)
            total = total + rest.min(axis=tuple(i for i, v in enumerate(above) if v not in scope))
            totals[at] = total
        row = total.min(axis=tuple(range(1, len(scope))))
        rows[at] = row - row.min()
    return rows
