"""Diffusion pipelines of tiny random parts, and image models, split: the images of the undivided ones.

They need diffusers and timm, which the extras do not bring; without them the tests are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tpfx
from tests.support.compare import largest_error
from tests.support.sharded import CPUS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.filterwarnings("default")]

SIZES = [(32, 32), (48, 48), (64, 32)]  # of images, in pixels
VAE = {
    "latent_channels": 4,
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def unet_pipeline() -> Any:
    """Stable Diffusion: a U-Net with cross attention."""
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(32, 64),
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    return diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**VAE),
        text_encoder=None,
        tokenizer=None,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def transformer_pipeline() -> Any:
    """Stable Diffusion 3: a transformer on patches and text, in one sequence."""
    diffusers = pytest.importorskip("diffusers")
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=16,
    )
    texts = {f"{part}{at}": None for part in ("text_encoder", "tokenizer") for at in ("", "_2", "_3")}
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=diffusers.AutoencoderKL(**VAE, shift_factor=0.06),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        **texts,
    )


PIPELINES = {"unet": unet_pipeline, "transformer": transformer_pipeline}


def made(kind: str) -> Any:
    """A pipeline whose weights are always the same, and none of them near zero."""
    torch.manual_seed(0)
    pipeline = PIPELINES[kind]()
    pipeline.set_progress_bar_config(disable=True)
    for model in (getattr(pipeline, kind).eval(), pipeline.vae.eval()):
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.normal_(0, 0.08)
    return pipeline


def images(pipeline: Any, size: tuple[int, int] = SIZES[0]) -> torch.Tensor:
    """Two images `[2, height, width, 3]` of a seed, with guidance."""
    made = torch.Generator().manual_seed(3)
    given = {
        name: torch.randn(2, 7, 32, generator=made) for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    if hasattr(pipeline, "transformer"):
        pooled = ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        given |= {name: torch.randn(2, 64, generator=made) for name in pooled}
    result = pipeline(
        height=size[0],
        width=size[1],
        num_inference_steps=2,
        output_type="pt",
        generator=torch.Generator().manual_seed(5),
        **given,
    )
    return result.images.clone()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", PIPELINES)
def test_images_of_three_sizes_with_an_adapter_and_reloaded(kind: str, tmp_path: Path) -> None:
    """Two graphs of each model for all sizes; the adapter's weights change the image; saved as undivided."""
    peft = pytest.importorskip("peft")
    plain, split = made(kind), made(kind)
    for name in (kind, "vae"):
        tpfx.compile(getattr(split, name), CPUS)
    for size in SIZES:
        assert largest_error(images(plain, size), images(split, size)) < 1e-4
    assert [tpfx.report(getattr(split, name)).graphs for name in (kind, "vae")] == [2, 2]
    assert tpfx.report(getattr(split, kind)).whole_ops == {}

    split.save_pretrained(tmp_path)
    absent = {name: None for name, part in split.components.items() if part is None}
    again = type(split).from_pretrained(tmp_path, **absent)
    for name in (kind, "vae"):
        before, after = (getattr(one, name).state_dict() for one in (plain, again))
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)

    without = images(plain)
    config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_v", "to_out.0"])
    for pipeline in (plain, split):
        torch.manual_seed(7)
        getattr(pipeline, kind).add_adapter(config, "one")
    for change in (
        lambda model: None,
        lambda model: model.set_adapters("one", 0.3),
        lambda model: model.fuse_lora(lora_scale=0.5),
        lambda model: (model.unfuse_lora(), model.unload_lora()),
    ):
        for pipeline in (plain, split):
            change(getattr(pipeline, kind))
        assert largest_error(images(plain), images(split)) < 1e-4
    assert largest_error(without, images(plain)) < 1e-4


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_mambaout", "mobilenetv3_small_050"])
def test_an_image_model(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    plain = timm.create_model(name).eval()
    split = timm.create_model(name).eval()
    split.load_state_dict(plain.state_dict())
    tpfx.compile(split, CPUS)
    inputs = torch.randn(2, *plain.default_cfg["input_size"])
    with torch.no_grad():
        assert largest_error(plain(inputs), split(inputs)) < 1e-4
    assert tpfx.report(split).whole_ops == {}
