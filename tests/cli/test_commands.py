"""The command line: its text is the library's, its errors are one line, its status says what happened."""

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from typer.testing import CliRunner

import tpfx
from tests.support import fresh_python
from tpfx.cli import app, diff, main, plan
from tpfx.cli.topology import measure
from tpfx.dump.text import dump_text
from tpfx.plan.offline import plan_offline
from tpfx.plan.plan import Plan
from tpfx.planning.topology import Topology

ROOT = Path(__file__).parents[2]
TINY = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
}
SETTINGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def run(monkeypatch, capsys):
    """Call the command line in this process: `(status, output, errors)`."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["tpfx", *map(str, args)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return exit_.value.code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def expected():
    """What the library says of the tiny Llama, on 2 devices."""
    config = transformers.LlamaConfig(**TINY)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    return dump_text(plan_offline(model, 2, {"input_ids": torch.zeros(2, 128, dtype=torch.int64)})) + "\n"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fresh_process_prints_what_the_library_says(expected, seed):
    """Byte for byte, whatever the order of sets and the addresses of objects."""
    command = [sys.executable, "-m", "tpfx", "dump", "llama", "--devices", "2", *SETTINGS]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT), "TPFX_PROGRESS": "1"}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout == expected
    assert "planning for 2 devices" in done.stderr


def test_a_directory_is_read_and_its_fields_can_be_changed(run, tmp_path):
    config = {**transformers.LlamaConfig(**TINY).to_dict(), "dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    status, out, _ = run(
        "dump", tmp_path, "-n", 3, "--set", "vocab_size=300", "--batch", 4, "--length", 9, "--no-symbolic"
    )
    assert status == 0
    assert out.startswith("# forward on 3 devices")
    assert "embed_tokens.weight                       bf16[300/3, 64]" in out
    assert "i64[4, 9]" in out
    assert "s0" not in out


def test_a_field_may_be_set_by_any_of_its_names(run):
    args = [word for key in ("n_embd=32", "num_attention_heads=2", "n_layer=1") for word in ("--set", key)]
    status, out, _ = run("dump", "gpt2", "-n", 2, *args, "--no-symbolic")
    assert status == 0
    assert "h.0.attn.c_attn.weight  f32[32, 96/2]" in out
    assert "h.1." not in out


ERRORS = {
    "unknown type": (["lama", "-n", 2], "lama is not a transformers model type; did you mean"),
    "no such directory": (["./nowhere", "-n", 2], "./nowhere is not a directory"),
    "no config": ([ROOT / "tests", "-n", 2], "has no config.json"),
    "no devices": (["llama", "-n", 0], "--devices 0: it must be at least 1"),
    "no tokens": (["llama", "-n", 2, "--length", 0], "--length 0: it must be at least 1"),
    "unknown field": (["llama", "-n", 2, "--set", "num_layers=1"], "did you mean num_hidden_layers?"),
    "not a pair": (["llama", "-n", 2, "--set", "hidden_size"], "write KEY=VALUE"),
    "wrong value": (
        ["llama", "-n", 2, "--set", "hidden_size=wide"],
        "cannot set hidden_size in a llama config",
    ),
    "not text": (["wav2vec2", "-n", 2], "takes input_values"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_input_is_one_line_and_status_2(run, name):
    args, message = ERRORS[name]
    status, out, err = run("dump", *args)
    assert status == 2
    assert out == ""
    assert message in err.splitlines()[-1]
    assert sum(line.startswith("tpfx: ") for line in err.splitlines()) == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_a_broken_config_is_one_line_and_status_2(run, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    status, _, err = run("dump", tmp_path, "-n", 2)
    assert status == 2
    assert err.startswith("tpfx: ")
    assert str(tmp_path) in err
    assert len(err.splitlines()) == 1


def test_a_model_that_cannot_be_captured_is_status_3(run, monkeypatch):
    def forward(self, input_ids):
        raise RuntimeError("no such thing\nas this")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    status, out, err = run("dump", "llama", "-n", 2, *SETTINGS)
    assert status == 3
    assert out == ""
    assert err.splitlines()[-1].startswith("tpfx: LlamaForCausalLM cannot be captured:")
    assert "Traceback" not in err


def test_bad_usage_is_status_2(run):
    for args in (["dump", "llama"], ["dump", "-n", 2], ["explode"], ["dump", "llama", "-n", "two"]):
        status, out, err = run(*args)
        assert status == 2
        assert out == ""
        assert err.startswith("tpfx: ") and err.endswith(" --help says what there is\n")
        assert err.count("\n") == 1


COMMANDS = (
    "plan",
    "dump",
    "explain",
    "diff",
    "verify",
    "export",
    "doctor",
    "cache",
    "topology",
    "topology measure",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(run, command):
    status, out, _ = run(*command.split(), "--help")
    assert status == 0
    assert re.search(rf"^ +tpfx {command}", out, re.MULTILINE)
    assert re.search(rf"^  {command.split()[0]} ", run("--help")[1], re.MULTILINE)


def test_a_typo_is_answered_with_what_was_meant(run):
    assert "--devices" in run("plan", "llama", "--devcies", 2)[2]
    assert "Did you mean 'plan'?" in run("plna", "llama")[2]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("pl", ["plan"]), ("plan llama --dev", ["--devices", "--device-type"]), ("plan --topology t", ["t4"])],
)
def test_the_shell_completes(run, monkeypatch, typed, offered):
    words = ["tpfx", *typed.split()]
    monkeypatch.setenv("_TPFX_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    status, out, _ = run()
    assert status == 0 and out.split() == offered


def test_without_a_command_there_is_help(run):
    status, out, err = run()
    assert (status, out) == (2, "") and err.startswith("Usage: tpfx ")


def test_a_folder_that_is_called_like_a_model_type_is_meant_by_its_path(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    words = ("dump", "-n", 2, *SETTINGS, "--stage", "axes", "--no-symbolic")
    status, out, err = run(*words, "llama")
    assert status == 0 and "embed_tokens" in out
    assert "llama is taken as the model type; the folder is ./llama" in err
    status, _, err = run(*words, "./llama")
    assert status == 2 and "./llama has no config.json" in err


def test_a_name_of_the_hub_is_answered_with_how_to_get_its_config(run):
    err = run("plan", "meta-llama/Llama-3.1-8B", "-n", 2)[2]
    assert "hf download meta-llama/Llama-3.1-8B config.json --local-dir Llama-3.1-8B" in err


@pytest.mark.parametrize("command", ["plan llama -n 2 -o", "topology measure cpu cpu -o"])
def test_what_cannot_be_written_is_said_at_once(run, monkeypatch, tmp_path, command):
    """Before anything is done for it."""
    for name in ("build", "capture_generation"):
        monkeypatch.setitem(plan.__globals__, name, lambda *_, **__: pytest.fail("it has begun"))
    monkeypatch.setitem(measure.__globals__, "measured", lambda *_: pytest.fail("it has begun"))
    status, out, err = run(*command.split(), tmp_path / "none" / "plan.json")
    assert (status, out) == (3, "")
    assert err.startswith(
        f"tpfx: cannot write {tmp_path}/none/plan.json: No such file or directory; make the "
    )


@pytest.mark.parametrize("raised", [None, RuntimeError("of C++, that had it")])
def test_ctrl_c_is_quiet(run, monkeypatch, raised):
    """Also where what was called makes another error of it."""

    def built(*_, **__):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if raised is None:
                raise
        raise raised

    monkeypatch.setitem(plan.__globals__, "build", built)
    handler = signal.getsignal(signal.SIGINT)
    assert run("plan", "llama", "-n", 2) == (130, "", "")
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_fault_of_tpfx_is_no_answer(run, monkeypatch):
    monkeypatch.setitem(plan.__globals__, "build", lambda *_, **__: {}["it"])
    status, out, err = run("plan", "llama", "-n", 2)
    assert (status, out) == (3, "")
    assert "KeyError: 'it'" in err and "please report it" in err.splitlines()[-1]


def test_who_reads_no_more_is_no_answer(run, monkeypatch):
    """As head does: it is quiet, and neither yes nor no."""

    def differences(*_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setitem(diff.__globals__, "differences", differences)
    monkeypatch.setattr(Plan, "load", lambda _: None)
    for name in ("stdout", "stderr"):  # typer puts others in their places
        monkeypatch.setattr(sys, name, getattr(sys, name))
    assert run("diff", "a.json", "b.json") == (141, "", "")


def test_a_full_disk_is_a_sentence():
    """Which standard output may be on, too."""
    command = [sys.executable, "-m", "tpfx", "--version"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 3
    assert done.stderr == (
        "tpfx: standard output: No space left on device; make room there, or name another place\n"
    )


# Plans, explanations, verification, export.


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A config.json of the tiny Llama, and plans for 2 and for 3 devices beside it."""
    path = tmp_path_factory.mktemp("tiny-llama")
    (path / "config.json").write_text(json.dumps(transformers.LlamaConfig(**TINY).to_dict()))
    return path


