"""Plans as tables."""

from __future__ import annotations

from tpfx.formatting import bytes_text
from tpfx.plan.plan import Plan
from tpfx.plan.tables import comparison, summary


def test_numbers_of_devices_side_by_side(plans: dict[int, Plan]) -> None:
    text = comparison(list(plans.values()), {"does it fit": ["no", "nearly", "yes"]})
    (row,) = [line for line in _rows(text) if "does it fit" in line]
    assert row.replace("│", " ").split() == ["does", "it", "fit", "no", "nearly", "yes"]
    assert "1 device " in text
    assert "3 devices" in text
    for graph in plans[3].graphs:
        assert f"{graph.phase}: kept for later calls" in text


def test_a_plan_is_its_memory_by_rank_and_its_runs(plans: dict[int, Plan]) -> None:
    plan = plans[2]
    text = summary(plan)
    assert text == str(plan)
    for rank, size in enumerate(plan.bytes_per_device):
        assert any(line.split()[1] == str(rank) and bytes_text(size) in line for line in _rows(text))
    for graph in plan.graphs:
        (row,) = [line for line in _rows(text) if line.split()[1] == graph.phase]
        inside = sum(one.bytes for one in graph.collectives if ".layers." in f".{one.node}")
        assert "5 all_reduce, 1 gather" in row and f"{graph.estimate.tokens} " in row
        assert bytes_text(inside // 2) in row  # of each of the 2 layers


def test_nothing_is_cut_on_a_narrow_terminal(plans: dict[int, Plan]) -> None:
    """What does not fit side by side has its rows as columns."""
    plan = plans[2]
    wide, narrow = (set(summary(plan, width).split()) for width in (140, 64))
    assert not any("…" in word for word in narrow)
    assert {word for word in narrow if word.isalpha()} == {word for word in wide if word.isalpha()}
    assert max(map(len, summary(plan, 64).splitlines())) <= 64


def _rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("│")]
