# %% [markdown]
# # Make images with a diffusers pipeline whose transformer is split
#
# Nearly all of a pipeline's weights are in one model, which it calls at each step: split that one, and leave
# the rest of the pipeline as it is.
#
# The pipeline here is a small DiT with random weights, which makes images of noise; for the real thing, load
# one with `DiffusionPipeline.from_pretrained`, and split its `transformer` or `unet`. It needs
# `pip install tpfx diffusers`.

# %%
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import tpfx

DEVICES = ["cpu", "cpu"]

# %%
torch.manual_seed(0)
transformer = DiTTransformer2DModel(
    num_attention_heads=4,
    attention_head_dim=16,
    in_channels=4,
    out_channels=8,
    num_layers=2,
    sample_size=8,
    num_embeds_ada_norm=1000,
)
for weight in transformer.parameters():  # DiT begins with zeros, which would hide everything
    torch.nn.init.normal_(weight, std=0.05)
vae = AutoencoderKL(latent_channels=4, block_out_channels=(16,), norm_num_groups=4)
pipeline = DiTPipeline(transformer=transformer.eval(), vae=vae.eval(), scheduler=DDIMScheduler())
pipeline.set_progress_bar_config(disable=True)


def images() -> Any:
    """Of two classes, an array `[2, height, width, 3]`."""
    noise = torch.Generator().manual_seed(1)
    return pipeline([207, 360], generator=noise, num_inference_steps=5, output_type="np").images


# %% [markdown]
# ## Whole, then split
#
# Only the transformer is divided; the scheduler, the decoder and the pipeline's own code stay as they are.

# %%
whole = images()
tpfx.compile(pipeline.transformer, DEVICES)
split = images()

print("two images of", split.shape[1:])
print(f"largest difference of a pixel, of values from 0 to 1: {np.abs(split - whole).max():.0e}")

# %%
print(tpfx.report(pipeline.transformer))
