"""Trainer, accelerate and peft on a split model: they do what they do to the unsharded one."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

import tpfx
from tests.support.models import inputs, tiny
from tests.support.sharded import CPUS, whole

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft, of transformers
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),  # a data loader, where there is no GPU
]


class Texts(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __init__(self, count: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, 97, (count, 12), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[at], "labels": self.ids[at]}


def trainer(model: nn.Module, folder: Path, **settings: Any) -> Trainer:
    """20 steps of batches of 2, each step's loss logged."""
    settings = {"max_steps": 20, "save_strategy": "no", **settings}
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        logging_steps=1,
        learning_rate=1e-3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        log_level="error",
        dataloader_pin_memory=False,
        **settings,
    )
    return Trainer(model=model, args=arguments, train_dataset=Texts(), eval_dataset=Texts(8))


def losses(done: Trainer) -> list[float]:
    return [entry["loss"] for entry in done.state.log_history if "loss" in entry]


def test_trainer_has_the_same_losses_and_saves_what_others_can_load(tmp_path: Path) -> None:
    sizes = {"attention_dropout": 0.1, "num_hidden_layers": 1}
    runs, models = [], []
    for name, split in (("plain", False), ("split", True)):
        model = tiny("llama", **sizes)
        models.append(tpfx.compile(model, CPUS) if split else model)
        run = trainer(models[-1], tmp_path / name, save_strategy="steps", save_steps=10)
        run.train()
        runs.append(run)
    assert len(losses(runs[1])) == 20
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), abs=1e-4)
    assert runs[1].evaluate()["eval_loss"] == pytest.approx(runs[0].evaluate()["eval_loss"], abs=1e-4)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "split" / "checkpoint-20")
    torch.testing.assert_close(loaded.state_dict(), tpfx.full_state_dict(models[1]), rtol=0, atol=0)
    resumed = trainer(tpfx.compile(tiny("llama", **sizes), CPUS), tmp_path / "split")
    resumed.train(resume_from_checkpoint=str(tmp_path / "split" / "checkpoint-10"))
    assert losses(resumed)[-10:] == pytest.approx(losses(runs[0])[-10:], abs=1e-4)


def test_trainer_with_half_precision_and_accumulated_gradients(tmp_path: Path) -> None:
    """accelerate wraps `forward`; sums of rounded products come in another order."""
    runs = []
    for split in (False, True):
        model = tiny("gpt2", num_hidden_layers=1)
        model = tpfx.compile(model, CPUS) if split else model
        runs.append(trainer(model, tmp_path, bf16=True, gradient_accumulation_steps=2, max_steps=4))
        runs[-1].train()
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=2e-3)
    assert tpfx.report(model).graphs >= 1  # though `model.forward` is accelerate's by now


TARGETS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}


def adapted(name: str) -> nn.Module:
    torch.manual_seed(3)
    settings = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules=TARGETS[name],
        fan_in_fan_out=name == "gpt2",
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(tiny(name, num_hidden_layers=1), settings)
    for weight in (value for key, value in model.named_parameters() if "lora_B" in key):
        nn.init.normal_(weight, std=0.02)
    return model.train()


@pytest.mark.parametrize("name", [pytest.param("llama", marks=pytest.mark.slow), "gpt2"])
def test_adapters_are_trained_saved_and_merged(name: str, tmp_path: Path) -> None:
    plain, split = adapted(name), tpfx.compile(adapted(name), CPUS)
    given = inputs(plain)
    before = {key: value.detach().clone() for key, value in plain.named_parameters()}
    for model in (plain, split):
        optimizer = torch.optim.AdamW(
            [weight for weight in model.parameters() if weight.requires_grad], lr=0.01
        )
        for step in range(5):
            torch.manual_seed(step)
            optimizer.zero_grad()
            model(**given, labels=given["input_ids"]).loss.backward()
            optimizer.step()
    for (key, one), two in zip(plain.named_parameters(), split.parameters(), strict=True):
        torch.testing.assert_close(whole(two), one.detach(), atol=1e-4, rtol=1e-3, msg=key)
        assert torch.equal(whole(two), before[key]) == ("lora" not in key), key
    split.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(name, num_hidden_layers=1), tmp_path)
    for (key, one), two in zip(loaded.named_parameters(), split.parameters(), strict=True):
        assert torch.equal(one, whole(two)), key
    merged = split.merge_and_unload()
    expected = plain.merge_and_unload().state_dict()
    torch.testing.assert_close(tpfx.full_state_dict(merged), expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(
            merged.eval()(**given).logits, loaded.eval()(**given).logits, atol=1e-5, rtol=1e-4
        )


def test_data_parallel_of_a_split_model_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Trainer makes it where its process sees several GPUs."""
    monkeypatch.setattr(
        import_module("torch.nn.parallel.data_parallel"), "_get_available_device_type", lambda: "cuda"
    )
    plain, model = nn.Linear(8, 8), nn.Linear(8, 8)
    model.load_state_dict(plain.state_dict())
    wrapped, x = nn.DataParallel(tpfx.compile(model, CPUS)), torch.randn(4, 8)
    wrapped(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(wrapped(x), plain(x))
    torch.testing.assert_close(model.weight.grad.full(), plain.weight.grad)
