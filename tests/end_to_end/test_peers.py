"""What transformers' own testers ask, asked of split models; `-m slow`: all of it."""

from __future__ import annotations

import pytest
import torch

from benchmarks.peers import ARCHITECTURES, check, jobs_of, line
from benchmarks.peers_page import Job, Outcome, differences, markdown
from benchmarks.sweeps import sweep

# One of a model's calls, one of `generate`.
SAMPLE = [("vit", "tuples"), ("gpt2", "greedy")]


@pytest.mark.parametrize(("arch", "behaviour"), SAMPLE)
def test_a_behaviour(arch: str, behaviour: str) -> None:
    outcome = check(Job(arch, behaviour))
    assert outcome.verdict == "right" and not outcome.whole, line(outcome)


@pytest.mark.slow
@pytest.mark.timeout(14400)
def test_every_behaviour() -> None:
    jobs = jobs_of(list(ARCHITECTURES), devices=2)
    outcomes = sweep(check, jobs, 2, lambda outcome: print(line(outcome), flush=True))
    assert not [line(one) for one in outcomes if one.verdict in ("crash", "WRONG", "GROWS")]
    called = [one for one in outcomes if one.job.behaviour in ("tuples", "greedy", "loss")]
    assert not [line(one) for one in called if one.verdict == "none"]  # a fault of what is asked


def test_differences_say_where_and_how_far() -> None:
    ones, ids = torch.ones(3), torch.arange(3)
    assert differences({"a": [ones, (ids, None)]}, {"a": [ones + 1e-6, (ids.clone(), None)]}) == ""
    assert differences({"a": [ones]}, {"a": [ones * 1.01]}) == ".a[0]: error 1e-02"
    assert differences([ids], [ids.flip(0)]) == "[0]: 2 of 3 numbers differ"
    assert differences([ones], [ones[:2]]) == "[0] is torch.float32 [2], not torch.float32 [3]"
    assert differences({"a": 1}, {"b": 1}).startswith("result has ['b'], not ['a']")
    assert differences([ones, None], [ones, ids]).startswith("[1] is tensor")
    assert differences(ones, ones / 0) == "result: other numbers are infinite"


def test_the_page_counts_and_names_what_is_not_right() -> None:
    right, none = Outcome(Job("gpt2", "greedy")), Outcome(Job("vit", "loss"), "none", "ValueError: no")
    wrong = Outcome(Job("vit", "tuples"), "WRONG", "[0]: error 1e-02 | 1e-03")
    jobs = [right.job, none.job, wrong.job, Job("vit", "halves")]
    page = markdown([right, none, wrong], jobs).splitlines()
    assert "| | gpt2 | vit |" in page and "| right | 1 | 0 |" in page and "| WRONG | 0 | 1 |" in page
    assert "| greedy | right | · |" in page and "| loss | · | · |" in page
    assert "| halves | · | ? |" in page and any(line.startswith("3 of 4 have been tried") for line in page)
    assert "| loss | vit | none | ValueError: no |  |" in page
    assert "| tuples | vit | WRONG | [0]: error 1e-02 \\| 1e-03 |  |" in page
