"""Two plans differ in what is said, and in nothing else."""

from __future__ import annotations

from dataclasses import replace

from tpfx.plan.diff import differences
from tpfx.plan.plan import Plan


def test_two_plans_differ_in_what_is_said(plans: dict[int, Plan]) -> None:
    assert list(differences(plans[2], plans[2])) == []
    lines = list(differences(plans[2], plans[3]))
    assert "devices: 2 → 3" in lines
    assert any(
        line.startswith("model.embed_tokens.weight: float32[256, 64] split, dimension 0") for line in lines
    )
    one = replace(plans[2], weights={}, graphs=plans[2].graphs[:1])
    lines = list(differences(plans[2], one))
    assert "graph 1 (decode): only in the first" in lines
    assert "model.norm.weight: float32[64] whole → not there" in lines
