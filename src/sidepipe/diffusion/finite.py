"""An error instead of images if a model predicts nan or infinity, with the step and the images.

Each step adds one reduction on the device; it is read once, when the images are done. Clipping
would turn an infinite eps into a black image, so eps is checked before it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from sidepipe.base.images import finite_images
from sidepipe.diffusion.schedule import EpsFn

# For each eps: its source, its t, and the images in which it is finite.
Seen = list[tuple[str, int, Bool[Tensor, "n"]]]
SHOWN = 5
NOT_FINITE = (
    "a weight is not finite, or 16 bits overflow (float16 ends at 65,504); remedy: check the "
    "model's weights, and set precision=bf16-mixed or 32-true"
)


def watched(eps_fn: EpsFn, what: str, seen: Seen) -> EpsFn:
    """`eps_fn` that records in `seen` the facts for `require_finite_eps`.

    what: its name in the error.
    """

    def watched_eps_fn(x_t: Tensor, t: int) -> Tensor:
        eps = eps_fn(x_t, t)
        seen.append((what, t, finite_images(eps)))
        return eps

    return watched_eps_fn


def require_finite_eps(seen: Seen, where: str, numbers: Sequence[int]) -> None:
    """Raises RuntimeError unless every eps in `seen` is finite, naming the first that is not.

    where: the stage. numbers: of the images of the batch.
    """
    finite = torch.stack([rows for _, _, rows in seen])
    if finite.all():
        return
    what, t, rows = seen[int((~finite.all(1)).nonzero()[0])]
    bad = [numbers[i] for i in (~rows).nonzero()[:, 0].tolist()]
    named = ", ".join(map(str, bad[:SHOWN])) + (", ..." if len(bad) > SHOWN else "")
    raise RuntimeError(
        f"{where}: {what} is not finite at t = {t}, in {len(bad)} of {len(numbers)} images of a "
        f"batch (images {named}); {NOT_FINITE}"
    )
