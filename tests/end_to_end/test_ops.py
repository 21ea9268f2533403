"""torch's own samples of its ops and modules, split and compared; `-m slow`: all of them."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.ops import check, has_phase, line, listed
from benchmarks.ops_page import NO_RULE, NO_SPLIT, NOT_OF_THESE, PHASES, Job, Outcome, markdown
from benchmarks.sweeps import sweep

# One of each kind: scaled products, batches of matrices, what torch itself writes as others, reads by index,
# a number in the place of a tensor, an op that is whole.
SAMPLE = [
    ("op", "addbmm", "backward"),
    ("op", "cholesky_solve", "forward"),
    ("op", "rot90", "backward"),
    ("op", "nn.functional.interpolate[bilinear]", "forward"),
    ("op", "unfold_copy", "forward"),
    ("op", "put", "forward"),
    ("module", "nn.MultiMarginLoss", "backward"),
]


@pytest.mark.parametrize(("kind", "name", "phase"), SAMPLE, ids=lambda one: str(one))
def test_samples_of_torch(kind: str, name: str, phase: str) -> None:
    pytest.importorskip("expecttest", reason="torch's samples import it")
    outcome = check(Job(kind, name, phase, samples=3))
    assert outcome.verdict == "right" and outcome.calls == 3, line(outcome)
    whole = [op for op, why in outcome.whole.items() if why != NOT_OF_THESE]
    assert whole == (["aten.put.default"] if name == "put" else []), line(outcome)


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_all_samples_of_torch() -> None:
    pytest.importorskip("expecttest", reason="torch's samples import it")
    jobs = [Job(*one, phase) for one in listed() for phase in PHASES if has_phase(*one, phase)]
    outcomes = sweep(check, jobs, 2, lambda outcome: print(line(outcome), flush=True))
    assert not [line(one) for one in outcomes if one.verdict in ("crash", "WRONG")]
    ops = {one.job.name for one in outcomes if {NO_RULE, NO_SPLIT} & set(one.whole.values())}
    assert len(ops) <= 45, sorted(ops)


def test_the_page_counts_and_names_what_is_not_right_or_whole() -> None:
    put = Outcome(Job("op", "put", "forward"), calls=1, whole={"aten.put.default": NO_SPLIT})
    alone = Outcome(Job("op", "diag", "forward"), calls=1, whole={"aten.diag_embed.default": NOT_OF_THESE})
    broken = Outcome(Job("module", "nn.RNN", "backward"), "crash", "KeyError: 'x|y'", calls=1)
    listed = Counter({("op", "forward"): 3, ("module", "backward"): 1})
    page = markdown([put, alone, broken], listed).splitlines()
    assert "| ops, forward | 3 | 2 | 2 | 1 | 0 | 0 | 0 | 0 |" in page
    assert "| modules, backward | 1 | 1 | 0 | 0 | 0 | 1 | 0 | 0 |" in page
    assert "| `aten.put.default` | writes to a tensor as if it were flat | put |" in page
    assert f"| `aten.diag_embed.default` | {NOT_OF_THESE} | diag |" in page
    assert "| nn.RNN | backward | crash | KeyError: 'x\\|y' |" in page
