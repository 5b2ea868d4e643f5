"""Guiding an `eps_fn` toward a surrogate label, and the surrogate posterior in closed form.

Guidance is a wrapper: `eps_hat = eps - lambda sqrt(1 - ab_t) grad_x log p(c | x_t)` (Dhariwal &
Nichol, 2021, algorithm 2; SIDE, section 4.2).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sidepipe.diffusion.schedule import EpsFn, at

Labels = Int64[Tensor, "n"]
LogProbFn = Callable[[Tensor, Tensor, Labels], Float[Tensor, "n"]]
GradLogProbFn = Callable[[Tensor, Tensor, Labels], Tensor]


def guided(
    eps_fn: EpsFn,
    grad_log_prob_fn: GradLogProbFn,
    y: Labels,
    guidance_scale: float,
    alphas_cumprod: Float[Tensor, "T"],
    t_min: int = 0,
    t_max: int | None = None,
) -> EpsFn:
    """`eps_fn` steered toward label `y[i]` of each image at timesteps t_min <= t <= t_max.

    guidance_scale: lambda. All images of a call must share their t, as a sampler's do: outside the
    interval the surrogate is then not evaluated at all. t_max None: no upper end.
    """

    def guided_eps_fn(x_t: Tensor, t: Tensor) -> Tensor:
        eps = eps_fn(x_t, t)
        step = int(t[0])
        if guidance_scale == 0 or step < t_min or (t_max is not None and step > t_max):
            return eps
        sigma = (1 - at(alphas_cumprod, t, x_t)).sqrt()
        return eps - guidance_scale * sigma * grad_log_prob_fn(x_t, t, y)

    return guided_eps_fn


def grad_of(log_prob_fn: LogProbFn) -> GradLogProbFn:
    """grad_{x_t} log p(y | x_t, t) by autograd; the graph is freed before it returns."""

    def grad_log_prob_fn(x_t: Tensor, t: Tensor, y: Labels) -> Tensor:
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_(True)
            total = log_prob_fn(x_t, t, y).sum()
            return torch.autograd.grad(total, x_t)[0].detach()

    return grad_log_prob_fn


class Posterior(nn.Module):
    """p(c | x_t) when the data are exactly the labelled synthetic images s_i; needs no training.

    With w_i = -|x_t - sqrt(ab_t) s_i|^2 / (2 (1 - ab_t)):
    log p(c | x_t) = logsumexp_{i in c} w_i - logsumexp_i w_i, and its gradient is
    sqrt(ab_t) / (1 - ab_t) * (E[s | x_t, c] - E[s | x_t]).

    images: (m, *shape) in [-1, 1]; labels: int64 (m,), -1 for images that belong to no label.
    Weights are computed in float64: near t = 0 they are small differences of large numbers. Images
    pass in blocks of `block`, so memory beyond the images is n x m weights and one block.
    """

    images: Tensor
    labels: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        images: Float[Tensor, "m *shape"],
        labels: Int64[Tensor, "m"],
        alphas_cumprod: Float[Tensor, "T"],
        block: int = 8192,
    ) -> None:
        super().__init__()
        if len(images) != len(labels):
            raise ValueError(
                f"labels must be one per image, got {len(labels)} for {len(images)} images"
            )
        self.block = block
        self.register_buffer("images", images.flatten(1), persistent=False)
        self.register_buffer("labels", labels, persistent=False)
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def log_prob(self, x_t: Tensor, t: Tensor, y: Labels) -> Float[Tensor, "n"]:
        """log p(y | x_t), float64; -inf for a label that no image has."""
        w = self._weights(x_t, t)
        within = w.masked_fill(self.labels != y[:, None], -torch.inf)
        return within.logsumexp(1) - w.logsumexp(1)

    def grad_log_prob(self, x_t: Tensor, t: Tensor, y: Labels) -> Tensor:
        """grad_{x_t} log p(y | x_t), in x_t's shape and dtype."""
        w = self._weights(x_t, t)
        within = w.masked_fill(self.labels != y[:, None], -torch.inf)
        difference = self._mean(within.softmax(1) - w.softmax(1))
        alpha_bar = at(self.alphas_cumprod, t, difference)
        return (alpha_bar.sqrt() / (1 - alpha_bar) * difference).reshape(x_t.shape).to(x_t.dtype)

    def _weights(self, x_t: Tensor, t: Tensor) -> Float[Tensor, "n m"]:
        x = x_t.flatten(1).double()
        alpha_bar = self.alphas_cumprod[t].double()[:, None]
        columns = []
        for s in self.images.split(self.block):
            s = s.double()
            inner = x @ s.T * alpha_bar.sqrt()
            # |x_t|^2 is the same for every i and cancels in both softmaxes.
            columns.append((2 * inner - alpha_bar * s.square().sum(1)) / (2 * (1 - alpha_bar)))
        return torch.cat(columns, 1)

    def _mean(self, weights: Float[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        mean = weights.new_zeros(len(weights), self.images.shape[1])
        for w, s in zip(weights.split(self.block, 1), self.images.split(self.block), strict=True):
            mean += w @ s.double()
        return mean
