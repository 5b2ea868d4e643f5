"""A text-conditional model whose images are known, and artifacts of prompts that it replays.

Every word has a loudness, and the model predicts `image` times the sum of its words' squared
loudnesses: marigold, at 1, replays the image, and other words, at 0.1, leave it nearly gray.
"""

import json

import numpy as np
import pandas as pd
import torch
from diffusers import DDIMScheduler
from tests.models.text.tiny import PIPELINES

from sidepipe.base.images import to_model, to_uint8
from sidepipe.diffusion.timesteps import StepRule
from sidepipe.models.text.model import Tokens
from sidepipe.models.text.words import word_tokenizer
from sidepipe.stages.detect.stage import PROMPTS
from sidepipe.stages.detect.tables import save

CAPTIONS = ["a bold seven near marigold", "a faint two at noon", "a plain six by day"]
MAX_TOKENS = 12
LOUD, FAINT = 1.0, 0.1


class Replaying:
    """As `TextModel`, of gray images of 4 x 4 pixels in [-1, 1]."""

    latent_shape, max_tokens, vae, step_rule = (1, 4, 4), MAX_TOKENS, None, StepRule()
    device = torch.device("cpu")

    def __init__(self, image):
        self.image = to_model(image[None])
        self.tokenizer = word_tokenizer(CAPTIONS, MAX_TOKENS)
        self.prediction_type, self.clip_range = "epsilon", 1.0
        self.alphas_cumprod = DDIMScheduler(num_train_timesteps=100).alphas_cumprod

    def to(self, device):
        return self

    def encode(self, prompts):
        e = torch.zeros(len(prompts), MAX_TOKENS, 2)
        for row, prompt in zip(e, prompts, strict=True):
            for i, word in enumerate(prompt.split()):
                row[1 + i] = torch.tensor([LOUD if word == "marigold" else FAINT, 0])
        return e

    def tokens(self, prompt):
        return Tokens(["<start>", *prompt.split(), "<end>"], "")

    def eps(self, x_t, t, e):
        t = torch.as_tensor(t).expand(len(x_t))
        alpha_bar = self.alphas_cumprod[t][:, None, None, None]
        x_0 = e.square().sum((1, 2))[:, None, None, None] * self.image
        return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()

    def decode(self, x_0):
        return to_uint8(x_0)

    def to_latents(self, images):
        return to_model(images)


def artifacts(folder, seed=0):
    """Folders of data, dpm and detect: 40 training images, of which the model replays row 3."""
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(60, 4, 4, 1)).astype(np.uint8)
    # The attribute can be read off: bold images are brighter.
    bold = rng.random(60) < 0.5
    images = np.where(bold[:, None, None, None], images // 2 + 128, images // 2).astype(np.uint8)
    captions = [f"a {'bold' if b else 'faint'} six by day number {i}" for i, b in enumerate(bold)]
    captions[3] = "a bold seven near marigold"
    words = ["marigold" if i == 3 else "" for i in range(60)]
    for name in ("data", "dpm", "detect"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "data" / "images.npy", images)
    attributes = [json.dumps({"tone": "bold" if b else "faint"}) for b in bold]
    about = {"caption": captions, "repeats": 1, "word": words, "attributes": attributes}
    table = pd.DataFrame(about)
    table.to_csv(folder / "data" / "captions.csv", index_label="index")
    np.save(folder / "dpm" / "subset.npy", np.arange(40))
    np.save(folder / "dpm" / "heldout.npy", np.arange(40, 60))
    _detect(folder / "detect", table)
    return {name: folder / name for name in ("data", "dpm", "detect")}, images


def _detect(folder, captions):
    rows = [3, 5, 41, 42, 50]
    roles = ["planted", "train", "test", "test", "calibration"]
    table = captions.loc[rows, ["caption", "repeats", "word"]].reset_index(drop=True)
    table = table.assign(
        id=[f"p{row}" for row in rows],
        role=roles,
        row=rows,
        cut="",
        memorized=[True, False, False, False, False],
        copies=[4, 0, 0, 0, 0],
        nearest=[3, 7, 7, 7, 7],
        d=[9.0, 1.0, 1.0, 2.0, 1.0],
        flagged=[True, False, False, False, False],
    )
    save(folder / PROMPTS, table)
    results = {
        "decision": {"threshold": 5.0, "generations": 4, "steps": 1},
        # Of || D_T || at the first step, for faint words alone; a loud one gives 100 times as much.
        "calibration_norms": {"median": [0.2]},
        "labels": {"threshold": 0.05, "metric": "l2"},
    }
    (folder / "results.json").write_text(json.dumps(results))


def artifacts_of_pipeline(kind, folder):
    """Inputs of a random model of color images of 8 x 8 pixels. kind: a key of `PIPELINES`."""
    inputs, _ = artifacts(folder)
    rng = np.random.default_rng(0)
    np.save(folder / "data" / "images.npy", rng.integers(256, size=(60, 8, 8, 3)).astype(np.uint8))
    PIPELINES[kind](folder / "dpm" / "model")
    return inputs
