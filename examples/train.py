# %% [markdown]
# # Train a model that is split over two devices
#
# `Trainer` trains a split model as it trains any other. Gradients and the optimizer's state are split as the
# weights are, so that each device holds half of everything. The losses are those of the unsharded model.
#
# The model is a small GPT-2 with random weights, and the text is a tale that lies beside this file, six
# thousand bytes long: in two epochs a model learns little of it, but it learns. It needs
# `pip install 'tpfx[transformers]'`.

# %%
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

import tpfx

DEVICES = ["cpu", "cpu"]
EPOCHS = 2

# %% [markdown]
# ## The text
#
# A byte is a token, and 64 of them are an example.

# %%
folder = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no file of its own
tokenizer = ByT5Tokenizer()
text = (folder / "text.txt").read_text()
tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
examples = [{"input_ids": piece, "labels": piece} for piece in tokens.split(64)[:-1]]
print(len(examples), "examples, such as:", tokenizer.decode(examples[3]["input_ids"]))

# %% [markdown]
# ## The model, twice
#
# The same weights each time: one model stays whole, to compare with.


# %%
def build() -> Any:
    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 1, "n_head": 4, "bos_token_id": None, "eos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes))


def train(model: Any) -> list[float]:
    """The loss of each step."""
    settings = transformers.TrainingArguments(
        output_dir="trained",
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=DEVICES[0] == "cpu",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        log_level="error",
    )
    trainer = transformers.Trainer(model=model, args=settings, train_dataset=examples)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


whole = train(build())
model = tpfx.compile(build(), DEVICES)
split = train(model)
difference = max(abs(one - other) for one, other in zip(whole, split, strict=True))
print(f"loss {split[0]:.2f} at the first of {len(split)} steps, {split[-1]:.2f} at the last")
print(f"largest difference from the unsharded model's losses: {difference:.0e}")

# %% [markdown]
# ## Saved for everyone
#
# What is saved is an ordinary checkpoint. Plain transformers loads it, without tpfx, and writes the same.

# %%
model.save_pretrained("trained")
loaded = AutoModelForCausalLM.from_pretrained("trained")
prompt = {"input_ids": tokens[None, :32], "attention_mask": torch.ones(1, 32, dtype=torch.int64)}
texts = [
    tokenizer.decode(one.eval().generate(**prompt, max_new_tokens=32, do_sample=False, pad_token_id=0)[0])
    for one in (model, loaded)
]
print(texts[0])
print("the loaded model writes the same:", texts[0] == texts[1])

# %% [markdown]
# ## What was done
#
# The bytes of the weights on each device; gradients and the optimizer's two moments lie as they do. The
# collectives are those of the last call, a step of `generate`.

# %%
print(tpfx.report(model))
