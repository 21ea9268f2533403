# %% [markdown]
# # Plan before you buy
#
# Does a model fit on these cards, how long a text can it read, is a second card worth its price? A plan
# answers without weights, without the cards, and without a download: it captures the model's graph on fake
# tensors, divides it, and counts. It needs `pip install 'tpfx[transformers]'`.
#
# The model has the sizes of Llama 3.1 8B, as its `config.json` gives them. Of a folder that has that file you
# ask `tpfx plan ./Llama-3.1-8B -n 2`.

# %%
import subprocess
import sys

import tpfx

SIZES = {
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}
CARD, LENGTH, PRICE = "rtx-4090", 8192, 0.40  # which, tokens of a text, and what one card costs an hour


def tpfx_plan(*options: str) -> str:
    """What the command line answers."""
    sizes = [word for name, value in SIZES.items() for word in ("--set", f"{name}={value}")]
    asked = ["plan", "llama", *sizes, "--topology", CARD, "--length", str(LENGTH), *options]
    done = subprocess.run([sys.executable, "-m", "tpfx", *asked], capture_output=True, text=True)
    return done.stdout or done.stderr


# %% [markdown]
# ## Two of these cards
#
# The answer comes first: does it fit, what is left for keys and values, how fast is it, and what was assumed.
# Then come tables of where the bytes and the time go. The plan is written to a file.

# %%
print(tpfx_plan("-n", "2", "-o", "plan.json"))

# %% [markdown]
# ## One, two or four?
#
# Time × devices says what a token costs beside one card: where it grows faster than the time falls, a card
# more does not pay.

# %%
print(tpfx_plan("--compare", "1,2,4"))

# %% [markdown]
# ## In Python
#
# The file has every number, and is what `tpfx.compile(model, devices, plan="plan.json")` carries out once the
# cards are there.

# %%
plan = tpfx.Plan.load("plan.json")
print(f"{max(plan.bytes_per_device) / 2**30:.2f} GiB of {plan.total_bytes / 2**30:.2f} GiB on each card")
for graph in plan.graphs:
    hours = graph.estimate.seconds / graph.estimate.tokens / 3600
    price = 1e6 * hours * plan.devices * PRICE
    print(f"a million tokens of {graph.phase}: {price:.2f}, at {PRICE:.2f} a card and hour")
