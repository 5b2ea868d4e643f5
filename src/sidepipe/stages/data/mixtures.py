"""Images drawn from a known distribution: one normal distribution, or a mixture of several.

The truth is known exactly: `dpm=exact dpm.score=population` is its optimal model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sidepipe.base.image_reading import Entry
from sidepipe.base.settings import require
from sidepipe.stages.data.sources import Source

if TYPE_CHECKING:
    from sidepipe.diffusion.mixtures import Mixture

MOST_DEVIATION = 0.2  # five standard deviations from 0 to the end of [-1, 1]


@dataclass(frozen=True)
class Mixtures(Source):
    """Gray images from normal distributions of equal weight with one covariance.

    num_images: of the partition train. components: how many; identity is the component. size: side
    in pixels. deviation: standard deviation of a pixel within a component, for images in [-1, 1].
    spread: that of the components' means. slope: of the spectrum, the variance of a cosine with
    frequency f is proportional to (1 + f)**-slope; 0 is white noise. seed: of means and images.
    Values beyond [-1, 1] are clipped, and all are rounded to 8 bits.
    """

    num_images: int
    components: int
    size: int
    deviation: float
    spread: float
    slope: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("num_images", "components", "size"):
            value = getattr(self, name)
            require(value >= 1, f"data.source.{name}", ">= 1", value)
        whole = float(np.hypot(self.deviation, self.spread))
        name = "data.source.deviation and spread"
        rule = (
            f">= 0, with sqrt(deviation**2 + spread**2) <= {MOST_DEVIATION}, or images are clipped"
        )
        fits = self.deviation > 0 and self.spread >= 0 and whole <= MOST_DEVIATION
        require(fits, name, rule, (self.deviation, self.spread))

    def entries(self) -> list[Entry]:
        rng = np.random.default_rng([self.seed, 1])
        mixture = self._arrays()
        chosen = rng.integers(self.components, size=self.num_images)
        noise = rng.standard_normal((self.num_images, self.size**2))
        x_0 = mixture[0][chosen] + (noise * np.sqrt(mixture[1])) @ mixture[2].T
        pixels = np.rint((np.clip(x_0, -1, 1) + 1) * 127.5).astype(np.uint8)
        images = pixels.reshape(-1, self.size, self.size)
        return [
            Entry(
                f"{i:06d}", "train", str(component), partial(Image.fromarray, image), f"image {i}"
            )
            for i, (image, component) in enumerate(zip(images, chosen, strict=True))
        ]

    def listing(self) -> str:
        return f"{self.num_images} images of {self.components} normal distributions"

    def mixture(self) -> Mixture:
        """The distribution of x_0 before rounding, in float64."""
        import torch

        from sidepipe.diffusion.mixtures import Mixture

        return Mixture(*map(torch.from_numpy, self._arrays()))

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means (components, d), variances (d,) and basis (d, d)."""
        rng, basis = np.random.default_rng([self.seed, 0]), _cosines(self.size)
        frequency = np.add.outer(np.arange(self.size), np.arange(self.size)).ravel()
        power = (1.0 + frequency) ** -self.slope
        power /= power.mean()
        means = rng.standard_normal((self.components, self.size**2)) * np.sqrt(power)
        return self.spread * means @ basis.T, self.deviation**2 * power, basis


def _cosines(size: int) -> Any:
    """The discrete cosine transform of images: orthonormal columns, (size**2, size**2)."""
    from scipy.fft import idct

    one: Any = idct(np.eye(size), axis=0, norm="ortho")
    return np.kron(one, one)