@pytest.fixture(scope="module")
def plans(directory):
    """Plans for 2 and for 3 devices, written by the command line; and what it printed."""
    printed = {}
    for devices in (2, 3):
        given = "--phase decode --batch 2 --length 16"
        words = f"plan {directory} -n {devices} {given} -o {directory}/{devices}.json"
        result = CliRunner().invoke(app, words.split(), catch_exceptions=False)
        assert result.exit_code == 0
        printed[devices] = result.stdout
    return printed


def test_a_plan_is_written_and_followed(plans, directory):
    plan = Plan.load(directory / "2.json")
    assert plans[2].endswith(f"\n\n{plan}\n")
    assert [graph.phase for graph in plan.graphs] == ["prefill", "decode"]
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY))
    ids, greedy = torch.randint(3, 250, (2, 16)), {"max_new_tokens": 3, "min_new_tokens": 3}
    expected = model.eval().generate(ids, do_sample=False, pad_token_id=0, **greedy)
    split = tpfx.compile(model, ["cpu", "cpu"], plan=directory / "2.json")
    assert torch.equal(split.generate(ids, do_sample=False, pad_token_id=0, **greedy), expected)
    report = tpfx.report(split)
    assert report.followed == [("prefill", 1), ("decode", 1)]
    assert report.bytes_per_device == plan.bytes_per_device


