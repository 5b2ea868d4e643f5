"""Settings of a tiny model of the scanned digits: a training step takes milliseconds."""

from collections.abc import Mapping
from dataclasses import replace

from sidepipe.engine.stage import Runtime, Stage
from sidepipe.stages.data.canaries import Canaries
from sidepipe.stages.data.stage import Data

UNET = {
    "_target_": "diffusers.UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4, 4],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "add_attention": False,
}
SCHEDULE = {"_target_": "diffusers.DDPMScheduler", "num_train_timesteps": 20, "clip_sample": True}
SETTINGS = {
    "unet": UNET,
    "noise_schedule": SCHEDULE,
    "num_train_images": 20,
    "train_partitions": None,
    "subset_seed": 0,
    "max_steps": 20,
    "batch_size": 8,
    "lr": 0.01,
    "weight_decay": 0.01,
    "lr_warmup_steps": 5,
    "ema_decay": 0.9,
    "ema_start_step": 3,
    "gradient_clip_val": 1.0,
    "random_flip": True,
    "precision": "32-true",
    "log_every_steps": 1,
    "checkpoint_every_steps": 6,
    "preview_every_steps": 10,
    "seed": 0,
}
RUNTIME = Runtime(accelerator="cpu")
DIGITS = Data(
    source={"_target_": "sidepipe.stages.data.sources.Digits"},
    size=8,
    channels=1,
    center_crop=None,
    on_bad_file="error",
)

CANARY_DIGITS = replace(DIGITS, canaries=Canaries(repeats=[2, 30], num_each=2, num_heldout=3))


def checked(stage: Stage, upstream: Mapping[str, Stage], runtime: Runtime = RUNTIME) -> None:
    """All that is checked of a stage before anything runs."""
    stage.check(upstream, runtime)
    stage.check_parts(upstream, runtime)
