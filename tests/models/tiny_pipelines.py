"""Tiny pipelines with random weights, in the official layouts: latent, DiT, classes, variance."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)
from tests.tiny import UNET

from sidepipe.base.settings import build

STEPS = 50


def schedule(**changes):
    return DDIMScheduler(**{"num_train_timesteps": STEPS, "clip_sample": False, **changes})


def autoencoder(kind=AutoencoderKL):
    """Gray images of 8 x 8 pixels as latents of 3 x 4 x 4."""
    torch.manual_seed(1)
    return kind(
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
    )


def unet(**changes) -> UNet2DModel:
    torch.manual_seed(0)
    return build({**UNET, **changes})


def latent(folder, kind=VQModel, scheduler=None, **changes):
    network = unet(**{"sample_size": 4, "in_channels": 3, "out_channels": 3, **changes})
    pipeline = LDMPipeline(autoencoder(kind), network, scheduler or schedule())
    pipeline.save_pretrained(folder)
    return folder


def dit(folder, num_classes=5, scheduler=None, out_channels=6):
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=3,
        out_channels=out_channels,
        num_layers=1,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=num_classes,
        norm_num_groups=4,
    )
    DiTPipeline(transformer, autoencoder(), scheduler or schedule()).save_pretrained(folder)
    return folder


def of_images(folder, scheduler=None, **changes):
    DDPMPipeline(unet(**changes), scheduler or schedule()).save_pretrained(folder)
    return folder
