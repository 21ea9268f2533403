"""tpfx.load: a model without contents is planned, and each rank reads its slices from safetensors files."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

import tpfx
from tests.support.models import inputs, tiny
from tpfx.checkpoint import safetensors_files
from tpfx.checkpoint.safetensors_files import Checkpoint, Stored
from tpfx.kernels.slices import take
from tpfx.sharded_tensor.tensor import ShardedTensor


def hollow(config: transformers.PretrainedConfig) -> Any:
    with accelerate.init_empty_weights():
        return transformers.AutoModelForCausalLM.from_config(config).eval()


SAMPLE = [("gpt2", 3, 1)]
ALL = [*SAMPLE, *product(("llama", "gpt2", "bloom", "opt"), (2, 3), (2,))]


@pytest.mark.parametrize(
    ("name", "devices", "layers"),
    [pytest.param(*one, marks=[] if one in SAMPLE else [pytest.mark.slow]) for one in ALL],
)
def test_each_rank_reads_its_slices(
    name: str, devices: int, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an index with several files; bytes read are those held, and values those of the unsharded model."""
    reference = tiny(name, num_hidden_layers=layers)
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    read = []
    original = Stored.read

    def counted(self: Stored, shard: torch.Tensor, *given: Any) -> None:
        original(self, shard, *given)
        read.append(shard.nbytes)

    monkeypatch.setattr(Stored, "read", counted)
    model = tpfx.load(hollow(reference.config), tmp_path, ["cpu"] * devices)
    torch.testing.assert_close(tpfx.full_state_dict(model), dict(reference.state_dict()), rtol=0, atol=0)
    assert not any(weight.is_meta for weight in (*model.parameters(), *model.buffers()))
    stored = [weight for weight in model.parameters() if isinstance(weight, ShardedTensor)]
    assert sum(read) <= sum(sum(weight.resident_bytes) for weight in stored)
    given = inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**given).logits, reference(**given).logits)
    assert torch.equal(
        model.generate(**given, max_new_tokens=4, min_new_tokens=4),
        reference.generate(**given, max_new_tokens=4, min_new_tokens=4),
    )
    model(**given, labels=given["input_ids"]).loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.spare = nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(3, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x))) * self.scale


X = torch.randn(4, 8)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Net, Path]:
    reference = Net()
    save_file(reference.state_dict(), tmp_path / "model.safetensors")
    return reference, tmp_path / "model.safetensors"


def empty() -> Net:
    with torch.device("meta"):
        return Net()


def test_a_plain_module_and_what_no_graph_uses(saved: tuple[Net, Path]) -> None:
    reference, file = saved
    model = tpfx.load(empty(), file, ["cpu"] * 2, example_inputs=(X,))
    torch.testing.assert_close(model(X), reference(X))
    torch.testing.assert_close(tpfx.full_state_dict(model), dict(reference.state_dict()), rtol=0, atol=0)


def test_the_models_dtype_is_kept(saved: tuple[Net, Path]) -> None:
    model = tpfx.load(empty().bfloat16(), saved[1].parent, ["cpu"] * 2, example_inputs=(X.bfloat16(),))
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(model.up.weight.full(), saved[0].up.weight.detach().bfloat16(), rtol=0, atol=0)


def test_weights_with_contents_keep_them(saved: tuple[Net, Path]) -> None:
    reference, file = saved
    model = empty()
    model.down = nn.Linear(24, 8)
    down = copy.deepcopy(model.down)
    tpfx.load(model, file, ["cpu"] * 2, example_inputs=(X,))
    assert torch.equal(model.down.weight.full(), down.weight)
    assert torch.equal(model.up.weight.full(), reference.up.weight)


