"""What records runs, and recordings on a GPU; when there are some is what `test_replays.py` is about."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import tpfx
from tests.support.launches import Launched
from tests.support.models import inputs, tiny
from tpfx.execution.cuda_graphs import CudaGraphs, recorder_for
from tpfx.runtime.mesh import Mesh


def test_where_nothing_records() -> None:
    cuda = tuple(torch.device("cuda", at) for at in range(2))
    assert "several ranks of one process" in str(recorder_for(Mesh(cuda)))
    assert "several ranks of one process" in str(
        recorder_for(Mesh(cuda * 2, (0, 1), group=object(), shares=(2, 2)))
    )
    assert recorder_for(Mesh((torch.device("cpu"),) * 2)) == "cpu devices run no CUDA graphs"


@pytest.mark.cuda
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("device_compiler", ["native", "eager"])
def test_tokens_are_those_of_the_unsharded_model(ranks: int, device_compiler: str) -> None:
    plain = tiny("llama", num_hidden_layers=2).to("cuda:0")
    split: Any = tpfx.compile(
        copy.deepcopy(plain), ["cuda:0"] * ranks, mode="reduce-overhead", device_compiler=device_compiler
    )
    assert isinstance(recorder_for(Mesh((torch.device("cuda:0"),) * ranks)), CudaGraphs)
    given = {name: value.to("cuda:0") for name, value in inputs(plain).items()}
    for wanted in ({}, {"num_beams": 2}):
        arguments = {"max_new_tokens": 12, "min_new_tokens": 12, "disable_compile": True, **wanted}
        arguments["cache_implementation"] = "static"
        for _ in range(2):
            assert torch.equal(split.generate(**given, **arguments), plain.generate(**given, **arguments))
    report = tpfx.report(split)
    assert report.recordings > 0, report.not_recorded


def test_processes_record_and_replay_the_same_runs(two_processes: Launched) -> None:
    zero, one = two_processes.results("recorded")
    assert zero[:2] == one[:2]
    replays, collectives, _ = zero
    assert sum(replays) >= 3 and all(collectives)
