"""A generative model that is solved exactly: from how many training rows on does it generalize?

Halder (arXiv 2411.17807): rows from N(0, 1) in d dimensions, a linear denoiser fitted to N of them
at one noise level, and one step of it from pure noise as the generator. The generated distribution
is normal, so its distance from the truth and from the training rows has a closed form.

    python examples/linear_denoiser.py > docs/results/data/linear_denoiser.csv
"""

import csv
import sys

import torch
from torch import Tensor

from sidepipe.diffusion.mixtures import Mixture

SIGNAL = 0.5  # alpha_bar of the one noise level
RIDGE = 1e-3  # added to the generated variances, which are 0 in some directions where N < d
DRAWS = 200
DIMENSIONS = (8, 32)
PER_DIMENSION = (0.25, 0.5, 1, 2, 4, 16)
BANDWIDTHS = (0.5, 1.0, 2.0, 4.0)


def generated(train: Tensor) -> Mixture:
    """What one step from noise generates: x_0 = mean + W (x_T - sqrt(ab) mean), x_T from N(0, 1).

    W = sqrt(ab) S (ab S + 1 - ab)^-1, the linear denoiser with the least squared error for training
    data of covariance S, with any noise.
    """
    mean = train.mean(0)
    values, basis = torch.linalg.eigh((train - mean).T @ (train - mean) / len(train))
    gain = SIGNAL**0.5 * values / (SIGNAL * values + 1 - SIGNAL)
    center = mean - basis @ (gain * SIGNAL**0.5 * (basis.T @ mean))
    return Mixture(center[None], gain**2 + RIDGE, basis)


def divergence(model: Mixture) -> float:
    """KL(generated || truth) of normal distributions, in nats."""
    variances, square = model.variances, model.means.square().sum()
    return float(0.5 * (variances.sum() + square - len(variances) - variances.log().sum()))


def smoothed(mixture: Mixture, bandwidth: float) -> Mixture:
    """The distribution of its samples' kernel density estimate, for infinitely many samples."""
    return mixture._replace(variances=mixture.variances + bandwidth**2)


def nearer(model: Mixture, train: Tensor, unseen: Tensor, bandwidth: float) -> tuple[bool, bool]:
    """Whether the model is nearer to the truth than to the training rows, and to unseen rows.

    By squared distances of kernel density estimates, the former is Halder's Delta > 0. The latter
    compares like with like: estimates of as many rows.
    """
    d = train.shape[1]
    kernel = torch.full((d,), bandwidth**2, dtype=train.dtype)
    own = smoothed(model, bandwidth)
    others = Mixture(train.new_zeros(1, d), 1 + kernel), Mixture(unseen, kernel)
    distance = own.square_distance(Mixture(train, kernel))
    to_truth, to_unseen = (distance > own.square_distance(other) for other in others)
    return to_truth, to_unseen


def main() -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    head = ["dimension", "train_rows", "bandwidth", "divergence"]
    writer.writerow([*head, "nearer_to_truth", "nearer_to_unseen"])
    for d in DIMENSIONS:
        for ratio in PER_DIMENSION:
            draw = torch.Generator().manual_seed(0)
            shape = (DRAWS, 2, max(2, round(ratio * d)), d)
            pairs = torch.randn(shape, generator=draw, dtype=torch.float64)
            models = [generated(train) for train, _ in pairs]
            mean = sum(map(divergence, models)) / DRAWS
            for bandwidth in BANDWIDTHS:
                found = [
                    nearer(model, *pair, bandwidth)
                    for model, pair in zip(models, pairs, strict=True)
                ]
                shares = torch.tensor(found).double().mean(0).tolist()
                writer.writerow([d, shape[2], bandwidth, f"{mean:.4g}", *shares])


if __name__ == "__main__":
    main()
