"""Why an op is split as it is: the ways, what each costs, and what forces a collective."""

from __future__ import annotations

from typing import Any

import pytest

from tpfx.errors import InputError
from tpfx.plan.explain import Explainer
from tpfx.plan.offline import plan_graphs

LAYERS = 2


def test_the_chosen_way_is_the_cheapest(model: Any, captured: Any) -> None:
    parallel = plan_graphs(captured, 2)[0]
    explainer = Explainer(captured[0], parallel)
    for name in ("layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight", "layers.0.add"):
        told = explainer.explain(name)
        assert told.ways[0].chosen
        assert [way.chosen for way in told.ways].count(True) == 1
        assert told.ways[0].cost == pytest.approx(parallel.solution.cost)
        assert told.ways[0].collectives == {"all_reduce": 2 * LAYERS + 1, "gather": 1}
        assert len(told.ways) > 1
    (reason,) = explainer.explain("layers.0.self_attn.o_proj").forced
    assert reason == "all_reduce (6 KiB) for layers.0.add: its other operands are no partial sums"
    assert "(chosen)" in str(told)
    with pytest.raises(InputError, match=r"no op layers\.0\.ad; did you mean layers\.0\.add"):
        explainer.explain("layers.0.ad")


def test_prices_are_what_explanations_say(captured: Any) -> None:
    parallel = plan_graphs(captured, 2)[0]
    explainer = Explainer(captured[0], parallel)
    prices = explainer.prices()
    names = ("layers.0.self_attn.k_proj.weight", "layers.1.mlp.down_proj", "lm_head", "layers.0.add")
    known = explainer.names()
    for name in names:
        told, mine = explainer.explain(name).ways, prices[known[name].name]
        texts = {price.text(explainer._lines): price for price in mine}
        assert {way.text: way.chosen for way in told} == {text: one.chosen for text, one in texts.items()}
        cost = {way.text: way.cost - told[0].cost for way in told}
        assert {text: price.more for text, price in texts.items()} == pytest.approx(cost, abs=1e-12)
    assert all(len(ways) > 1 and [way.chosen for way in ways].count(True) == 1 for ways in prices.values())
