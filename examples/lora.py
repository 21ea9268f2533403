# %% [markdown]
# # Adapters: LoRA on a model that is split
#
# peft adds small matrices beside the large ones, and trains only those. `tpfx.compile` takes the model with
# its adapters; they are divided along with the weights that they stand beside, and saved without gathering
# the rest.
#
# It needs `pip install 'tpfx[transformers]' peft`.

# %%
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

import tpfx

DEVICES = ["cpu", "cpu"]

# %% [markdown]
# ## The model and its adapters
#
# In place of `base()` you would write `AutoModelForCausalLM.from_pretrained(…)`.

# %%
tokenizer = ByT5Tokenizer()  # a byte is a token: there is nothing to download


def base() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))


def adapted() -> Any:
    model = base()
    targets = ["q_proj", "v_proj", "down_proj"]
    settings = LoraConfig(r=8, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    return get_peft_model(model, settings)


model = tpfx.compile(adapted(), DEVICES)
model.print_trainable_parameters()

# %% [markdown]
# ## Training
#
# A loop like any other: ten steps, on one sentence.

# %%
sentence = tokenizer("Each had a cup of the leaven that had grown on their side.", return_tensors="pt")


def train(model: Any) -> list[float]:
    optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=1e-2)
    losses = []
    for _ in range(10):
        loss = model(**sentence, labels=sentence["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


losses, expected = train(model), train(adapted())
difference = max(abs(one - other) for one, other in zip(losses, expected, strict=True))
print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at the end")
print(f"largest difference from the unsharded model's losses: {difference:.0e}")

# %% [markdown]
# ## Saved for everyone
#
# What is saved are the adapters alone. Anyone puts them on the whole model, without tpfx.

# %%
model.save_pretrained("adapters")
size = sum(file.stat().st_size for file in Path("adapters").glob("*.safetensors"))
print(f"the adapters take {size / 1024:.0f} KiB, the model {tpfx.report(model).total_bytes / 1024:.0f} KiB")

loaded = PeftModel.from_pretrained(base(), "adapters").eval()
with torch.no_grad():
    same = torch.allclose(model.eval()(**sentence).logits, loaded(**sentence).logits, atol=1e-4)
print("the unsharded model with these adapters says the same:", same)
