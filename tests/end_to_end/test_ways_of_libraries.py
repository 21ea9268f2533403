"""Ways in which people use models with transformers, peft and Lightning; `ways.md` lists them."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache
from transformers.generation.streamers import BaseStreamer

import tpfx
from tests.support.compare import largest_error
from tests.support.models import tiny
from tests.support.nets import Net
from tests.support.sharded import CPUS, whole

IDS = torch.randint(3, 256, (2, 7), generator=torch.Generator().manual_seed(1))

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft, of transformers
    pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning"),  # a data loader, where there is no GPU
]

GREEDY = {"do_sample": False, "max_new_tokens": 3}


def plain(values: Any) -> Any:
    """Tensors as they are now, whole, with their own memory."""
    if isinstance(values, torch.Tensor):
        return whole(values).detach().clone()
    return [plain(value) for value in values] if isinstance(values, (list, tuple)) else values


def same(way: Callable[[Any], Any], make: Callable[[], nn.Module], grad: bool = False) -> nn.Module:
    """A way gives the same of a model and of it split, which is returned."""
    results = []
    for model in (make(), tpfx.compile(make(), CPUS)):
        torch.manual_seed(11)
        with torch.set_grad_enabled(grad):
            results.append(plain(way(model)))
    assert largest_error(*results) < 1e-4
    assert [one for one in results[1] if not isinstance(one, (torch.Tensor, list))] == [
        one for one in results[0] if not isinstance(one, (torch.Tensor, list))
    ]
    return model


def llama(**sizes: Any) -> Any:
    return tiny("llama", num_hidden_layers=1, **sizes)


class Streamer(BaseStreamer):
    def __init__(self) -> None:
        self.queue: queue.Queue[list[int] | None] = queue.Queue()

    def put(self, value: torch.Tensor) -> None:
        self.queue.put(value.flatten().tolist())

    def end(self) -> None:
        self.queue.put(None)


@pytest.mark.slow
def test_tokens_are_streamed_from_a_thread() -> None:
    def stream(model: Any) -> list[Any]:
        streamer = Streamer()
        given = {"inputs": IDS[:1], "streamer": streamer, **GREEDY}
        thread = threading.Thread(target=model.generate, kwargs=given)
        thread.start()
        tokens = list(iter(lambda: streamer.queue.get(timeout=60), None))
        thread.join()
        return [str(tokens)]

    same(stream, llama)


@pytest.mark.slow  # tests/end_to_end/test_caches.py has each of the edits
def test_a_prompts_cache_is_used_again_and_edited() -> None:
    """Copied for each prompt; kept from a generation; rows repeated and chosen; entries dropped."""

    def reuse(model: Any) -> list[Any]:
        cache = DynamicCache(config=model.config)
        model(IDS, past_key_values=cache)
        ends = [torch.cat([IDS, torch.full((2, 2), last)], 1) for last in (5, 9)]
        said = [model.generate(one, past_key_values=copy.deepcopy(cache), **GREEDY) for one in ends]
        done = model.generate(IDS, return_dict_in_generate=True, **GREEDY)
        more = torch.cat([done.sequences, IDS[:, :2]], 1)
        said.append(model.generate(more, past_key_values=done.past_key_values, **GREEDY))
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 1, 1]))
        cache.batch_select_indices(torch.tensor([1, 3]))
        kept = [0, 2, 3, 6]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, kept], layer.values[:, :, kept]
        positions = torch.full((2, 2), 7)
        said.append(model(IDS[:, :2], past_key_values=cache, position_ids=positions).logits)
        return said

    same(reuse, llama)


@pytest.mark.slow
def test_a_static_cache_is_emptied_and_used_again() -> None:
    def reuse(model: Any) -> list[Any]:
        cache, said = StaticCache(config=model.config, max_cache_len=16), []
        for more in range(2):
            said.append(model.generate(IDS + more, past_key_values=cache, **GREEDY))
            cache.reset()
        return said

    same(reuse, llama)


def test_a_loop_of_ones_own_and_embeddings() -> None:
    def loop(model: Any) -> list[Any]:
        output, said = model(inputs_embeds=model.get_input_embeddings()(IDS), use_cache=True), []
        for _ in range(3):
            token = output.logits[:, -1:].argmax(-1)
            said.append(token)
            output = model(token, past_key_values=output.past_key_values, return_dict=False)
            output = transformers.modeling_outputs.CausalLMOutputWithPast(
                logits=output[0], past_key_values=output[1]
            )
        return [*said, model(IDS, logits_to_keep=2).logits]

    same(loop, llama)


def test_attention_weights_are_asked_for_by_switching_to_eager() -> None:
    def look(model: Any) -> list[Any]:
        before = model(IDS).logits
        model.set_attn_implementation("eager")
        seen = model(IDS, output_attentions=True, output_hidden_states=True)
        return [before, seen.logits, *seen.attentions, *seen.hidden_states]

    same(look, llama)


@pytest.mark.slow
def test_a_pipeline() -> None:
    vocabulary = models.WordLevel({f"w{at}": at for at in range(256)}, unk_token="w3")
    words = Tokenizer(vocabulary)
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="w0", unk_token="w3", padding_side="left"
    )

    def generate(model: Any) -> list[Any]:
        pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
        return [str(pipeline(["w5 w6 w7", "w9"], batch_size=2, **GREEDY))]

    same(generate, llama)


def test_a_loss_on_hidden_states_and_a_cache_while_training() -> None:
    def train(model: Any) -> list[Any]:
        output = model(IDS, output_hidden_states=True, use_cache=True)
        pooled = F.normalize(output.hidden_states[-1].mean(1), dim=-1)
        loss = F.cross_entropy(pooled @ pooled.T / 0.1, torch.arange(2)) + output.logits.logsumexp(-1).mean()
        loss.backward()
        return [loss, *(weight.grad for weight in model.parameters())]

    same(train, lambda: llama().train(), grad=True)


@pytest.mark.slow
def test_a_reference_copy_and_labels_left_out() -> None:
    """Preference training: a frozen copy beside the model; another loss with -100 in its labels."""

    def train(model: Any) -> list[Any]:
        reference = copy.deepcopy(model).eval().requires_grad_(False)
        optimizer, seen = torch.optim.SGD(model.parameters(), 1e-2), []  # AdamW would enlarge noise
        labels = IDS.masked_fill(torch.arange(7) < 3, -100)
        kl = nn.KLDivLoss(reduction="batchmean", log_target=True)
        for _ in range(2):
            with torch.no_grad():
                expected = reference(IDS).logits.log_softmax(-1)
            logits = model(IDS, labels=labels)
            loss = logits.loss + kl(logits.logits.log_softmax(-1), expected)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss)
        return [*seen, reference(IDS).logits, *model.parameters()]

    same(train, lambda: llama().train(), grad=True)


def adapted(**settings: Any) -> Any:
    torch.manual_seed(3)
    return peft.get_peft_model(llama(), lora(["q_proj", "down_proj"], **settings))


def lora(targets: list[str], **settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=4, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM", **settings
    )


def test_adapters_are_disabled_scaled_merged_and_unmerged() -> None:
    def use(model: Any) -> list[Any]:
        seen = [model(IDS).logits]
        with model.disable_adapter():
            seen.append(model(IDS).logits)
        for module in model.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling["default"] = 3.0
        seen.append(model(IDS).logits)
        model.merge_adapter()
        seen.append(model(IDS).logits)
        model.unmerge_adapter()
        return [*seen, model(IDS).logits]

    same(use, adapted)


@pytest.mark.slow
def test_adapters_are_added_switched_and_mixed_in_a_batch() -> None:
    def use(model: Any) -> list[Any]:
        model(IDS)
        model.add_adapter("other", lora(["q_proj", "down_proj"]))
        model.set_adapter("other")
        seen = [model(IDS).logits]
        model.eval()
        seen.append(model(IDS, adapter_names=["default", "other"]).logits)
        model.set_adapter("default")
        model.delete_adapter("other")
        return [*seen, model(IDS).logits]

    same(use, adapted)


@pytest.mark.slow
def test_adapters_are_combined_into_a_new_one() -> None:
    """peft assigns what it computes, which is split, to the `data` of plain weights."""

    def combine(model: Any) -> list[Any]:
        model(IDS)
        model.add_adapter("other", lora(["q_proj", "down_proj"]))
        model.add_weighted_adapter(["default", "other"], [0.4, 0.6], "both", combination_type="linear")
        model.set_adapter("both")
        return [model(IDS).logits]

    same(combine, adapted)


def trained(model: Any) -> list[Any]:
    own = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(own, 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
    return [loss, *own]


@pytest.mark.slow
def test_dora_trains() -> None:
    same(trained, lambda: adapted(use_dora=True).train(), grad=True)


@pytest.mark.slow
def test_scales_of_ia3_train_and_are_merged() -> None:
    def make() -> Any:
        torch.manual_seed(3)
        settings = peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        )
        return peft.get_peft_model(llama(), settings).train()

    def use(model: Any) -> list[Any]:
        seen = trained(model)
        return [*seen, model.eval().merge_and_unload()(IDS).logits]

    same(use, make, grad=True)


@pytest.mark.slow
def test_adapters_are_put_into_a_model_that_is_split() -> None:
    def use(model: Any) -> list[Any]:
        model(IDS)
        torch.manual_seed(3)
        with_adapters = peft.get_peft_model(model, lora(["q_proj", "down_proj"]))
        seen = trained(with_adapters)
        return [*seen, with_adapters.merge_and_unload()(IDS).logits]

    same(use, lambda: llama().train(), grad=True)


class Texts(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"input_ids": (IDS[at % 2] + at) % 256, "labels": (IDS[at % 2] + at) % 256}


@pytest.mark.slow
def test_a_trainer_evaluates_stops_early_and_loads_the_best(tmp_path: Path) -> None:
    def train(model: Any) -> list[Any]:
        folder = tmp_path / type(next(model.parameters())).__name__
        settings = transformers.TrainingArguments(
            str(folder),
            max_steps=4,
            per_device_train_batch_size=2,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            label_smoothing_factor=0.1,
            max_grad_norm=0.5,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            log_level="error",
        )
        trainer = transformers.Trainer(
            model=model,
            args=settings,
            train_dataset=Texts(),
            eval_dataset=Texts(),
            compute_metrics=lambda seen: {"accuracy": float((seen.predictions == seen.label_ids).mean())},
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
            callbacks=[transformers.EarlyStoppingCallback(3)],
        )
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return [torch.tensor(losses), torch.tensor(trainer.predict(Texts()).predictions), *model.parameters()]

    same(train, llama, grad=True)


class Lit(nn.Module):
    """What a LightningModule has: steps that log, optimizers, and a step of its own hand."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.logged = Net(), []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)

    def log(self, value: torch.Tensor) -> None:
        self.logged.append(value.detach())

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> dict[str, Any]:
        loss = F.mse_loss(self.model(batch[0]), batch[1])
        self.log(loss)
        return {"loss": loss, "index": index}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), 0.01)

    def manual_step(self, x: torch.Tensor, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        loss = self(x).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.log(loss)
        return loss.detach()


def test_a_training_step_that_logs() -> None:
    def train(model: Any) -> list[Any]:
        optimizer = model.configure_optimizers()
        for index in range(2):
            done = model.training_step((torch.full((4, 8), 0.5), torch.ones(4, 8)), index)
            optimizer.zero_grad()
            done["loss"].backward()
            optimizer.step()
        return [*model.logged, done["index"], *model.parameters()]

    same(train, Lit, grad=True)


def test_a_step_with_a_backward_in_it_is_a_loop_around_the_model() -> None:
    def train(model: Any) -> list[Any]:
        optimizer = model.configure_optimizers()
        return [
            *(model.manual_step(torch.full((4, 8), 0.5), optimizer) for _ in range(2)),
            *model.parameters(),
        ]

    report = tpfx.report(same(train, Lit, grad=True))
    assert report.graphs == 1
    assert not report.whole_calls


def test_a_model_in_half_precision_trains_and_goes_back() -> None:
    def train(model: Any) -> list[Any]:
        model.bfloat16()
        loss = model(torch.ones(4, 8, dtype=torch.bfloat16)).float().pow(2).mean()
        loss.backward()
        kinds = str(model.up.weight.grad.dtype)
        return [kinds, model.float()(torch.ones(4, 8)).shape]

    same(train, Net, grad=True)
