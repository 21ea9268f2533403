"""What a plan comes to: memory as calculated by hand, room, speed, whether it pays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tpfx.plan.make import plan_of
from tpfx.plan.plan import Plan
from tpfx.plan.verdict import Call, Need, Verdict, about
from tpfx.planning import Hardware, Topology, hardware_of
from tpfx.planning.hardware import GIB

SLOW_LINKS = Topology(latency=1.0)


def of_memory(size: float) -> Hardware:
    """Devices with so many bytes to use."""
    return Hardware("card", Topology(), int(size) + GIB, "this test")


@pytest.fixture(scope="session")
def call(model: Any, plans: dict[int, Plan]) -> Call:
    tokens = plans[2].graphs[0].estimate.tokens
    return Call(2, tokens // 2)


def kept_by_hand(config: Any, call: Call, more: int = 0) -> int:
    """Keys and values in float32 of all sequences, on all devices."""
    assert call.length is not None
    width = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    return 2 * config.num_hidden_layers * width * call.batch * (call.length + more) * 4


def test_memory_is_as_calculated_by_hand(model: Any, plans: dict[int, Plan], call: Call) -> None:
    need = Need.of(plans[2])
    assert need.weights == max(plans[2].bytes_per_device) < 0.51 * plans[1].total_bytes
    assert need.kept in (kept_by_hand(model.config, call) // 2, kept_by_hand(model.config, call, 1) // 2)
    assert need.moments == 0 and need.total == need.weights + need.kept + need.activations
    runs = [graph.estimate for graph in plans[2].graphs]
    assert need.kept + need.activations == max(
        kept + computed for run in runs for kept, computed in zip(run.kept, run.activations, strict=True)
    )


def test_it_fits_or_says_how_many_would_hold_it(plans: dict[int, Plan], call: Call) -> None:
    need = Need.of(plans[2]).total
    assert Verdict(plans[2], of_memory(need), call).fits
    verdict = Verdict(plans[2], of_memory(need - 1), call)
    assert verdict.fits is False and verdict.fewest == 3
    assert str(verdict).startswith("does not fit: 2 × card, ")
    assert "about 3 devices would hold it; in bfloat16 it takes half as much" in str(verdict)
    unknown = Verdict(plans[2], replace(of_memory(need), memory=None), call)
    assert unknown.fits is None and str(unknown).startswith("needs ")


def test_what_is_left_is_for_keys_and_values(model: Any, plans: dict[int, Plan], call: Call) -> None:
    """A token's keys and values on a device, by hand; memory for 5,000, those that were planned included."""
    each = (kept_by_hand(model.config, call, 1) - kept_by_hand(model.config, call)) // call.batch // 2
    need = Need.of(plans[2])
    verdict = Verdict(plans[2], of_memory(need.total + 5000 * each - need.kept), call)
    assert verdict.bytes_a_token == each
    assert "room: a sequence of 5,000 tokens, or " in str(verdict)
    assert "room" not in str(Verdict(plans[2], of_memory(need.total), Call(1, None)))


def test_speed_is_what_the_topology_says(plans: dict[int, Plan], call: Call) -> None:
    text = str(Verdict(plans[2], of_memory(1e9), call, plans[1]))
    prefill, decode = (graph.estimate for graph in plans[2].graphs)
    assert f"reads {about(prefill.tokens / prefill.seconds)} tokens a second" in text
    assert f"writes {about(call.batch / decode.seconds)} tokens a second" in text
    whole = [one for one in plans[2].weights.values() if one.shards is not None and not one.shards.dims]
    assert f"undivided: {len(whole)} weights" in text and len(whole) >= 5  # norms
    assert "assumed: float32, 2 sequences of" in text


@pytest.mark.parametrize(
    ("times", "told"),
    [
        (1.8, "; 1.80 times as fast as 1 device, of at most 2"),
        (1.0, "it does not pay: 1 device would be as fast"),
        (0.5, "it does not pay: 1 device would be faster"),
    ],
)
def test_whether_it_pays(plans: dict[int, Plan], call: Call, times: float, told: str) -> None:
    now = plans[2].graphs[-1].estimate
    slower = replace(now, compute=now.seconds * times, messages=0.0)
    one = replace(plans[1], graphs=[*plans[1].graphs[:-1], replace(plans[1].graphs[-1], estimate=slower)])
    assert told in str(Verdict(plans[2], of_memory(1e9), call, one))


def test_where_fewer_do_not_hold_it(plans: dict[int, Plan], call: Call) -> None:
    assert "; fewer devices do not hold it" in str(Verdict(plans[2], of_memory(1e9), call))
    assert "fewer" not in str(Verdict(plans[1], of_memory(1e9), call))


def test_a_model_of_no_tokens_is_not_told_of_them(model: Any, captured: Any, plans: dict[int, Plan]) -> None:
    prefill = plan_of(model, captured[:1], 2)
    text = str(Verdict(prefill, hardware_of("t4"), Call(8, None)))
    assert "computes " in text and " inputs a second" in text and "8 inputs" in text
    assert "token" not in text


def test_estimates_have_three_digits() -> None:
    assert [about(n) for n in (354595.2, 591.4, 12.345, 0.123, 32)] == ["355,000", "591", "12.3", "0.1", "32"]
