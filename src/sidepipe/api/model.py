"""A loaded model: sampling and refinement of uint8 images, or of rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from sidepipe.api.images import Images, checked
from sidepipe.api.naming import as_arguments, require_numbers, require_whole
from sidepipe.api.refining import checked_cycle
from sidepipe.base.settings import PRECISIONS, Precision, require, require_known
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.sampler import require_x_0
from sidepipe.diffusion.timesteps import SPACINGS, Guidance
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.sampling import sample_to_array
from sidepipe.engine.stage import Runtime
from sidepipe.models.tables import RowDenoiser

if TYPE_CHECKING:
    import pandas as pd

# No batch crosses a multiple of it, as no batch of the sampling stages crosses two files.
SHARD_SIZE = 1000


@dataclass(frozen=True, eq=False)
class Model:
    """A diffusion model of images or latents, without text. ``sidepipe.load`` makes it.

    Attributes:
        path: the folder or the hub id of the checkpoint.
        image_shape: ``(height, width, channels)`` of its images.
        num_classes: classes of a class-conditional model; ``None`` for an unconditional one.
        num_train_timesteps: noise levels of its schedule; ``t`` is in ``[0, num_train_timesteps)``.
        null_class: the class that stands for no class; ``None`` where there is none.
    """

    path: str
    image_shape: tuple[int, int, int]
    num_train_timesteps: int
    num_classes: int | None
    null_class: int | None
    _denoiser: Denoiser = field(repr=False)
    _base: Denoiser | None = field(repr=False)
    _runtime: Runtime = field(repr=False)

    def sample(
        self,
        num_images: int,
        *,
        seed: int = 0,
        num_inference_steps: int = 50,
        sampler: Literal["ddim", "dpm_solver_pp", "heun"] = "ddim",
        eta: float = 0.0,
        timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None,
        precision: Precision = "bf16-mixed",
        classes: Sequence[int] | None = None,
        condition_guidance_scale: float = 1.0,
        base_guidance_scale: float = 0.0,
    ) -> Images:
        """Sample images, as the unconditional baseline of the pipeline does.

        The noise of image ``i`` depends on ``seed`` and ``i`` alone, so the first images of a
        larger sample are those of a smaller one, up to rounding.

        Args:
            num_images: number of images, >= 1.
            seed: in ``[0, 2**32)``.
            num_inference_steps: steps per image, in ``[1, num_train_timesteps]``. Each is one
                evaluation of the network; with ``"heun"`` two, but for the last, and for the first
                where that is pure noise (flow models).
            sampler: ``"ddim"``, or of second order, for few steps, ``"dpm_solver_pp"`` or
                ``"heun"``.
            eta: in ``[0, 1]``; 0 for DDIM, 1 for ancestral sampling. 0 for the others.
            timestep_spacing: as in diffusers; ``None`` for that of the model's own scheduler.
            precision: ``"bf16-mixed"``, ``"16-mixed"`` or ``"32-true"``.
            classes: of a class-conditional model, the numbers of classes that the images get in
                turn; ``None`` for all classes.
            condition_guidance_scale: s of classifier-free guidance, ``eps_null + s (eps_class -
                eps_null)``: 1 for the class alone, 0 for no class; others take two evaluations per
                step. Anything but 1 needs a null class.
            base_guidance_scale: w of ``eps + w (eps - eps_base)``, >= 0, which leads away from the
                base of a fine-tuned model with two evaluations per step; 0 for none.

        Returns:
            uint8 images ``(num_images, height, width, channels)``; of a table model, float32 rows
            ``(num_images, 1, 1, d)`` for ``decode``.

        Raises:
            ValueError: where an argument is out of its range.
            RuntimeError: where the model predicts nan or infinity.

        Source:
            Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502. The base as a
            contrast: FineXtract (Wu et al., arXiv 2410.03039), whose scale is w + 1.

        Example:
            >>> import sidepipe
            >>> model = sidepipe.load(checkpoint)  # a folder of DDPMPipeline.save_pretrained
            >>> images = model.sample(4, seed=0, num_inference_steps=5)
            >>> images.shape, images.dtype
            ((4, 8, 8, 1), dtype('uint8'))
        """
        require_whole(num_images=num_images, seed=seed, num_inference_steps=num_inference_steps)
        require_numbers(eta=eta)
        require(num_images >= 1, "num_images", ">= 1", num_images)
        require(0 <= seed < 2**32, "seed", "in [0, 2**32)", seed)
        most, steps = self.num_train_timesteps, num_inference_steps
        require(1 <= steps <= most, "num_inference_steps", f"in [1, {most}]", steps)
        require_known("sampler", sampler, ["ddim", "dpm_solver_pp", "heun"])
        if timestep_spacing is not None:
            require_known("timestep_spacing", timestep_spacing, SPACINGS)
        rule = "in [0, 1]" if sampler == "ddim" else f"0 for {sampler}"
        require(0 <= eta <= (sampler == "ddim"), "eta", rule, eta)
        require_known("precision", precision, PRECISIONS)
        guidance = self._away_from_base(base_guidance_scale)
        self._guide(condition_guidance_scale)
        with as_arguments():
            image_sampler = ImageSampler(
                self._denoiser,
                seed=seed,
                stream="extract",
                sampler=sampler,
                timesteps=self._denoiser.timesteps(steps, timestep_spacing),
                eta=eta,
                surrogate=None if guidance is None else self._base,
                guidance=guidance,
            )
            return self._made(image_sampler, num_images, precision, classes)

    def refine(
        self,
        images: Images,
        *,
        t: int = 60,
        steps: int = 8,
        noise: float = 0.0,
        denoising_steps: int = 1,
        eta: float = 0.0,
        relaxation: float = 1.0,
        seed: int = 0,
        precision: Precision = "bf16-mixed",
        classes: Sequence[int] | None = None,
        condition_guidance_scale: float = 1.0,
    ) -> Images:
        """Move images toward a mode of the model, which brings out what it has memorized.

        Each step takes an image for one with the noise of timestep ``t`` and replaces it with the
        image that the model predicts without this noise. No noise is added, unless ``noise`` is
        above 0. Where the model has memorized training images, these are the fixed points.

        Args:
            images: uint8 ``(n, height, width, channels)``, such as from ``sample``.
            t: timestep whose noise is assumed, in ``[0, num_train_timesteps)``. At more noise,
                images that are alike merge.
            steps: repetitions, >= 1.
            noise: the share of the noise of ``t`` that each step adds, in ``[0, 1]``; 1 for cyclic
                denoising.
            denoising_steps: evaluations of the network per repetition, in ``[1, t]``, at timesteps
                from ``t`` down.
            eta: of these, in ``[0, 1]``; 0 for DDIM, 1 for ancestral sampling.
            relaxation: each step starts this many times as far away as the last one led, in
                ``[1, 2)``; above 1, without noise, images arrive in fewer steps.
            seed: of the noise, in ``[0, 2**32)``.
            precision: ``"bf16-mixed"``, ``"16-mixed"`` or ``"32-true"``.
            classes: of a class-conditional model, the numbers of classes that the images get in
                turn; ``None`` for all classes, as images of ``sample`` have them.
            condition_guidance_scale: as of ``sample``; 0 for no class.

        Returns:
            uint8 images of the same shape.

        Raises:
            ValueError: where an argument is out of its range, or the images do not fit the model.
            RuntimeError: where the model predicts nan or infinity.

        Source:
            Tweedie's formula as a step (Kadkhodaie and Simoncelli, NeurIPS 2021); for a model that
            has memorized its training images it is mean shift (Comaniciu and Meer, 2002). Cyclic
            denoising: Sharma and Martiniani, arXiv 2606.24000.

        Example:
            >>> import sidepipe
            >>> model = sidepipe.load(checkpoint)
            >>> images = model.sample(4, seed=0, num_inference_steps=5)
            >>> model.refine(images, t=60, steps=2).shape
            (4, 8, 8, 1)
        """
        self._require_own(images)
        cycle = checked_cycle(
            num_train_timesteps=self.num_train_timesteps,
            t=t,
            noise=noise,
            denoising_steps=denoising_steps,
            eta=eta,
            relaxation=relaxation,
        )
        require_whole(steps=steps, seed=seed)
        require(steps >= 1, "steps", ">= 1", steps)
        require(0 <= seed < 2**32, "seed", "in [0, 2**32)", seed)
        require_known("precision", precision, PRECISIONS)
        self._guide(condition_guidance_scale)
        require_x_0(self._denoiser.prediction_type, self._denoiser.alphas_cumprod, [t])
        refiner = ImageSampler(
            self._denoiser,
            seed=seed,
            stream="refine",
            timesteps=[],
            eta=0.0,
            chains=[[cycle] * steps],
        )
        return self._made(refiner, len(images), precision, classes, images)

    def decode(self, rows: np.ndarray) -> pd.DataFrame:
        """Rows of a table model as a data frame, which ``sidepipe.compare`` takes.

        Args:
            rows: float32 ``(n, 1, 1, d)``, from ``sample``, ``refine`` or ``sidepipe.load_split``.

        Returns:
            A pandas DataFrame with the columns of the table.

        Raises:
            ValueError: where the model makes images, or the rows are not its own.
        """
        rule, remedy = "one of table rows", "images of sample and refine need no decoding"
        denoiser = self._denoiser
        require(isinstance(denoiser, RowDenoiser), "model", rule, "a model of images", remedy)
        assert isinstance(denoiser, RowDenoiser)
        self._require_own(rows)
        return denoiser.encoding.decode(rows)

    def _made(
        self,
        sampler: ImageSampler,
        count: int,
        precision: Precision,
        classes: Sequence[int] | None,
        images: Images | None = None,
    ) -> Images:
        """The sampler's images; images: to start from."""
        targets = self._targets(classes, count)
        with as_arguments():
            return sample_to_array(
                sampler, count, SHARD_SIZE, precision, self._runtime, images, targets=targets
            )

    def _guide(self, scale: float) -> None:
        """Sets classifier-free guidance by classes; ValueError where the model forbids it."""
        require_numbers(condition_guidance_scale=scale)
        require(scale >= 0, "condition_guidance_scale", ">= 0", scale)
        with as_arguments():
            self._denoiser.guide_by_class(scale)

    def _away_from_base(self, scale: float) -> Guidance | None:
        """Guidance by the base; None for none. ValueError for a model whose base is not known."""
        require_numbers(base_guidance_scale=scale)
        require(scale >= 0, "base_guidance_scale", ">= 0", scale)
        if scale == 0:
            return None
        rule, remedy = "0 for a model without a base", "pass base=... to sidepipe.load"
        require(self._base is not None, "base_guidance_scale", rule, scale, remedy)
        assert self._base is not None
        self._base.guide_by_class(1.0)
        return Guidance(guidance_scale=-scale, t_min=0, t_max=None)

    def _targets(self, classes: Sequence[int] | None, count: int) -> Images | None:
        """The class of each image; None for a model without classes."""
        known = self._denoiser.classes
        rule = f"numbers in [0, {self.num_classes})" if known else "None, as the model has none"
        if known and self.null_class is not None:
            rule += f", without the null class {self.null_class}"
        if classes is not None:
            require(
                isinstance(classes, Sequence | np.ndarray), "classes", "a list or None", classes
            )
            fits = len(classes) > 0 and all(number in known for number in classes)
            require(fits, "classes", rule, classes)
        return np.resize(list(classes or known), count) if known else None

    def _require_own(self, images: Images) -> None:
        """Raises ValueError unless these are images, or rows of a table, as the model makes."""
        if self._denoiser.image_dtype == np.uint8:
            checked("images", images)
        else:
            rule, kind = "float32 rows, as from sample", getattr(images, "dtype", type(images))
            require(kind == self._denoiser.image_dtype, "images", rule, str(kind))
        shape, rule = tuple(images.shape[1:]), f"of shape (n, {self._shape_in_words()})"
        remedy = "refine images of the size that the model makes"
        require(shape == self.image_shape, "images", rule, images.shape, remedy)

    def _shape_in_words(self) -> str:
        return ", ".join(map(str, self.image_shape))
