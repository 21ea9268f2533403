"""Machines by name."""

from __future__ import annotations

import pytest

from tpfx.errors import InputError
from tpfx.planning import Topology, hardware_of, topology_of
from tpfx.planning.hardware import GIB, HARDWARE


@pytest.mark.parametrize("name", HARDWARE)
def test_a_device_says_where_its_figures_are_from(name: str) -> None:
    """And is slower than its data sheet, with less memory to use than it has."""
    hardware = hardware_of(name)
    assert hardware.title and hardware.source
    costs = hardware.topology
    assert topology_of(name) == costs
    assert 40e12 < costs.flops < 2250e12 and 0.2e12 < costs.memory < 8e12 and 10e9 < costs.bandwidth < 900e9
    assert 1e-6 < costs.launch < costs.latency < 50e-6
    if name != "pcie4":
        assert hardware.memory is not None and hardware.usable is not None
        assert hardware.memory - 10 * GIB < hardware.usable <= hardware.memory - GIB


@pytest.mark.parametrize(("name", "there"), [("t4", 14.56), ("a100-40-nvlink", 39.4), ("rtx-4090", 23.5)])
def test_no_more_is_counted_on_than_the_driver_leaves(name: str, there: float) -> None:
    """What torch says such a card has, in GiB, where its memory ran out."""
    usable = hardware_of(name).usable
    assert usable is not None and 0.93 * there < usable / GIB < 0.98 * there


def test_a_host_of_eight_is_faster_than_two_of_them() -> None:
    size = 2**26
    one, two = (topology_of(f"h100-nvlink{hosts}") for hosts in ("", "-2-hosts"))
    assert two.all_reduce(size, 16) > 5 * one.all_reduce(size, 8)


def test_memory_of_a_file_and_of_other_cards_is_said(tmp_path) -> None:
    Topology().save(tmp_path / "here.json")
    assert hardware_of("default").usable is None
    assert hardware_of(str(tmp_path / "here.json")).usable is None
    assert hardware_of(str(tmp_path / "here.json"), memory=24).usable == 24 * GIB - 24 * GIB // 20
    assert hardware_of("t4", memory=12.5).memory == int(12.5 * GIB)


def test_memory_of_no_size_is_refused() -> None:
    with pytest.raises(InputError, match="--memory 0: it must be above 0 GiB"):
        hardware_of("t4", memory=0)
