"""Noise, denoising, refinement and sampling by a model, as an audit takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidepipe.base.settings import Precision
from sidepipe.engine.stage import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidepipe.diffusion.denoiser import Denoiser
    from sidepipe.memorization.audit import Images, Move, Probe


def mover(
    denoiser: Denoiser, probe: Probe, seed: int, precision: Precision, runtime: Runtime
) -> Move:
    """The `Move` of a model: noise, one denoising step, refinement, as `returns` calls them."""
    from sidepipe.diffusion.cycles import fixed_point
    from sidepipe.engine.image_sampler import ImageSampler
    from sidepipe.engine.sampling import sample_to_array

    def move(images: Images, t: int | None, refine: bool, first: int) -> Images:
        sampler = ImageSampler(
            denoiser,
            seed=seed,
            stream="audit",
            timesteps=[] if t is None else [t],
            eta=0.0,
            chains=[fixed_point(probe.t, probe.steps)] if refine else [],
        )
        return sample_to_array(
            sampler, len(images), len(images), precision, runtime, images, first=first
        )

    return move


def refined_samples(
    denoiser: Denoiser, probe: Probe, seed: int, precision: Precision, runtime: Runtime
) -> Callable[[range], Images]:
    """Samples of a model by their numbers, refined as `mover` refines images."""
    from sidepipe.diffusion.cycles import fixed_point
    from sidepipe.engine.image_sampler import ImageSampler
    from sidepipe.engine.sampling import sample_to_array
    from sidepipe.stages.audit.chances import STEPS

    def sample(numbers: range) -> Images:
        sampler = ImageSampler(
            denoiser,
            seed=seed,
            stream="calibration",
            timesteps=denoiser.timesteps(STEPS, "trailing"),
            eta=0.0,
            chains=[fixed_point(probe.t, probe.steps)],
        )
        count = len(numbers)
        return sample_to_array(sampler, count, count, precision, runtime, first=numbers.start)

    return sample
