"""The closed-form posterior with its sums cut to the nearest images, and the error of the cut.

At little noise a few images hold all the weight and the cut is exact. At high noise the weights
are nearly equal and the noise decides which are nearest: there the cut is wrong unless
`neighbors` is close to the number of images. So the error is measured, never assumed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sidepipe.diffusion import guidance
from sidepipe.diffusion.guidance import Moments, Posterior
from sidepipe.diffusion.schedule import add_noise


class NearestPosterior(Posterior):
    """`Posterior` over the `neighbors` images nearest to x_t / sqrt(ab_t), of y and of all.

    The nearest are found by exact distances in float32, in blocks; their weights are in float64.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, alphas_cumprod: Tensor, neighbors: int
    ) -> None:
        super().__init__(images, labels, alphas_cumprod)
        self.neighbors = neighbors

    def _moments_of(self, x: Float[Tensor, "n d"], t: Tensor, start: int, stop: int) -> Moments:
        chosen = self._nearest(x.detach(), t, start, stop)
        # So many neighbors at a time that all rows' pixels fit a block.
        parts = chosen.split(max(1, guidance.BLOCK_ELEMENTS // x.numel()), 1)
        w = torch.cat([self._weights_of(x, t, part) for part in parts], 1)
        mean = torch.zeros_like(x)
        shares = w.softmax(1).split([part.shape[1] for part in parts], 1)
        for share, part in zip(shares, parts, strict=True):
            mean = mean + torch.einsum("nk,nkd->nd", share, self.pixels(part, x.dtype))
        return w.logsumexp(1), mean

    def _nearest(
        self, x: Float[Tensor, "n d"], t: Tensor, start: int, stop: int
    ) -> Int64[Tensor, "n k"]:
        """Indices of the nearest of images start to stop: `neighbors`, or all if fewer."""
        closeness = x.new_empty((len(x), 0), dtype=torch.float32)
        chosen = t.new_empty((len(x), 0))
        # A sampler in bf16 would else find them in bf16.
        with torch.autocast(x.device.type, enabled=False):
            for first, s in self._blocks(len(x), start, stop, torch.float32):
                norms = self.square_norms[first : first + len(s)].float()
                closeness = torch.cat([closeness, self._weights(x.float(), t, s, norms)], 1)
                here = torch.arange(first, first + len(s), device=x.device).expand(len(x), -1)
                chosen = torch.cat([chosen, here], 1)
                closeness, best = closeness.topk(min(self.neighbors, closeness.shape[1]), 1)
                chosen = chosen.gather(1, best)
        return chosen

    def _weights_of(
        self, x: Float[Tensor, "n d"], t: Tensor, chosen: Int64[Tensor, "n k"]
    ) -> Float[Tensor, "n k"]:
        """As `_weights`, each x_t with its own images."""
        alpha_bar = self.alphas_cumprod[t].to(x.dtype)[:, None]
        inner = torch.einsum("nd,nkd->nk", x, self.pixels(chosen, x.dtype)) * alpha_bar.sqrt()
        return (2 * inner - alpha_bar * self.square_norms[chosen]) / (2 * (1 - alpha_bar))


def cut_error(
    cut: NearestPosterior,
    full: Posterior,
    timesteps: Sequence[int],
    generator: np.random.Generator,
    num_samples: int = 64,
) -> list[dict[str, int | float]]:
    """Relative error of the cut gradient against the full one, a row for each of `timesteps`.

    |cut - full| / |full|, norms over all samples: synthetic images noised to t, each with the label
    of another image, so labels occur as often as they have images. Rows: t, relative_error.
    """
    labels, (m, d), device = np.asarray(full.labels), full.images.shape, full.images.device
    rows = []
    for step in timesteps:
        images = torch.from_numpy(generator.integers(m, size=num_samples)).to(device)
        y = torch.from_numpy(generator.choice(labels[labels >= 0], num_samples)).to(device)
        eps = torch.from_numpy(generator.standard_normal((num_samples, d), np.float32)).to(device)
        t = torch.full((num_samples,), step, device=device)
        x_t = add_noise(full.pixels(images, torch.float32), eps, t, full.alphas_cumprod)
        exact = full.grad_log_prob(x_t, t, y)
        error = (cut.grad_log_prob(x_t, t, y) - exact).norm() / exact.norm()
        rows.append({"t": int(step), "relative_error": float(error)})
    return rows
