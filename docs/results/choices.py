"""Which blind choice of the noise level of refinement is right? A row of choices per model, as CSV.

Usage: python docs/results/choices.py NAME=ARTIFACT [...] > docs/results/data/noise_choices.csv

ARTIFACT is a finished outputs/dpm/<key>, whose training images are known. 500 plain samples of ten
steps are refined at each level. Three scores of `sidepipe.stages.tune` choose a level without the
training images; the best one has the most different training images among its refined images.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

import sidepipe
from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.encoders import PixelsL2
from sidepipe.stages.generate.stage import load_denoiser
from sidepipe.stages.tune.score import level_apart, near_duplicate_count, near_duplicate_rate

LEVELS, IMAGES, THRESHOLD = (15, 30, 60, 100, 150, 220), 500, 0.05


def trial(model: sidepipe.Model, start: np.ndarray, t: int, alpha_bar: float) -> dict[str, Any]:
    """The blind scores of a level, and the refined images."""
    images = model.refine(start, t=t, steps=8)
    features = PixelsL2().encode(images)
    different = np.unique(near_duplicate_groups(features, "l2", THRESHOLD))
    x_0 = images[different].reshape(len(different), -1) / 127.5 - 1
    return {
        "images": images,
        "groups": near_duplicate_count(features, "l2", THRESHOLD),
        "rate": near_duplicate_rate(features, "l2", THRESHOLD),
        "apart": level_apart(x_0, t, alpha_bar),
    }


def main() -> None:
    out = csv.writer(sys.stdout)
    scores = ("groups", "rate", "apart")
    chosen = [name for score in scores for name in (f"t_{score}", f"different_{score}")]
    out.writerow(["model", "train_images", "t_best", "different_best", *chosen])
    for argument in sys.argv[1:]:
        name, _, artifact = argument.partition("=")
        model, (train, heldout) = sidepipe.load(artifact), sidepipe.load_split(artifact)
        start = model.sample(IMAGES, num_inference_steps=10, timestep_spacing="trailing")
        alphas = load_denoiser(Path(artifact), "32-true").alphas_cumprod
        trials = {t: trial(model, start, t, float(alphas[t])) for t in LEVELS}
        found = {
            t: sidepipe.compare(row["images"], train=train, heldout=heldout).unique
            for t, row in trials.items()
        }
        best = max(LEVELS, key=lambda t: found[t])
        row = [name, len(train), best, found[best]]
        for score in scores:
            t = max(LEVELS, key=lambda t: trials[t][score])  # the first of equal ones
            row += [t, found[t]]
        out.writerow(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
