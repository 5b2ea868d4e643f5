"""Guiding an `eps_fn` toward a surrogate label, and the surrogate posterior in closed form.

Guidance is a wrapper: `eps_hat = eps - lambda sqrt(1 - ab_t) grad_x log p(c | x_t)` (Dhariwal &
Nichol, 2021, algorithm 2; SIDE, section 4.2). `shaping` has wrappers of the gradient.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from sidepipe.diffusion.schedule import EpsFn, at, for_each, signal_and_noise

Labels = Int64[Tensor, "n"]
LogProbFn = Callable[[Tensor, Tensor, Labels], Float[Tensor, "n"]]
GradLogProbFn = Callable[[Tensor, Tensor, Labels], Tensor]

# Numbers in the largest intermediate of the posterior: 128 MB in float64, whatever the images. On a
# CPU 2 MB, which stay in its cache: twice as fast.
BLOCK_ELEMENTS, CPU_BLOCK_ELEMENTS = 2**24, 2**18


# log sum_i exp(w_i) and the mean of s_i weighted by exp(w_i), for each x_t.
Moments = tuple[Float[Tensor, "n"], Float[Tensor, "n d"]]


class NeedsEps(nn.Module):
    """Base of gradients that need the model's eps too: called with (x_t, t, y, eps), t as in EpsFn.

    It is its own `grad_log_prob`, so it stands wherever a surrogate does.
    """

    @property
    def grad_log_prob(self) -> "NeedsEps":
        return self


def gradient_at(
    grad_log_prob_fn: GradLogProbFn | NeedsEps, x_t: Tensor, t: int, y: Labels, eps: Tensor
) -> Tensor:
    """grad_{x_t} log p(y | x_t, t); eps is passed to a gradient that needs it."""
    if isinstance(grad_log_prob_fn, NeedsEps):
        return grad_log_prob_fn(x_t, t, y, eps)
    return grad_log_prob_fn(x_t, for_each(t, x_t), y)


def guided(
    eps_fn: EpsFn,
    grad_log_prob_fn: GradLogProbFn | NeedsEps,
    y: Labels,
    guidance_scale: float,
    alphas_cumprod: Float[Tensor, "T"],
    t_min: int = 0,
    t_max: int | None = None,
) -> EpsFn:
    """`eps_fn` steered toward label `y[i]` of each image at timesteps t_min <= t <= t_max.

    guidance_scale: lambda. Outside the interval the surrogate is not evaluated at all. t_max None:
    no upper end.
    """

    def guided_eps_fn(x_t: Tensor, t: int) -> Tensor:
        eps = eps_fn(x_t, t)
        if guidance_scale == 0 or t < t_min or (t_max is not None and t > t_max):
            return eps
        sigma = (1 - at(alphas_cumprod, t, x_t)).sqrt()
        return eps - guidance_scale * sigma * gradient_at(grad_log_prob_fn, x_t, t, y, eps)

    return guided_eps_fn


def conditioned(
    eps_fn: EpsFn,
    conditional_eps_fn: EpsFn,
    guidance_scale: float,
    t_min: int = 0,
    t_max: int | None = None,
) -> EpsFn:
    """eps + s (eps_c - eps) at timesteps t_min <= t <= t_max, elsewhere eps (Ho & Salimans, 2022).

    With s = 1 that is eps_c, and `eps_fn` is not evaluated there. With s = -w < 0 it leads away
    from the other model: eps + w (eps - eps_c). t_max None: no upper end.
    """

    def conditioned_eps_fn(x_t: Tensor, t: int) -> Tensor:
        if guidance_scale == 0 or t < t_min or (t_max is not None and t > t_max):
            return eps_fn(x_t, t)
        eps_c = conditional_eps_fn(x_t, t)
        if guidance_scale == 1:
            return eps_c
        eps = eps_fn(x_t, t)
        return eps + guidance_scale * (eps_c - eps)

    return conditioned_eps_fn


def grad_of(log_prob_fn: LogProbFn) -> GradLogProbFn:
    """grad_{x_t} log p(y | x_t, t) by autograd; the graph is freed before it returns."""

    def grad_log_prob_fn(x_t: Tensor, t: Tensor, y: Labels) -> Tensor:
        if torch.compiler.is_compiling():
            # One graph, forward and backward: a seventh faster than two, but slower when eager.
            return torch.func.grad(lambda x_t: log_prob_fn(x_t, t, y).sum())(x_t)
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_(True)
            total = log_prob_fn(x_t, t, y).sum()
            return torch.autograd.grad(total, x_t)[0].detach()

    return grad_log_prob_fn


class Posterior(nn.Module):
    """p(c | x_t) when the data are exactly the labeled synthetic images s_i; needs no training.

    With w_i = -|x_t - sqrt(ab_t) s_i|^2 / (2 (1 - ab_t)):
    log p(c | x_t) = logsumexp_{i in c} w_i - logsumexp_i w_i, and its gradient is
    sqrt(ab_t) / (1 - ab_t) * (E[s | x_t, c] - E[s | x_t]).

    images: (m, *shape), float in [-1, 1] or uint8, which takes a quarter of the memory and stands
    for [-1, 1] too; labels: int64 (m,), -1 for images that belong to no label. Weights are computed
    in float64: near t = 0 they are small differences of large numbers. Images lie sorted by label
    and pass in blocks, so memory beyond them is a few times BLOCK_ELEMENTS numbers.
    """

    images: Tensor
    square_norms: Tensor
    alphas_cumprod: Tensor

    def __init__(
        self,
        images: Float[Tensor, "m *shape"] | UInt8[Tensor, "m *shape"],
        labels: Int64[Tensor, "m"],
        alphas_cumprod: Float[Tensor, "T"],
    ) -> None:
        super().__init__()
        if len(images) != len(labels):
            raise ValueError(
                f"labels must be one per image, got {len(labels)} for {len(images)} images"
            )
        order = labels.argsort(stable=True)
        self.labels: list[int] = labels[order].tolist()
        self.register_buffer("images", images.flatten(1)[order], persistent=False)
        blocks = self._blocks(1, 0, len(labels), torch.float64)
        norms = [s.square().sum(1) for _, s in blocks]
        self.register_buffer("square_norms", torch.cat(norms), persistent=False)
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)

    def log_prob(self, x_t: Tensor, t: Tensor, y: Labels) -> Float[Tensor, "n"]:
        """log p(y | x_t), float64; -inf for a label that no image has."""
        within, overall = self._moments(x_t, t, y)
        return within[0] - overall[0]

    def grad_log_prob(self, x_t: Tensor, t: Tensor, y: Labels) -> Tensor:
        """grad_{x_t} log p(y | x_t), in x_t's shape and dtype; nan for a label of no image."""
        within, overall = self._moments(x_t, t, y)
        difference = within[1] - overall[1]
        signal, noise = signal_and_noise(self.alphas_cumprod, t, difference)
        return (signal / noise**2 * difference).reshape(x_t.shape).to(x_t.dtype)

    def log_probs(self, x_t: Tensor, t: Tensor) -> Float[Tensor, "n k"]:
        """log p(c | x_t) of every label c from 0 to the last, given that there is one; float64."""
        x, start = x_t.flatten(1).double(), bisect_left(self.labels, 0)
        joint = x.new_full((len(x), self.labels[-1] + 1), -torch.inf)
        for first, s in self._blocks(len(x), start, len(self.labels), x.dtype):
            w = self._weights(x, t, s, self.square_norms[first : first + len(s)])
            labels = torch.tensor(self.labels[first : first + len(s)], device=x.device)
            top = torch.full_like(joint, -torch.inf)
            top = top.scatter_reduce(1, labels.expand_as(w), w, "amax")
            total = torch.zeros_like(joint).index_add(1, labels, (w - top[:, labels]).exp())
            joint = torch.logaddexp(joint, top + total.log())
        return joint.log_softmax(1)

    def _moments(self, x_t: Tensor, t: Tensor, y: Labels) -> tuple[Moments, Moments]:
        """Over the images of y, and over all."""
        x = x_t.flatten(1).double()
        log_sum, mean = x.new_full((len(x),), -torch.inf), torch.full_like(x, torch.nan)
        for rows, start, stop in self._of_each_label(y):
            log_sum[rows], mean[rows] = self._moments_of(x[rows], t[rows], start, stop)
        return (log_sum, mean), self._moments_of(x, t, 0, len(self.labels))

    def _moments_of(self, x: Float[Tensor, "n d"], t: Tensor, start: int, stop: int) -> Moments:
        """logsumexp of w_i and E[s | x_t] over images start < stop, block after block."""
        log_sum, mean = x.new_full((len(x),), -torch.inf), torch.zeros_like(x)
        for first, s in self._blocks(len(x), start, stop, x.dtype):
            w = self._weights(x, t, s, self.square_norms[first : first + len(s)])
            share = w.softmax(1)
            # The largest share is 1 / sum_i exp(w_i - largest); a sum of exps would be slower.
            of_block = w.amax(1) - share.amax(1).log()
            both = torch.logaddexp(log_sum, of_block)
            mean = mean * (log_sum - both).exp()[:, None]
            mean = mean + (of_block - both).exp()[:, None] * (share @ s)
            log_sum = both
        return log_sum, mean

    def _weights(
        self,
        x: Float[Tensor, "n d"],
        t: Tensor,
        s: Float[Tensor, "b d"],
        square_norms: Float[Tensor, "b"],
    ) -> Float[Tensor, "n b"]:
        """w_i, less what is the same for every i and cancels: |x_t|^2."""
        alpha_bar = at(self.alphas_cumprod, t, x)
        # One product, norms and all: passes over n b numbers take longer than it does.
        left = [alpha_bar.sqrt() / (1 - alpha_bar) * x, -alpha_bar / (2 * (1 - alpha_bar))]
        return torch.cat(left, 1) @ torch.cat([s, square_norms[:, None]], 1).T

    def _of_each_label(self, y: Labels) -> Iterator[tuple[Int64[Tensor, "k"], int, int]]:
        """Rows of each label in y that has images, and where these start and stop."""
        for label in y.unique().tolist():
            start, stop = bisect_left(self.labels, label), bisect_right(self.labels, label)
            if start < stop:
                yield (y == label).nonzero()[:, 0], start, stop

    def _blocks(
        self, n: int, start: int, stop: int, dtype: torch.dtype
    ) -> Iterator[tuple[int, Float[Tensor, "b d"]]]:
        """Images start to stop with where each block begins.

        So many a block that neither they, with their norms, nor n rows of weights are larger than a
        block may be.
        """
        most = CPU_BLOCK_ELEMENTS if self.images.device.type == "cpu" else BLOCK_ELEMENTS
        size = max(1, min(most, BLOCK_ELEMENTS) // max(n, self.images.shape[1] + 1))
        for first in range(start, stop, size):
            yield first, self.pixels(slice(first, min(first + size, stop)), dtype)

    def pixels(self, which: slice | Int64[Tensor, "*k"], dtype: torch.dtype) -> Tensor:
        """Images in [-1, 1], (*k, d), by their place here; uint8 as `images.to_model` has it."""
        s = self.images[which]
        return (s.float().div_(127.5).sub_(1) if s.dtype == torch.uint8 else s).to(dtype)
