# %% [markdown]
# # Generate with a model that is split over two devices
#
# One line splits the model. `generate` stays as it is, and writes the same tokens.
#
# Here it is a small Llama with random weights, on two "CPU devices", so that this runs anywhere and downloads
# nothing. For the real thing, change two lines of the next cell:
#
# ```python
# MODEL = "Qwen/Qwen3-8B"
# DEVICES = ["cuda:0", "cuda:1"]
# ```
#
# It needs `pip install 'tpfx[transformers]'`.

# %%
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

import tpfx

MODEL = ""  # a name on the Hub, or a folder; "" for a small model with random weights
DEVICES = ["cpu", "cpu"]

# %%
if MODEL:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
else:
    tokenizer = ByT5Tokenizer()  # a byte is a token: there is nothing to download
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=None, **sizes))
model.eval()

# %% [markdown]
# ## Whole
#
# Three ways to write on, to compare with.

# %%
prompt = tokenizer("A cat sat", return_tensors="pt", add_special_tokens=False)
ways: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "3 beams": {"do_sample": False, "num_beams": 3},
    "sampled": {"do_sample": True, "temperature": 0.8},
}


def write(model: Any) -> dict[str, torch.Tensor]:
    written = {}
    for way, options in ways.items():
        torch.manual_seed(1)  # the same random numbers, whole and split
        written[way] = model.generate(**prompt, **options, max_new_tokens=20)
    return written


whole = write(model)

# %% [markdown]
# ## Split
#
# The model is changed in place: each device holds half of the weights.

# %%
model = tpfx.compile(model, DEVICES)
split = write(model)

for way in ways:
    print(f"{way}: the same tokens as whole: {torch.equal(whole[way], split[way])}")
print(tokenizer.decode(split["greedy"][0]))

# %% [markdown]
# ## What was done
#
# The bytes on each device, and where the devices talk to each other: two all-reduces a layer, one for the
# embedding, and one gather of the logits.

# %%
print(tpfx.report(model))
