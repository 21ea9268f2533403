# %% [markdown]
# # Load a model that is too big for one device
#
# The model is made without contents. Then it is planned, and each device reads its own slices of the files:
# neither the host nor a device ever holds the whole.
#
# The checkpoint here is written first, by a small Llama with random weights; for the real thing, name a
# folder that has one. It needs `pip install 'tpfx[transformers]'`.

# %%
import tempfile
from pathlib import Path

import accelerate
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tpfx

CHECKPOINT = ""  # a folder with config.json and safetensors files; "" for a small one with random weights
DEVICES = ["cpu", "cpu"]

# %%
if not CHECKPOINT:
    CHECKPOINT = tempfile.mkdtemp()
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=1000, eos_token_id=None, **sizes)).save_pretrained(
        CHECKPOINT, max_shard_size="5MB"
    )
for file in sorted(Path(CHECKPOINT).glob("*.safetensors")):
    print(f"{file.name}: {file.stat().st_size / 2**20:.1f} MiB")

# %% [markdown]
# ## Made without contents, and read
#
# On the meta device a model of any size takes no memory.

# %%
config = AutoConfig.from_pretrained(CHECKPOINT)
with accelerate.init_empty_weights():
    model = AutoModelForCausalLM.from_config(config, dtype=config.dtype)
print("before, the weights are on:", {str(weight.device) for weight in model.parameters()})

model = tpfx.load(model, CHECKPOINT, DEVICES).eval()
for rank, size in enumerate(tpfx.report(model).bytes_per_device):
    print(f"device {rank} holds {size / 2**20:.1f} MiB")

# %% [markdown]
# ## The same model
#
# This one is small enough to be loaded whole as well, to compare with.

# %%
prompt = torch.arange(5, 15)[None]
options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
whole = AutoModelForCausalLM.from_pretrained(CHECKPOINT).eval()
same = torch.equal(model.generate(prompt, **options), whole.generate(prompt, **options))
print("the same tokens as the model that was loaded whole:", same)
