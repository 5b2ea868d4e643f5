"""Gaussian mixtures: the noise that an optimal denoiser predicts for them, in closed form.

With x_0 from a mixture of normal distributions, x_t is one too, and so are the conditional mean of
x_0 and eps. A mixture of points is the training set itself: the empirical score, whose model
returns training images alone (Kadkhodaie et al., arXiv 2310.02557; Biroli et al., 2402.18491).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

EXACT = "donot_use_mm_for_euclid_dist"


class Mixture(NamedTuple):
    """Normal distributions of equal weight, which share their covariance.

    means: (n, d), a repeated one counts as often. variances: (d,) along the columns of `basis`, an
    orthonormal matrix (d, d); None for the pixels themselves.
    """

    means: Float[Tensor, "n d"]
    variances: Float[Tensor, "d"]
    basis: Float[Tensor, "d d"] | None = None

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "m d"]:
        """Exact samples."""
        n, d = self.means.shape
        noise = torch.randn(count, d, generator=generator, dtype=self.means.dtype)
        chosen = torch.randint(n, (count,), generator=generator)
        spread = noise * self.variances.sqrt()
        return self.means[chosen] + (spread if self.basis is None else spread @ self.basis.T)

    def eps(self, x_t: Float[Tensor, "m d"], alpha_bar: Float[Tensor, "m"]) -> Float[Tensor, "m d"]:
        """E[eps | x_t] for x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, 0 < alpha_bar < 1.

        Memory: (m, n) numbers. float64 is needed at little noise, where weights differ by exponents
        of differences of large numbers.
        """
        x, signal = self._turned(x_t), alpha_bar.sqrt()[:, None]
        means, total = self._turned(self.means), self._variances_at(alpha_bar)
        shares = self._log_weights(x, means, signal, total).softmax(1)
        found = (1 - alpha_bar).sqrt()[:, None] * (x - signal * (shares @ means)) / total
        return found if self.basis is None else found @ self.basis.T

    def log_density(
        self, x_t: Float[Tensor, "m d"], alpha_bar: Float[Tensor, "m"]
    ) -> Float[Tensor, "m"]:
        """log p_t(x_t); alpha_bar of 1 for the mixture itself, unless a variance is 0."""
        total = self._variances_at(alpha_bar)
        x, means = self._turned(x_t), self._turned(self.means)
        weights = self._log_weights(x, means, alpha_bar.sqrt()[:, None], total).logsumexp(1)
        log_count = torch.tensor(float(len(means))).log()
        return weights - log_count - 0.5 * (2 * torch.pi * total).log().sum(1)

    def square_distance(self, other: Mixture) -> float:
        """The integral of (p - q)**2 over all of space, in closed form; 0 for equal mixtures.

        It is the distance of kernel density estimates where both are ones. Each covariance must
        have full rank.
        """
        return _overlap(self, self) - 2 * _overlap(self, other) + _overlap(other, other)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """That of each normal distribution."""
        basis = torch.eye(len(self.variances)).to(self.means) if self.basis is None else self.basis
        return (basis * self.variances) @ basis.T

    def _turned(self, x: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        return x if self.basis is None else x @ self.basis

    def _variances_at(self, alpha_bar: Float[Tensor, "m"]) -> Float[Tensor, "m d"]:
        return alpha_bar[:, None] * self.variances + (1 - alpha_bar[:, None])

    @staticmethod
    def _log_weights(x: Tensor, means: Tensor, signal: Tensor, total: Tensor) -> Tensor:
        """-|x - signal mean|^2 / 2 in units of `total`, for every mean: (m, n)."""
        square = (x**2 / total).sum(1, keepdim=True)
        crossed = signal * ((x / total) @ means.T)
        return crossed - 0.5 * (square + signal**2 * ((1 / total) @ (means**2).T))


def _overlap(p: Mixture, q: Mixture) -> float:
    """The integral of the product of two mixtures: the mean normal density of their differences."""
    both = p.covariance + q.covariance
    root = torch.linalg.cholesky(both)
    x, y = (torch.linalg.solve_triangular(root, m.means.T, upper=False).T for m in (p, q))
    log_scale = root.diagonal().log().sum() + 0.5 * len(both) * np.log(2 * np.pi)
    return float((-0.5 * torch.cdist(x, y, compute_mode=EXACT).square() - log_scale).exp().mean())
