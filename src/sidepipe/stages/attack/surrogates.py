"""The modules of surrogates: the classifier's gradient, and the error of a cut posterior.

The closed-form posterior itself is `sidepipe.diffusion.guidance.Posterior`.
"""

import logging
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from sidepipe.diffusion.guidance import Posterior, grad_of
from sidepipe.diffusion.nearest import NearestPosterior, cut_error

log = logging.getLogger(__name__)

# A relative error of a cut posterior above this gives a warning; it is taken at so many timesteps.
MAX_CUT_ERROR, CUT_TIMESTEPS = 0.1, 10


class ClassifierSurrogate(nn.Module):
    """The trained classifier's log p(y | x_t, t) and its gradient by autograd.

    network: (x_t, t) -> logits, in eval mode; its weights need no gradient.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def log_prob(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """log p(y | x_t, t), (n,), in x_t's dtype: logits may come in fewer bits."""
        log_probs = F.log_softmax(self.network(x_t, t).to(x_t.dtype), dim=1)
        return log_probs.gather(1, y[:, None])[:, 0]

    def grad_log_prob(self, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """grad_{x_t} log p(y | x_t, t), in x_t's shape and dtype."""
        return grad_of(self.log_prob)(x_t, t, y)


def judge_cut(
    cut: NearestPosterior,
    full: Posterior,
    guided: Sequence[int],
    rng: np.random.Generator,
    device: str,
) -> list[dict[str, int | float]]:
    """The relative error of a cut posterior's gradient at some of the guided timesteps.

    A warning names the timesteps with an error above `MAX_CUT_ERROR`.
    """
    at = np.linspace(0, len(guided) - 1, min(len(guided), CUT_TIMESTEPS)).round().astype(int)
    rows = cut_error(cut.to(device), full.to(device), [guided[i] for i in at], rng)
    cut.cpu()  # not on a device: it may be sent to other processes
    said = [f"t = {row['t']}: {row['relative_error']:.3f}" for row in rows]
    log.info("relative error of the posterior's cut at %s", ", ".join(said))
    wrong = [row["t"] for row in rows if row["relative_error"] > MAX_CUT_ERROR]
    if wrong:
        log.warning(
            "extract.surrogate.neighbors = %d changes the gradient by more than %g of its length "
            "at t in %s; remedy: raise it, set it to null, or set extract.guidance.t_max below %d",
            cut.neighbors,
            MAX_CUT_ERROR,
            wrong,
            min(wrong),
        )
    return rows