def test_plans_are_compared(run, plans, directory):
    status, out, _ = run("diff", directory / "2.json", directory / "3.json")
    assert status == 1
    assert "devices: 2 → 3" in out
    assert run("diff", directory / "2.json", directory / "2.json") == (0, "", "")
    status, out, _ = run("plan", directory, "--compare", "1,4", "--length", 16)
    assert status == 0
    assert "4 devices" in out and "fits H100, 76 GiB" in out
    assert "prefill: kept for later calls" in out
    scarce = ["--length", 16, "--memory", 0.001]
    assert run("plan", directory, "--compare", "1,4", *scarce)[0] == 1


def test_what_is_printed_without_a_file_is_the_plan(run, plans, directory):
    status, out, _ = run(
        "plan", directory, "-n", 2, "--batch", 2, "--length", 16, "--phase", "decode", "--json"
    )
    assert status == 0
    assert out == (directory / "2.json").read_text() + "\n"


def test_the_verdict_comes_first_and_is_the_status(run, directory):
    """Fewer devices that hold it are looked for: one does."""
    status, out, _ = run("plan", directory, "-n", 2, "--length", 16, "--topology", "t4")
    first, room, speed, *_ = out.splitlines()
    assert status == 0 and first.startswith("fits: 2 × T4, ") and room.startswith("room: ")
    assert "writes " in speed and "1 device would be faster, and hold it" in speed
    assert "LlamaForCausalLM on 2 devices" in out
    small = ("plan", directory, "-n", 2, "--length", 16, "--topology", "t4", "--memory", 1.0001)
    status, out, _ = run(*small)
    assert status == 1 and out.startswith("does not fit: 2 × T4, ")
    status, out, _ = run(*small, "--json")
    assert status == 1 and json.loads(out)["devices"] == 2


def test_an_explanation_names_the_ways(run, directory):
    status, out, _ = run("explain", directory, "layers.0.self_attn.o_proj", "-n", 2, "--length", 16)
    assert status == 0
    assert "layers.0.add: its other operands are no partial sums" in out
    assert "(chosen)" in out


