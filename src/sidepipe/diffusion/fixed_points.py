"""How refinement behaves around an image: what tells a memorized image from an average of many.

Both are fixed points of refinement. Around a memorized image the map contracts, because every
nearby image is led to it; between training images it passes differences on.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

Map = Callable[[Float[Tensor, "n *shape"]], Float[Tensor, "n *shape"]]
Draw = Callable[[], Float[Tensor, "n *shape"]]
Scores = Float[Tensor, "n"]

# Root mean square of the differences that images get, in units of x_0: small next to an image, and
# large next to the rounding of float32.
LENGTH = 0.05
PROBES, POWER_STEPS = 6, 8
# Network evaluations of `responses`.
EVALUATIONS = 1 + PROBES + POWER_STEPS


def rms(x: Float[Tensor, "n *shape"]) -> Scores:
    """The root mean square of each image."""
    return x.flatten(1).square().mean(1).sqrt()


def responses(step: Map, x: Float[Tensor, "n *shape"], noise_fn: Draw) -> dict[str, Scores]:
    """Facts about the map `step` at each image, by finite differences of the length LENGTH.

    residual: the distance that the map moves the image. mean_gain: the root mean square response to
    PROBES random sign vectors, relative to their length; for a linear map, its Frobenius norm
    divided by the root of the number of pixels. top_gain: the relative response after POWER_STEPS
    repetitions of the map's difference, which turn toward the direction that it contracts least.
    noise_fn: standard normal noise, the same for an image whatever its batch.
    """
    there = step(x)

    def response(change: Tensor) -> Tensor:
        return step(x + change) - there

    squares = [rms(response(LENGTH * noise_fn().sign())).square() for _ in range(PROBES)]
    mean_gain = (sum(squares[1:], squares[0]) / PROBES).sqrt() / LENGTH
    change, top_gain = LENGTH * noise_fn().sign(), mean_gain
    for _ in range(POWER_STEPS):
        found = response(change)
        top_gain = rms(found) / LENGTH
        # A map that is constant around the image has no direction; its gain is 0.
        scale = LENGTH / rms(found).clamp_min(1e-12)
        change = found * scale.reshape(-1, *[1] * (x.ndim - 1))
    return {"residual": rms(there - x), "mean_gain": mean_gain, "top_gain": top_gain}


def denoising_error(
    step: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "n *shape"],
    noise_fn: Draw,
    draws: int,
) -> Scores:
    """The mean distance of each image to `step(x, noise)`, over `draws` of noise."""
    errors = [rms(step(x, noise_fn()) - x) for _ in range(draws)]
    return sum(errors[1:], errors[0]) / draws
