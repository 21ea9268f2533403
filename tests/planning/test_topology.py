"""What collectives and ops take on a topology, and topologies by name and as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tpfx.errors import InputError
from tpfx.planning.hardware import topology_of
from tpfx.planning.topology import Topology

SLOW = Topology(latency=1.0, bandwidth=10.0, flops=1000.0, memory=100.0, launch=0.25)


def test_a_ring_sends_each_byte_once_or_twice_but_for_its_own_shard() -> None:
    assert SLOW.all_reduce(40, 4) == 1 + 2 * 30 / 10
    assert SLOW.gather(40, 4) == 1 + 30 / 10
    assert (
        SLOW.all_gather(40, 4) == 1 + 30 / 10 + 2 * 40 / 100 + 4 * 0.25
    )  # and puts 4 shards in their places
    assert SLOW.all_reduce(40, 1) == 1


def test_an_op_takes_what_takes_longer() -> None:
    assert SLOW.op(flops=5000, size=100) == 5
    assert SLOW.op(flops=1000, size=200) == 2


def test_names_and_files(tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    SLOW.save(path)
    assert topology_of(str(path)) == Topology.load(path) == SLOW
    assert topology_of("default") == Topology()


def test_what_a_file_leaves_out_is_as_by_default(tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    path.write_text('{"latency": 1}')
    assert Topology.load(path) == Topology(latency=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read the topology"),
        ("[]", "is no topology: it is an object with latency"),
        ('{"speed": 1}', "is no topology: it is an object with latency"),
        ('{"latency": 0}', "latency is 0; it must be a number above 0"),
        ('{"latency": true}', "latency is True"),
        (json.dumps({"flops": "many"}), "flops is 'many'"),
    ],
)
def test_what_is_no_topology_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        topology_of(str(path))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(InputError, match="dgx is no topology that tpfx knows"):
        topology_of("dgx")
    with pytest.raises(InputError, match="cannot read the topology"):
        Topology.load("dgx")
