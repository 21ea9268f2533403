# %% [markdown]
# # Fine-tune a sequence-to-sequence model, split over several devices
#
# One line splits the model. After it, everything is as usual: `Trainer`, `generate`, `save_pretrained`.
#
# The model here is a tiny T5 that starts from random weights, and the devices are two "CPU devices", so that
# this runs anywhere and needs no download. For the real thing, change two lines:
#
# ```python
# model = AutoModelForSeq2SeqLM.from_pretrained("google/flan-t5-xl")
# tpfx.compile(model, ["cuda:0", "cuda:1"])
# ```
#
# It needs `pip install tpfx[examples]`.

# %%
import csv
import random
import warnings
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, where there are no widgets
import transformers
from transformers import ByT5Tokenizer, T5Config, T5ForConditionalGeneration

import tpfx

transformers.utils.logging.disable_progress_bar()
STEPS = 500

# %% [markdown]
# ## The texts
#
# `numbers.tsv` has the numbers below a thousand, in words and in digits. 900 of them are for training.

# %%
folder = Path(__file__).parent if "__file__" in globals() else Path()  # a notebook has no file of its own
with open(folder / "numbers.tsv") as file:
    rows = list(csv.reader(file, delimiter="\t"))
random.Random(0).shuffle(rows)
train, held_out = rows[:900], rows[900:]
train[:3]

# %%
tokenizer = ByT5Tokenizer()  # a byte is a token: there is nothing to download


def batch(rows: list[list[str]]) -> dict[str, torch.Tensor]:
    words = tokenizer([words for words, _ in rows], padding="max_length", max_length=40, return_tensors="pt")
    digits = tokenizer(
        [digits for _, digits in rows], padding="max_length", max_length=4, return_tensors="pt"
    )
    return {**words, "labels": digits.input_ids.masked_fill(digits.input_ids == tokenizer.pad_token_id, -100)}


# %% [markdown]
# ## The model, split
#
# `build` makes the same weights each time: the second model stays whole, to compare with.


# %%
def build() -> Any:
    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
    return T5ForConditionalGeneration(
        T5Config(vocab_size=len(tokenizer), dropout_rate=0.0, decoder_start_token_id=0, **sizes)
    )


model = tpfx.compile(build(), ["cpu", "cpu"])
whole = build()

# %% [markdown]
# ## Training
#
# The same for both, for 20 steps: their losses are the same.


# %%
def fit(model: Any, steps: int) -> list[float]:
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir="finetuned",
            max_steps=steps,
            learning_rate=5e-3,
            warmup_steps=10,
            lr_scheduler_type="linear",
            per_device_train_batch_size=64,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            log_level="error",
            dataloader_pin_memory=False,
        ),
        train_dataset=train,
        data_collator=batch,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


first = {"whole": fit(whole, 20), "split over 2 devices": fit(model, 20)}
difference = max(abs(one - two) for one, two in zip(*first.values(), strict=True))
print(f"largest difference of the losses of 20 steps: {difference:.0e}")

# %%
losses = fit(model, STEPS)
print(tpfx.report(model))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for (name, values), style in zip(first.items(), [{"lw": 5, "alpha": 0.35}, {"lw": 1.5}], strict=True):
    left.plot(values, label=name, **style)
left.set(title="The first 20 steps, twice", xlabel="step", ylabel="loss")
left.legend()
right.plot(losses)
right.set(title=f"{STEPS} more, split", xlabel="step", yscale="log")
plt.show()

# %% [markdown]
# ## What it has learned
#
# Numbers that it has not seen, and how many of all 100 held-out ones are right.


# %%
@torch.no_grad()
def read(model: Any, rows: list[list[str]]) -> list[str]:
    given = {name: value for name, value in batch(rows).items() if name != "labels"}
    written = model.generate(**given, max_new_tokens=5)
    return [tokenizer.decode(one, skip_special_tokens=True) for one in written]


model.eval()
answers = read(model, held_out)
right = sum(answer == digits for answer, (_, digits) in zip(answers, held_out, strict=True))
print(f"{right} of {len(held_out)} right")
for (words, _), answer in zip(held_out[:5], answers[:5], strict=True):
    print(f"{words:>40} → {answer}")

# %% [markdown]
# ## Saved for everyone
#
# What is saved is an ordinary checkpoint: plain transformers loads it, without tpfx, and writes the same.

# %%
model.save_pretrained("finetuned")
loaded = T5ForConditionalGeneration.from_pretrained("finetuned")
print("the loaded model gives the same answers:", read(loaded, held_out) == answers)
