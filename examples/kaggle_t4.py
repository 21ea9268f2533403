# %% [markdown]
# # Two T4s as one: a model that is too big for either, on Kaggle
#
# Kaggle lends two T4s of 16 GB each. A model of 7B parameters takes 15 GB in float16, which leaves no room on
# one of them. `device_map="auto"` would put half of the layers on each, and let one wait while the other
# works. tpfx divides every layer, so that both work all the time, each with half of the weights, keys and
# values.
#
# In the notebook's settings choose the accelerator *GPU T4 × 2*, and switch the internet on. Elsewhere,
# without GPUs, the same cells run on two CPU devices. torchvision is named below since it has to go with
# torch, where pip replaces that.

# %%
# %pip install --quiet 'tpfx[transformers]' torchvision

# %%
import subprocess
import sys
import tempfile
from typing import Any

import accelerate
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, ByT5Tokenizer, Qwen2Config

import tpfx

# %% [markdown]
# ## The devices
#
# A T4 is of compute capability 7.5: torch must have been built with kernels for `sm_75`. It computes in
# float16, and not in bfloat16, which most models are stored in, so the dtype is said below. For attention
# torch has its memory-efficient kernel there; FlashAttention needs newer cards.

# %%
GPUS = torch.cuda.device_count()
DEVICES = [f"cuda:{number}" for number in range(GPUS)] if GPUS > 1 else ["cpu", "cpu"]
DTYPE = torch.float16 if GPUS > 1 else torch.float32
for number in range(GPUS):
    found = torch.cuda.get_device_properties(number)
    kernels = f"sm_{found.major}{found.minor}"
    print(f"cuda:{number}: {found.name}, {found.total_memory / 2**30:.1f} GiB, {kernels}")
    if kernels not in torch.cuda.get_arch_list():
        print(
            "this torch has none of its kernels, but", torch.cuda.get_arch_list(), "- install another build"
        )
print("split over", DEVICES, "in", DTYPE)

# %% [markdown]
# ## Does it fit?
#
# A plan of a model with the sizes of Qwen2.5 7B, on one T4 and on two, with a text of 4,096 tokens. Nothing
# is downloaded for it, and no weight is made.

# %%
SEVEN_B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "dtype": "float16",
}
sizes = [word for name, value in SEVEN_B.items() for word in ("--set", f"{name}={value}")]
asked = ["plan", "qwen2", *sizes, "--compare", "1,2", "--topology", "t4", "--length", "4096"]
answer = subprocess.run([sys.executable, "-m", "tpfx", *asked], capture_output=True, text=True)
print(answer.stdout or answer.stderr)

# %% [markdown]
# ## The model
#
# Name one to have it downloaded, such as `Qwen/Qwen2.5-7B-Instruct`. Without a name it is a small one of the
# same kind with random weights, which writes nonsense, and needs no download.

# %%
MODEL = ""
TINY = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
if MODEL:
    from huggingface_hub import snapshot_download

    folder = snapshot_download(MODEL, allow_patterns=["*.json", "*.safetensors", "*.txt"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
else:
    folder, tokenizer = tempfile.mkdtemp(), ByT5Tokenizer()
    settings = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, eos_token_id=None, **TINY)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).save_pretrained(folder)

# %% [markdown]
# ## Loaded
#
# Made without contents; then each device reads its own slices of the files, so that the 30 GB of the host are
# no limit.

# %%
config = AutoConfig.from_pretrained(folder)
with accelerate.init_empty_weights():
    model = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
model = tpfx.load(model, folder, DEVICES).eval()
print(tpfx.report(model))

# %% [markdown]
# ## Generating

# %%
prompt = tokenizer("The bakery had two ovens, because", return_tensors="pt", add_special_tokens=bool(MODEL))
options: dict[str, Any] = {"max_new_tokens": 32, "do_sample": False}
written = model.generate(**prompt.to(DEVICES[0]), **options)
print(tokenizer.decode(written[0], skip_special_tokens=True))
if not MODEL:  # small enough to be on one device as well
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE).to(DEVICES[0]).eval()
    with torch.no_grad():
        difference = (model(**prompt).logits - whole(**prompt).logits).abs().max()
    print(f"largest difference of the logits from those of one device: {difference:.0e}")
for number in range(GPUS):
    print(f"cuda:{number}: at most {torch.cuda.max_memory_allocated(number) / 2**30:.2f} GiB")

# %% [markdown]
# ## Training in float16
#
# What is small in float16 becomes zero, so that gradients are scaled: by `GradScaler`, as on one device. The
# weights stay in float32, and are split.

# %%
torch.manual_seed(0)
small = Qwen2Config(vocab_size=1000, num_key_value_heads=2, **TINY)
student = tpfx.compile(AutoModelForCausalLM.from_config(small, dtype=torch.float32).train(), DEVICES)
kind = DEVICES[0].partition(":")[0]
optimizer, scaler = torch.optim.AdamW(student.parameters(), lr=1e-3), torch.amp.GradScaler(kind)
ids = torch.randint(1000, (4, 32)).to(DEVICES[0])
losses = []
for _ in range(5):
    with torch.autocast(kind, torch.float16):
        loss = student(input_ids=ids, labels=ids).loss
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} after {len(losses)} steps")
