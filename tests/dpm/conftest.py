"""A data artifact of a few scanned digits, and settings of a tiny model of them."""

from pathlib import Path

import pytest

from sidepipe.data.stage import Data
from sidepipe.dpm.stage import TrainDPM
from sidepipe.progress import quiet_libraries
from sidepipe.stage import Runtime

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
    source={"_target_": "sidepipe.data.sources.Digits"},
    size=8,
    channels=1,
    center_crop=None,
    on_bad_file="error",
)


@pytest.fixture(autouse=True)
def quiet():
    quiet_libraries()


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    DIGITS.run(folder, {}, RUNTIME)
    return folder


@pytest.fixture
def train_dpm():
    """A function that makes a tiny TrainDPM; a dict as a change is laid over the setting."""

    def make(**changes) -> TrainDPM:
        settings = dict(SETTINGS)
        for name, value in changes.items():
            settings[name] = {**settings[name], **value} if isinstance(value, dict) else value
        return TrainDPM(**settings)

    return make


@pytest.fixture
def digits() -> Data:
    """The data stage's settings, for checks against them."""
    return DIGITS