def in_several_files(state: dict[str, torch.Tensor], folder: Path, stem: str, variant: str = "") -> Path:
    """Two files and an index, as transformers and diffusers name them."""
    folder.mkdir()
    names = {name: f"{stem}{variant}-0000{1 + at % 2}-of-00002.safetensors" for at, name in enumerate(state)}
    for file in set(names.values()):
        save_file({name: state[name] for name in state if names[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": names}
    (folder / f"{stem}.safetensors.index{variant}.json").write_text(json.dumps(index))
    return folder


def folders(state: dict[str, torch.Tensor], tmp_path: Path) -> dict[str, Path]:
    """One set of weights, laid out in every way that is read."""
    found = {}
    for name, files in {
        "diffusers": ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"],
        "a variant": ["diffusion_pytorch_model.fp16.safetensors"],
        "beside a variant": ["model.safetensors", "model.fp16.safetensors"],
        "another name": ["net.safetensors", "config.json"],
    }.items():
        found[name] = tmp_path / name
        found[name].mkdir()
        for at, file in enumerate(files):
            save_file(state if not at else {}, found[name] / file)
    found["a file"] = found["diffusers"] / "diffusion_pytorch_model.safetensors"
    found["several"] = in_several_files(state, tmp_path / "several", "diffusion_pytorch_model")
    found["several of a variant"] = in_several_files(
        state, tmp_path / "fp16", "diffusion_pytorch_model", ".fp16"
    )
    found["without an index"] = in_several_files(state, tmp_path / "bare", "model")
    (found["without an index"] / "model.safetensors.index.json").unlink()
    found["an index"] = found["several"] / "diffusion_pytorch_model.safetensors.index.json"
    return found


def test_folders_of_other_libraries(tmp_path: Path) -> None:
    reference = Net().state_dict()
    for name, path in folders(reference, tmp_path).items():
        found = Checkpoint(path).tensors
        assert found.keys() == reference.keys(), name
        for key, stored in found.items():
            read = torch.empty_like(reference[key])
            stored.read(read, (), 0)
            assert torch.equal(read, reference[key]), (name, key)


def test_a_folder_of_diffusers_is_loaded(tmp_path: Path) -> None:
    reference = Net()
    path = folders(reference.state_dict(), tmp_path)["several"]
    model = tpfx.load(empty(), path, ["cpu"] * 3, example_inputs=(X,))
    torch.testing.assert_close(model(X), reference(X))


def problems(tmp_path: Path) -> dict[str, tuple[Any, str]]:
    state = Net().state_dict()
    short = {**state, "up.weight": state["up.weight"][:-1].clone()}
    without = {name: value for name, value in state.items() if name != "down.bias"}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pytorch_model.bin").touch()
    pipeline = tmp_path / "pipeline"
    for part in ("unet", "vae", "scheduler"):
        (pipeline / part).mkdir(parents=True)
        (pipeline / part / "config.json").touch()
    for part in ("unet", "vae"):
        save_file(state, pipeline / part / "diffusion_pytorch_model.safetensors")
    gone = in_several_files(state, tmp_path / "gone", "model")
    (gone / "model-00002-of-00002.safetensors").unlink()
    for name, content in {"short": short, "without": without}.items():
        save_file(content, tmp_path / f"{name}.safetensors")
    return {
        "shape": (tmp_path / "short.safetensors", r"up\.weight is \[24, 8\] in the model and \[23, 8\] in"),
        "missing": (
            tmp_path / "without.safetensors",
            r"1 of 7 weights are not in .*: down\.bias; it has down",
        ),
        "bin": (tmp_path / "bin", r"it has pytorch_model\.bin.*save_pretrained"),
        "bin file": (
            tmp_path / "bin" / "pytorch_model.bin",
            r"it is no safetensors file.*save_file\(torch\.load",
        ),
        "nothing": (tmp_path / "nowhere", r"nowhere holds no weights.*no such file.*snapshot_download"),
        "several": (tmp_path, r"several sets of weights, short\.safetensors, without\.safetensors: name one"),
        "pipeline": (pipeline, r"several models, in unet, vae: name one, as .*pipeline/unet"),
        "a file is gone": (gone, r"lacks 1 files that its index names, model-00002-of-00002\.safetensors"),
    }


@pytest.mark.parametrize(
    "which",
    ["shape", "missing", "bin", "bin file", "nothing", "several", "pipeline", "a file is gone"],
)
def test_files_that_do_not_fit(which: str, tmp_path: Path) -> None:
    path, message = problems(tmp_path)[which]
    model = empty()
    with pytest.raises(tpfx.ModelError, match=message):
        tpfx.load(model, path, ["cpu"] * 2, example_inputs=(X,))
    assert all(type(weight) is nn.Parameter and weight.is_meta for weight in model.parameters())


def test_what_fails_later_leaves_the_model_as_it_was(saved: tuple[Net, Path]) -> None:
    model = empty()
    before = dict(model.named_parameters())
    with pytest.raises(tpfx.InputError, match="pass example_inputs"):
        tpfx.load(model, saved[1], ["cpu"] * 2)
    with pytest.raises(tpfx.InputError, match=r"Net cannot be called with x float32\[4, 7\]: .*8, 24"):
        tpfx.load(model, saved[1], ["cpu"] * 2, example_inputs=(torch.ones(4, 7),))
    assert all(type(weight) is nn.Parameter and weight.is_meta for weight in model.parameters())
    assert list(before) == [name for name, _ in model.named_parameters()]


def test_a_file_that_cannot_be_read_to_its_end(
    saved: tuple[Net, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that have been read by then are without contents again."""
    read = Stored.read

    def fail(self: Stored, *given: Any) -> None:
        if self.key == "spare.weight":
            raise OSError("input/output error")
        read(self, *given)

    monkeypatch.setattr(Stored, "read", fail)
    model = empty()
    with pytest.raises(OSError, match="input/output error"):
        tpfx.load(model, saved[1], ["cpu"] * 2, example_inputs=(X,))
    assert all(type(weight) is nn.Parameter and weight.is_meta for weight in model.parameters())
    monkeypatch.undo()
    model = tpfx.load(model, saved[1], ["cpu"] * 2, example_inputs=(X,))
    torch.testing.assert_close(model(X), saved[0](X))


def test_buffers_that_no_checkpoint_has_are_named(tmp_path: Path) -> None:
    reference = tiny("llama")
    reference.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(reference.config)
    with pytest.raises(tpfx.ModelError, match=r"inv_freq.*init_empty_weights"):
        tpfx.load(model, tmp_path, ["cpu"] * 2)
    with pytest.raises(tpfx.ModelError, match=r"tpfx\.load"):
        tpfx.compile(hollow(reference.config), ["cpu"] * 2)


def test_the_progress_is_shown(saved: tuple[Net, Path], capsys: pytest.CaptureFixture[str]) -> None:
    tpfx.load(empty(), saved[1], ["cpu"] * 2, example_inputs=(X,), progress=True)
    assert "reading weights" in capsys.readouterr().err


def test_what_is_to_be_read_is_what_ranks_hold(
    saved: tuple[Net, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicated biases count once a rank."""
    expected, read = [], []
    monkeypatch.setattr(safetensors_files.Reading, "expect", lambda self, size: expected.append(size))
    monkeypatch.setattr(safetensors_files.Reading, "tell", lambda self, size: read.append(size))
    model = tpfx.load(empty(), saved[1], ["cpu"] * 2, example_inputs=(X,))
    held = sum(sum(weight.resident_bytes) for weight in (*model.parameters(), *model.buffers()))
    assert expected == [sum(read)] == [held]


@pytest.mark.parametrize(
    "dims",
    [
        (),
        ((1, (((0, 1), (3, 4)), ((1, 3), (4, 6)))),),
        ((0, (((0, 2),), ((2, 4),))), (2, (((0, 3),), ((0, 1), (2, 3))))),
        ((2, (((0, 3),), ())),),
    ],
)
def test_slices_of_a_file_are_parts_of_the_whole(
    dims: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = torch.randn(4, 6, 3)
    save_file({"a": whole}, tmp_path / "a.safetensors")
    stored = Stored(tmp_path / "a.safetensors", "a", (4, 6, 3), lambda size: None)
    for piece in (1, 2 * 6 * 3 * 4, safetensors_files.PIECE):  # bytes: a row at a time, two, all
        monkeypatch.setattr(safetensors_files, "PIECE", piece)
        for rank in (0, 1):
            for dtype in (torch.float32, torch.float64):
                expected = take(whole, dims, rank).to(dtype)
                shard = torch.full_like(expected, 9.0)
                stored.read(shard, dims, rank)
                assert torch.equal(shard, expected)


def test_numbers_and_vectors_of_a_file(tmp_path: Path) -> None:
    saved = {"number": torch.tensor(3.5), "vector": torch.arange(5.0), "empty": torch.zeros(0, 4)}
    save_file(saved, tmp_path / "a.safetensors")
    for name, value in saved.items():
        stored = Stored(tmp_path / "a.safetensors", name, tuple(value.shape), lambda size: None)
        read = torch.full_like(value, 9.0)
        stored.read(read, (), 0)
        assert torch.equal(read, value)
