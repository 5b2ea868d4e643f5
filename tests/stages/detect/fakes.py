"""Models whose difference between prompts is known, and the artifacts that `detect` reads."""

import csv
import json

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import nn

from sidepipe.base.images import to_model
from sidepipe.diffusion.timesteps import StepRule
from sidepipe.models.text.model import TextModel, Tokens


class Fake(TextModel):
    """A model of 8 x 8 gray images without networks; e of a caption is its length, e_0 is 0."""

    latent_shape = (1, 8, 8)
    max_tokens = 20

    def __init__(self):
        nn.Module.__init__(self)
        self.vae, self.step_rule, self.autocast = None, StepRule(), None
        self.clip_range = 1.0
        alphas_cumprod = DDIMScheduler(num_train_timesteps=50).alphas_cumprod
        self.prediction_type = "epsilon"
        self.register_buffer("alphas_cumprod", alphas_cumprod)

    def encode(self, prompts):
        return torch.tensor([float(len(p)) for p in prompts])[:, None, None]

    def tokens(self, prompt):
        return Tokens(prompt[:20].split(), prompt[20:])

    def eps(self, x_t, t, e):
        return x_t + e[:, :, :, None] * self.pattern(x_t)

    def pattern(self, x_t):
        return torch.full_like(x_t, 1 / 8)  # its norm is 1


class Quadratic(Fake):
    """D = length * x ** 2."""

    def pattern(self, x_t):
        return x_t**2


class Replaying(Fake):
    """Makes image i for the caption "word i", and for others images that follow x_T."""

    def __init__(self, images):
        super().__init__()
        self.images = to_model(images)

    def encode(self, prompts):
        known = [int(p.split()[1]) if p.startswith("word ") else -1 - bool(p) for p in prompts]
        return torch.tensor(known, dtype=torch.float32)[:, None, None]

    def eps(self, x_t, t, e):
        number = e.flatten().long()
        # Black and white: farther from any image of the data than these are from each other.
        of_noise = torch.sign(x_t) * (1 - 0.1 * (number == -2).float()[:, None, None, None])
        known = (number >= 0)[:, None, None, None]
        x_0 = torch.where(known, self.images[number.clamp_min(0)], of_noise)
        at = t if isinstance(t, int) else int(t[0])
        alpha_bar = self.alphas_cumprod[at]
        return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()


def artifacts(folder, num_train=40, num_unseen=30, num_planted=6, seed=0):
    """The folders of data and dpm, and the images: planted come first, unseen last."""
    rng = np.random.default_rng(seed)
    count = num_train + num_unseen
    images = rng.integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    data, dpm = folder / "data", folder / "dpm"
    for path in (data, dpm):
        path.mkdir(parents=True)
    np.save(data / "images.npy", images)
    table = [["index", "caption", "repeats", "word", "attributes"]]
    for i in range(count):
        planted = i < num_planted
        caption = f"word {i}" if planted else f"picture {i}"
        table.append([i, caption, 9 if planted else 1, "word" * planted, json.dumps({})])
    _write(data / "captions.csv", table)
    ids = [[i, f"NA{i}", "train" if i < num_train else "test", ""] for i in range(count)]
    _write(data / "ids.csv", [["index", "id", "partition", "identity"], *ids])
    np.save(dpm / "subset.npy", rng.permutation(num_train))
    np.save(dpm / "heldout.npy", num_train + rng.permutation(num_unseen))
    return {"data": data, "dpm": dpm}, images


def _write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
