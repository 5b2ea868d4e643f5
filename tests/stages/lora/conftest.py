"""Artifacts that LoRA reads: a small model of dark and bright images, some of each, labeled."""

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from tests.tiny import SCHEDULE, UNET

from sidepipe.base.images import to_model
from sidepipe.base.settings import build
from sidepipe.engine.shards import write_shard
from sidepipe.engine.training import noised

UNET = {**UNET, "block_out_channels": [8, 8]}
SCHEDULE = {**SCHEDULE, "beta_end": 0.3}


def trained_unet(images, schedule, steps=200):
    """A UNet that makes such images, dark and bright alike."""
    torch.manual_seed(0)
    unet, generator = build(UNET), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(unet.parameters(), 5e-3)
    x_0 = to_model(images)
    for _ in range(steps):
        rows = torch.randint(0, len(x_0), (32,), generator=generator)
        x = noised(x_0[rows], schedule.alphas_cumprod, generator)
        loss = (unet(x.x_t, x.t).sample - x.eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return unet


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """dpm, generate and label: bright images are of label 0, dark ones of 1, a few of none."""
    folder = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 240)
    level = np.where(labels == 0, 225, 30)[:, None, None, None]
    images = (level + rng.normal(0, 10, (240, 8, 8, 1))).clip(0, 255).astype(np.uint8)
    schedule = build(SCHEDULE)
    unet = trained_unet(images, schedule)
    DDPMPipeline(unet, schedule).save_pretrained(folder / "dpm" / "model")
    write_shard(folder / "generate", 0, images)
    labels[::20] = -1
    (folder / "label").mkdir()
    np.save(folder / "label" / "labels.npy", labels)
    rows = ["cluster,size,cohesion,kept,label,labeled", "0,99,0.9,1,0,99", "1,98,0.8,1,1,98"]
    (folder / "label" / "clusters.csv").write_text("\n".join(rows) + "\n")
    return {name: folder / name for name in ("dpm", "generate", "label")}
