"""Layers that are alike and follow one another are one run; fewer than three are written one by one."""

from __future__ import annotations

from tpfx.dump.repeated_layers import SHORTEST, Layer, runs, span


def layers(*kinds: str, stem: str = "layers", first: int = 0) -> list[Layer]:
    return [Layer(stem, first + at, kind) for at, kind in enumerate(kinds)]


def test_alike_neighbours_are_together() -> None:
    assert runs([*layers("a", "a", "a", "b"), Layer("", None, "")]) == [range(0, 3), range(3, 4), range(4, 5)]


def test_too_few_are_apart() -> None:
    assert SHORTEST == 3
    assert runs(layers("a", "a", "b", "b")) == [range(at, at + 1) for at in range(4)]


def test_a_number_left_out_and_another_stem_begin_anew() -> None:
    missing = [*layers("a", "a", "a"), *layers("a", "a", "a", first=4)]
    assert runs(missing) == [range(0, 3), range(3, 6)]
    other = [*layers("a", "a", "a"), *layers("a", "a", "a", stem="blocks", first=3)]
    assert runs(other) == [range(0, 3), range(3, 6)]


def test_what_has_no_number_is_by_itself() -> None:
    assert runs([Layer("", None, "")] * 4) == [range(at, at + 1) for at in range(4)]
    assert runs([]) == []


def test_a_span_has_the_first_name_and_the_last_number() -> None:
    assert span("layers.0", "layers.31") == "layers.0–31"
