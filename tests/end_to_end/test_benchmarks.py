"""The benchmarks' arithmetic on made-up numbers, and that the programs run at all. Nothing is timed here."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console

from benchmarks import cold, phases, plan, reading, turns
from benchmarks.gpu import jobs
from benchmarks.llama import Llama, Sizes
from benchmarks.models import build, config, prompt
from benchmarks.others import Others
from benchmarks.remote import Remote
from benchmarks.samples import Spread, over_linear, speedup_table, speedups, stage_table

SAMPLES = {
    "whole": {"decode": [4.0, 8.0, 2.0], "beams": [1.0, 1.0, 1.0]},
    "split": {"decode": [2.0, 5.0, 1.0], "beams": [0.5, 2.0, 0.25]},
}


def text(table):
    console = Console(width=100, file=None)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_speedups_are_taken_within_a_round():
    ratios = speedups(SAMPLES, "whole")
    assert ratios["whole"]["decode"] == Spread(1.0, 1.0, 1.0)
    assert ratios["split"]["decode"] == Spread(2.0, 1.6, 2.0)  # medians of seconds would say 4 / 2
    assert ratios["split"]["beams"] == Spread(2.0, 0.5, 4.0)


def test_speedups_need_as_many_rounds_of_every_system():
    with pytest.raises(ValueError, match="shorter"):
        speedups({"whole": {"decode": [1.0, 2.0]}, "split": {"decode": [1.0]}}, "whole")


def test_speedup_table_shows_milliseconds_and_the_spread():
    shown = text(speedup_table("title", SAMPLES, "whole"))
    assert "2000.0 ms" in shown
    assert "× 2.00 (1.60–2.00)" in shown
    assert "× 2.00 (0.50–4.00)" in shown


def test_over_linear_is_relative_to_the_smallest():
    assert over_linear({16: 3.0, 8: 1.0, 32: 2.0}) == {16: 1.5, 8: 1.0, 32: 0.5}


def test_stage_table_sums_the_stages():
    shown = text(stage_table("title", {2: {"choose": 1.0, "divide": 0.0}, 4: {"choose": 3.0, "divide": 0.5}}))
    assert [line.split("│")[1:-1] for line in shown.splitlines() if "all" in line] == [
        [" all    ", "    1.000 ", "    3.500 ", "     1.75 "]
    ]
    assert "nan" in shown  # no ratio to nothing


def test_seconds_of_a_stage_inside_of_another_count_once(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0])
    monkeypatch.setattr(cold, "cpu_seconds", lambda: next(now))
    stages = cold.Stages()
    inner = stages.timed(lambda: None, "choose")
    stages.timed(inner, "Dynamo")()
    assert stages.seconds == {"else": 1.0, "Dynamo": 2.0 + 8.0, "choose": 4.0}


@pytest.mark.slow
def test_cold_starts_are_counted_by_stage():
    figures = cold.in_process("tpfx", 1, 2)
    assert {"Dynamo", "AOTAutograd", "choose", "rank 1", "programs", "runs"} <= figures["stages"].keys()
    assert sum(figures["stages"].values()) == pytest.approx(figures["seconds"], abs=0.5)
    assert figures["graphs"]["compile"] == 1


@pytest.mark.parametrize("name", ["llama", "opt", "gpt2"])
def test_models_have_the_layers_and_heads_asked_for(name):
    model = build(config(name, layers=1, hidden=48, heads=4))
    assert model.config.num_hidden_layers == 1
    assert model(prompt(3)).logits.shape == (1, 3, 32000)


def test_models_that_are_not_there():
    with pytest.raises(ValueError, match="no model 'bert' here; there are llama, opt, gpt2"):
        config("bert")
    with pytest.raises(ValueError, match="leave kv_heads out"):
        config("opt", kv_heads=4)


def test_systems_are_measured_in_turns():
    order = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def measure(self, phase):
            order.append((phase, self.name))
            return float(len(order))

    measured = turns.measure({"a": Fake("a"), "b": Fake("b")}, phases.WRITING, 2, None, lambda text: None)
    assert order == [(phase, name) for _ in range(2) for phase in phases.WRITING for name in "ab"]
    assert measured.samples["b"]["prefill"] == [2.0, 8.0]


def test_a_turn_that_others_disturb_is_taken_again_and_the_quietest_counts():
    class Fake:
        seconds = 0.0

        def measure(self, phase):
            self.seconds += 1.0
            return self.seconds

    class Loud:
        cores_used = iter([0.0, 1.5, 0.0, 0.6, 0.0, 0.9] + [0.0] * 4)  # a look before and one after each turn

        def wait(self):
            pass

        def cores(self):
            return next(self.cores_used)

    measured = turns.measure({"a": Fake()}, phases.WRITING, 1, Loud(), lambda text: None)
    assert measured.others == [0.6, 0.0, 0.0]
    assert measured.samples["a"] == {"prefill": [2.0], "decode": [4.0], "beams": [5.0]}


def test_others_leaves_out_what_this_process_does():
    others = Others(patience=0.0)
    before = time.process_time()
    while time.process_time() - before < 0.3:
        pass
    cores = others.cores()
    assert 0.0 <= cores < os.cpu_count()
    others.wait()  # without patience, at once


def test_seconds_of_a_token_leave_the_prompt_out(monkeypatch):
    clock = [0.0]

    class Model:
        def generate(self, ids, max_new_tokens, **_):
            clock[0] += 100.0 + 0.5 * max_new_tokens
            return ids

    monkeypatch.setattr(phases.time, "perf_counter", lambda: clock[0])
    assert phases.decode(Model(), torch.ones(1, 2)) == 0.5
    assert phases.beams(Model(), torch.ones(1, 2)) == 0.5


def test_plan_runs(tmp_path: Path):
    file = tmp_path / "figures.json"
    plan.main(layers=[1], devices=2, shape="tiny", json_file=file)
    figures = json.loads(file.read_text())
    assert {"infer_axes", "choose", "checks", "localize, codegen"} <= set(figures["stages"]["1"])


@pytest.mark.slow
def test_generate_runs(tmp_path: Path):
    file = tmp_path / "figures.json"
    small = [
        "--layers",
        "1",
        "--hidden",
        "48",
        "--repeats",
        "1",
        "--prompt",
        "4",
        "--device-compiler=eager",
        "--no-peer",
        "--patience",
        "0",
    ]
    command = [sys.executable, "-m", "benchmarks.generate", *small, "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    (figures,) = json.loads(file.read_text())["models"]
    assert figures["same_tokens"]
    assert set(figures["speedup"]) == {
        "unsharded, 1 thread",
        "unsharded, 2 threads",
        "tpfx, 2 devices, eager",
    }


@pytest.mark.slow
def test_train_runs(tmp_path: Path):
    file = tmp_path / "figures.json"
    small = [
        "--layers=1",
        "--hidden=48",
        "--heads=4",
        "--repeats=1",
        "--length=8",
        "--no-peer",
        "--patience=0",
    ]
    command = [sys.executable, "-m", "benchmarks.train", *small, "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    (figures,) = json.loads(file.read_text())["models"]
    assert figures["graphs"] == 1
    held = figures["bytes_held"]
    assert max(held["tpfx, 2 devices"]) <= 1.05 / 2 * sum(held["unsharded, 1 thread"])


def test_a_llama_in_plain_pytorch_is_a_llama():
    sizes = Sizes(vocabulary=96, hidden=48, inner=64, heads=4, layers=2)
    torch.manual_seed(0)
    expected = transformers.LlamaForCausalLM(reading.config(sizes)).eval()
    with torch.device("meta"):
        model = Llama(sizes)
    model.load_state_dict(expected.state_dict(), assign=True)
    ids = torch.randint(96, (2, 7))
    torch.testing.assert_close(model(ids), expected(ids).logits)


@pytest.mark.slow
def test_load_runs(tmp_path: Path):
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.load", "--gigabytes", "0.3", "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    figures = json.loads(file.read_text())
    for processes in figures.values():
        assert len(processes) == 3
        assert all(one["same"] for one in processes.values())
    for process in ("one for all", "rank 0", "rank 1"):
        found = figures["a Llama in plain PyTorch"][process]
        assert found["before"] < found["peak"] - found["own"] < 400e6


ECHO = """
import json, os, sys
for line in sys.stdin:
    question = json.loads(line)
    if question.get("phase") == "decode" and os.environ["WHO"] == "1":
        sys.exit(3)
    print("not an answer")
    print(json.dumps({"seconds": 10.0 + int(os.environ["WHO"]), **question}), flush=True)