def test_stages_phases_and_formats_of_a_dump(run, directory):
    status, out, _ = run("dump", directory, "-n", 2, "--stage", "rank1")
    assert status == 0
    assert "_c10d_functional.all_reduce_" in out
    compile(out, "rank1", "exec")
    status, out, _ = run("dump", directory, "-n", 2, "--stage", "axes")
    assert "model.layers.0.self_attn.k_proj.weight" in out or "layers.0.self_attn.k_proj.weight" in out
    assert "all_reduce" not in out
    assert run("dump", directory, "-n", 2, "--stage", "captured")[1].startswith("graph()")
    status, out, _ = run("dump", directory, "-n", 2, "--format", "json", "--phase", "decode")
    graphs = json.loads(out)
    assert len(graphs) == 2
    assert graphs[1]["results"][-1]["name"] == "lm_head"
    status, out, _ = run("dump", directory, "-n", 2, "--phase", "train", "--length", 8)
    assert out.startswith("# forward and backward on 2 devices")
    assert "gathered for the caller" not in out.partition("# results")[0]


def test_a_graph_after_each_pass(run, directory):
    def after(stage):
        status, out, _ = run("dump", directory, "-n", 2, "--no-symbolic", "--length", 8, "--stage", stage)
        assert status == 0
        return [" ".join(line.split()) for line in out.splitlines()]

    weight = "layers.0.self_attn.o_proj.weight f32[64, 64]"
    normalized, inferred, chosen, inserted = map(after, ("normalize", "infer_axes", "choose", "insert"))
    assert weight in normalized
    assert any(line.startswith(f"{weight} # ") for line in inferred)
    (structure,) = [line.partition(" # ")[2] for line in inferred if line.startswith(weight)]
    axis = structure.split("(")[-1].partition(":")[0]
    assert f"layers.0.self_attn.o_proj.weight f32[64, 64/{axis}] # {structure}" in chosen
    assert f"layers.0.self_attn.o_proj.weight f32[64, 64/2] # {structure}" in inserted
    assert not any("all_reduce" in line for line in chosen)
    assert inserted == after("parallel")[1:]


def test_layers_that_are_alike_are_written_once(run, directory):
    folded = run("dump", directory, "-n", 2, "--set", "num_hidden_layers=4")[1]
    whole = run("dump", directory, "-n", 2, "--set", "num_hidden_layers=4", "--unfold")[1]
    assert "# layers.1–3 ×3\n" in folded
    assert "layers.0–3.mlp.up_proj.weight" in folded
    assert "# layers.3\n" in whole
    assert folded.splitlines()[0] == whole.splitlines()[0]

    def ops(text):
        """Those of the second layer; the letters of axes, in comments, go by what has been written before."""
        return [line.partition("#")[0].split() for line in text.splitlines() if line.startswith("layers.1.")]

    assert ops(folded) == [words for words in ops(whole) if "=" in words]


def test_a_model_is_verified(run, directory):
    status, out, _ = run("verify", directory, "-n", 2, "--set", "num_hidden_layers=1")
    assert status == 0
    assert re.fullmatch(r"on 2 devices: 1 graph, \d+ nodes compared, 4 collectives: right\n", out)
    assert not logging.root.manager.disable, "what is told later is told"


def test_a_function_of_a_module_is_a_model(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_cli.py").write_text(
        "import torch\n"
        "def build():\n"
        "    up, down = torch.nn.Linear(64, 128), torch.nn.Linear(128, 64)\n"
        "    model = torch.nn.Sequential(up, torch.nn.ReLU(), down)\n"
        "    return model, (torch.zeros(8, 64),)\n"
        "def broken():\n"
        "    raise ValueError('no such file: weights.bin')\n"
        "def number():\n"
        "    return 3\n"
    )
    status, out, _ = run("dump", "mine_of_cli:build", "-n", 2)
    assert status == 0
    assert "0.weight  f32[128/2, 64]" in out
    for name, message in (
        ("broken", "mine_of_cli:broken failed: ValueError: no such file: weights.bin"),
        ("number", "returned a int, not an nn.Module"),
        ("none", "mine_of_cli has no function 'none'"),
    ):
        status, out, err = run("dump", f"mine_of_cli:{name}", "-n", 2)
        assert (status, out) == (2, "")
        assert message in err.splitlines()[-1]
    status, _, err = run("dump", "no_such_module:build", "-n", 2)
    assert status == 2
    assert "cannot import no_such_module: ModuleNotFoundError" in err.splitlines()[-1]


