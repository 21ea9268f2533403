"""The command line: its text is the library's, its errors are one line, its status says what happened."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from tpfx.capture import plan_offline
from tpfx.cli import main

ROOT = Path(__file__).parent.parent
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
    return str(plan_offline(model, 2, {"input_ids": torch.zeros(2, 128, dtype=torch.int64)})) + "\n"


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fresh_process_prints_what_the_library_says(expected, seed):
    """Byte for byte, whatever the order of sets and the addresses of objects."""
    command = [sys.executable, "-m", "tpfx", "dump", "llama", "--devices", "2", *SETTINGS]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT)}
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


def test_a_model_that_cannot_be_captured_is_status_1(run, monkeypatch):
    def forward(self, input_ids):
        raise RuntimeError("no such thing\nas this")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", forward)
    status, out, err = run("dump", "llama", "-n", 2, *SETTINGS)
    assert status == 1
    assert out == ""
    assert err.splitlines()[-1].startswith("tpfx: LlamaForCausalLM cannot be captured:")
    assert "Traceback" not in err


def test_bad_usage_is_status_2(run):
    for args in (["dump", "llama"], ["dump", "-n", 2], ["explode"], ["dump", "llama", "-n", "two"]):
        status, out, err = run(*args)
        assert status == 2
        assert out == ""
        assert "Error: " in err


def test_help_teaches_by_example(run):
    status, out, _ = run("dump", "--help")
    assert status == 0
    assert "tpfx dump llama --devices 2 --set num_hidden_layers=2" in out
    assert "dump" in run("--help")[1]