"""


def test_remote_systems_are_all_asked_and_the_first_counts():
    remote = Remote([sys.executable, "-c", ECHO], {"a": 1}, [{"WHO": "0"}, {"WHO": "1"}])
    assert remote.ready == {"seconds": 10.0, "a": 1}
    assert remote.measure("prefill") == 10.0
    with pytest.raises(RuntimeError, match=r"ended \(3\) at {'phase': 'decode'}"):
        remote.measure("decode")
    remote.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_engines_runs(tmp_path: Path):
    file = tmp_path / "figures.json"
    small = ["--layers=1", "--hidden=48", "--repeats=1", "--prompt=4", "--patience=0"]
    command = [sys.executable, "-m", "benchmarks.engines", *small, "--json", str(file)]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    figures = json.loads(file.read_text())
    assert not figures["different"]
    assert len(figures["speedup"]) == 6


CHILD = """
import json, sys, time
while name := sys.stdin.readline().strip():
    if name == "timed":
        print(json.dumps({"ready": name}), flush=True)
        name += sys.stdin.readline().strip()
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        sys.exit(3)
    print("noise")
    print(json.dumps({"case": name, "ok": True}), flush=True)
"""


def test_a_case_that_hangs_or_dies_does_not_end_the_others(monkeypatch):
    monkeypatch.setattr(jobs, "STARTING", 0.0)
    found = []
    plan_ = jobs.Plan([sys.executable, "-c", CHILD], 2, time.monotonic() + 60, sys.stderr)
    names = ["one", "hangs", "two", "dies", "three"]
    jobs.run_all(plan_, [(name, 2.0 if name == "hangs" else 20.0) for name in names], found.append)
    assert {one["case"]: one.get("error", "ok") for one in found} == {
        "one": "ok",
        "two": "ok",
        "three": "ok",
        "hangs": "took too long",
        "dies": "the process ended (3)",
    }
    found.clear()
    jobs.time_all(plan_, [("timed", 20.0), ("dies", 20.0)], found.append, reserve=1.0)
    assert [one["case"] for one in found] == ["dies", "timedgo"]
    late = jobs.Plan(plan_.command, 2, time.monotonic(), sys.stderr)
    jobs.run_all(late, [("one", 20.0)], found.append)
    assert len(found) == 2


@pytest.mark.slow
def test_cases_of_gpus_are_rehearsed_without_one(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--devices", "cpu,cpu", "--small", "--jobs", "2"]
    only = ["right.module", "right.recorded.gpt2", "decode.1B.4_layers", "cost"]
    words = [word for name in only for word in ("--only", name)]
    out = tmp_path / "figures.jsonl"
    subprocess.run([*command, *words, "--seconds", "500", "--out", str(out)], check=True)
    assert {json.loads(line)["ok"] for line in out.read_text().splitlines()} == {True}
