"""Settings of a tiny autoencoder, of codes of 3 x 4 x 4 for digits, and of a model of its codes."""

from tests.tiny import SETTINGS, UNET

from sidepipe.stages.autoencoder.trained import TrainAutoencoder
from sidepipe.stages.dpm.latent import TrainLatentDPM

NUM_IMAGES = 900
NETWORK = {
    "_target_": "diffusers.AutoencoderKL",
    "in_channels": 1,
    "out_channels": 1,
    "sample_size": 8,
    "latent_channels": 3,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
}
SCHEDULE = {"_target_": "diffusers.DDPMScheduler", "num_train_timesteps": 20, "clip_sample": False}


def train_autoencoder(**changes) -> TrainAutoencoder:
    settings = {
        "train_partitions": None,
        "subset_seed": 0,
        "num_images": NUM_IMAGES,
        "network": NETWORK,
        "kl_weight": 1e-4,
        "max_steps": 12,
        "batch_size": 16,
        "lr": 0.005,
        "weight_decay": 0.0,
        "lr_warmup_steps": 2,
        "gradient_clip_val": 1.0,
        "precision": "32-true",
        "log_every_steps": 5,
        "checkpoint_every_steps": 5,
        "validate_every_steps": 6,
        "seed": 0,
    }
    return TrainAutoencoder(**{**settings, **changes})


def train_latent_dpm(**changes) -> TrainLatentDPM:
    sizes = ("sample_size", "in_channels", "out_channels")
    unet = {name: value for name, value in UNET.items() if name not in sizes}
    own = {
        "unet": {**unet, "_partial_": True},
        "noise_schedule": SCHEDULE,
        "random_flip": False,
        "num_autoencoder_images": NUM_IMAGES,
    }
    return TrainLatentDPM(**{**SETTINGS, **own, **changes})