def test_exported_plans_are_python(run, directory):
    status, out, _ = run("export", directory, "-n", 2, "--to", "hf-tp-plan")
    assert status == 0
    found = {}
    exec(compile(out, "plan", "exec"), found)
    assert found["plan"]["model.layers.*.self_attn.q_proj"] == "colwise"


WRONG = {
    "no devices": (["plan", "llama"], "name --devices N, or --compare N,N,… for several"),
    "devices twice": (["plan", "llama", "-n", 2, "--compare", "2,4"], "name --devices N, or --compare"),
    "files of several": (["plan", "llama", "--compare", "2,4", "--json"], "--json and --output of one"),
    "no numbers": (["plan", "llama", "--compare", "two"], "--compare two: write numbers of devices"),
    "zero": (["plan", "llama", "-n", 0], "--devices 0: it must be at least 1"),
    "topology": (["plan", "llama", "-n", 2, "--topology", "dgx"], "dgx is no topology that tpfx knows"),
    "stage": (
        ["dump", "llama", "-n", 2, "--stage", "rank2"],
        "it is captured, normalize, simplify, infer_axes, list_splits, fingerprint, match_pinned, choose, "
        "divide, insert, axes, parallel, or rank0 to rank1",
    ),
    "no plan": (
        ["diff", "none.json", "none.json"],
        "cannot read the plan none.json: No such file or directory; tpfx plan MODEL --devices N --output",
    ),
    "no weights": (["verify", "llama", "-n", 2, "--real"], "--real takes a directory with weights"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_to_any_command_is_one_line_and_status_2(run, name):
    args, message = WRONG[name]
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_topology_is_measured(run, tmp_path):
    assert run("topology", "measure", "cpu", "cpu", "-o", tmp_path / "here.json")[0] == 0
    found = Topology.load(tmp_path / "here.json")
    assert 1e-6 < found.latency < 1
    assert 1e6 < found.bandwidth < 1e13
    assert 1e8 < found.flops < 1e15


def test_the_versions_are_printed(run) -> None:
    assert run("--version") == (0, f"tpfx {tpfx.__version__}, torch {torch.__version__}\n", "")


def test_own_modules_need_no_transformers():
    """Nor does the doctor, which says that they are not there."""
    done = fresh_python.run(
        "import sys, types, importlib.metadata as metadata\n"
        "sys.modules['transformers'] = sys.modules['accelerate'] = None\n"
        "import torch\n"
        "from tpfx.cli import app, checks\n"
        "layers = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)\n"
        "net = lambda: (torch.nn.Sequential(*layers), (torch.zeros(2, 8),))\n"
        "sys.modules['mine'] = types.SimpleNamespace(net=net)\n"
        "def version(name, found=checks.version):\n"
        "    if name == 'transformers': raise metadata.PackageNotFoundError\n"
        "    return found(name)\n"
        "checks.version = version\n"
        "assert not app(['plan', 'mine:net', '-n', '2'], standalone_mode=False)\n"
        "assert not app(['doctor', '--no-links'], standalone_mode=False)\n"
    )
    assert "fits: 2 × H100" in done and "2 inputs" in done
    assert "transformers   not installed" in done and "no problem is known" in done


def test_without_transformers_the_extra_is_named(run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models.auto.configuration_auto", None)
    status, output, errors = run("plan", "llama", "-n", 2)
    assert (status, output) == (2, "")
    assert "pip install 'tpfx[transformers]'" in errors and errors.count("\n") == 1


def test_what_is_kept_is_shown_and_cleared(run, monkeypatch, tmp_path):
    """Nothing else in the folder goes."""
    monkeypatch.setenv("TPFX_CACHE_DIR", str(tmp_path))
    assert run("cache") == (0, f"{tmp_path}\nplans          0 0 B\nexecutors      0 0 B\n", "")
    for file, size in (("plans/a.json", 1000), ("plans/b.json", 24), ("tpfx_executor-2/x.so", 3), ("own", 9)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"x" * size)
    shown = f"{tmp_path}\nplans          2 1 KiB\nexecutors      1 3 B\n"
    assert run("cache") == (0, shown, "")
    assert run("cache", "--clear") == (0, f"{shown}cleared\n", "")
    assert run("cache")[1] == f"{tmp_path}\nplans          0 0 B\nexecutors      0 0 B\n"
    assert (tmp_path / "own").exists()
