"""`load` and `Model`: sampling and refinement of uint8 images by a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from sidepipe.api.images import Images, checked
from sidepipe.api.naming import as_arguments, as_path, require_numbers, require_whole
from sidepipe.base.settings import Precision, require, require_known
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.sampler import require_x_0
from sidepipe.diffusion.timesteps import SPACINGS
from sidepipe.engine.artifacts import MANIFEST, Artifact, read_manifest
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.logs import quiet_libraries
from sidepipe.engine.sampling import sample_to_array
from sidepipe.engine.stage import Runtime
from sidepipe.models.checkpoint import denoiser_of, load_checkpoint

# No batch crosses a multiple of it, as no batch of the sampling stages crosses two files.
SHARD_SIZE = 1000
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True, eq=False)
class Model:
    """A diffusion model of images or latents, without text. ``sidepipe.load`` makes it.

    Attributes:
        path: the folder or the hub id of the checkpoint.
        image_shape: ``(height, width, channels)`` of its images.
        num_classes: classes of a class-conditional model; ``None`` for an unconditional one.
        num_train_timesteps: noise levels of its schedule; ``t`` is in ``[0, num_train_timesteps)``.
    """

    path: str
    image_shape: tuple[int, int, int]
    num_train_timesteps: int
    num_classes: int | None
    _denoiser: Denoiser = field(repr=False)
    _runtime: Runtime = field(repr=False)

    def sample(
        self,
        num_images: int,
        *,
        seed: int = 0,
        num_inference_steps: int = 50,
        sampler: Literal["ddim", "dpm_solver_pp"] = "ddim",
        eta: float = 0.0,
        timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None,
        precision: Precision = "bf16-mixed",
        classes: Sequence[int] | None = None,
    ) -> Images:
        """Sample images, as the unconditional baseline of the pipeline does.

        The noise of image ``i`` depends on ``seed`` and ``i`` alone, so the first images of a
        larger sample are those of a smaller one, up to rounding.

        Args:
            num_images: number of images, >= 1.
            seed: in ``[0, 2**32)``.
            num_inference_steps: evaluations of the network per image, in
                ``[1, num_train_timesteps]``.
            sampler: ``"ddim"``, or ``"dpm_solver_pp"``, of second order, for few steps.
            eta: in ``[0, 1]``; 0 for DDIM, 1 for ancestral sampling. 0 for ``"dpm_solver_pp"``.
            timestep_spacing: as in diffusers; ``None`` for that of the model's own scheduler.
            precision: ``"bf16-mixed"``, ``"16-mixed"`` or ``"32-true"``.
            classes: of a class-conditional model, the numbers of classes that the images get in
                turn; ``None`` for all classes.

        Returns:
            uint8 images ``(num_images, height, width, channels)``.

        Raises:
            ValueError: where an argument is out of its range.
            RuntimeError: where the model predicts nan or infinity.

        Source:
            Song et al., "Denoising Diffusion Implicit Models", arXiv 2010.02502.

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
        require_known("sampler", sampler, ["ddim", "dpm_solver_pp"])
        if timestep_spacing is not None:
            require_known("timestep_spacing", timestep_spacing, SPACINGS)
        rule = "in [0, 1]" if sampler == "ddim" else f"0 for {sampler}"
        require(0 <= eta <= (sampler == "ddim"), "eta", rule, eta)
        require_known("precision", precision, PRECISIONS)
        with as_arguments():
            image_sampler = ImageSampler(
                self._denoiser,
                seed=seed,
                stream="extract",
                sampler=sampler,
                timesteps=self._denoiser.timesteps(steps, timestep_spacing),
                eta=eta,
            )
            return self._made(image_sampler, num_images, precision, classes)

    def refine(
        self,
        images: Images,
        *,
        t: int = 60,
        steps: int = 8,
        noise: float = 0.0,
        seed: int = 0,
        precision: Precision = "bf16-mixed",
        classes: Sequence[int] | None = None,
    ) -> Images:
        """Move images toward a mode of the model, which brings out what it has memorized.

        Each step takes an image for one with the noise of timestep ``t`` and replaces it with the
        image that the model predicts without this noise. No noise is added, unless ``noise`` is
        above 0. Where the model has memorized training images, these are the fixed points.

        Args:
            images: uint8 ``(n, height, width, channels)``, such as from ``sample``.
            t: timestep whose noise is assumed, in ``[0, num_train_timesteps)``. At more noise,
                images that are alike merge.
            steps: evaluations of the network per image, >= 1.
            noise: the share of the noise of ``t`` that each step adds, in ``[0, 1]``; 1 for cyclic
                denoising.
            seed: of this noise, in ``[0, 2**32)``.
            precision: ``"bf16-mixed"``, ``"16-mixed"`` or ``"32-true"``.
            classes: of a class-conditional model, the numbers of classes that the images get in
                turn; ``None`` for all classes, as images of ``sample`` have them.

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
        checked("images", images)
        shape, rule = tuple(images.shape[1:]), f"of shape (n, {self._shape_in_words()})"
        remedy = "refine images of the size that the model makes"
        require(shape == self.image_shape, "images", rule, images.shape, remedy)
        require_whole(t=t, steps=steps, seed=seed)
        require_numbers(noise=noise)
        most = self.num_train_timesteps
        require(0 <= t < most, "t", f"in [0, {most}), the timesteps of the model", t)
        require(steps >= 1, "steps", ">= 1", steps)
        require(0 <= noise <= 1, "noise", "in [0, 1]", noise)
        require(0 <= seed < 2**32, "seed", "in [0, 2**32)", seed)
        require_known("precision", precision, PRECISIONS)
        require_x_0(self._denoiser.prediction_type, self._denoiser.alphas_cumprod, [t])
        refiner = ImageSampler(
            self._denoiser,
            seed=seed,
            stream="refine",
            timesteps=[],
            eta=0.0,
            refine_steps=steps,
            refine_t=t,
            refine_noise=noise,
        )
        return self._made(refiner, len(images), precision, classes, images)

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

    def _targets(self, classes: Sequence[int] | None, count: int) -> Images | None:
        """The class of each image; None for a model without classes."""
        known = range(self.num_classes or 0)
        rule = f"numbers in [0, {self.num_classes})" if known else "None, as the model has none"
        if classes is not None:
            require(
                isinstance(classes, Sequence | np.ndarray), "classes", "a list or None", classes
            )
            fits = len(classes) > 0 and all(number in known for number in classes)
            require(fits, "classes", rule, classes)
        return np.resize(list(classes or known), count) if known else None

    def _shape_in_words(self) -> str:
        return ", ".join(map(str, self.image_shape))


def load(
    path: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    batch_size: int | None = None,
) -> Model:
    """Load a diffusion model of images or latents, unconditional or class-conditional.

    Args:
        path: a folder written by ``save_pretrained`` of ``DDPMPipeline``, ``LDMPipeline`` or
            ``DiTPipeline``; a hub id such as
            ``"google/ddpm-cifar10-32"`` (``"hf://owner/name"`` where a folder ``owner`` exists); a
            finished artifact ``outputs/dpm/<key>``; or ``outputs/dpm`` itself where it holds one.
        variant: variant of the weight files, such as ``"fp16"`` or ``"ema"``; ``"default"`` for
            the file without one; ``None`` for the only one.
        revision: revision of the hub id; ``None`` for its main branch.
        adapter: a file or folder of a LoRA, which is fused; ``"none"`` for the base model although
            an adapter lies in its folder.
        device: ``"auto"`` for a GPU where there is one.
        batch_size: images per batch; ``None`` for the fastest size, by timing. It changes images
            by rounding only.

    Returns:
        The model, which samples and refines.

    Raises:
        FileNotFoundError: where the folder or one of its files is missing.
        ValueError: where the checkpoint is of another family, such as text-conditional models, or
            where the variant has to be chosen.

    Example:
        >>> import sidepipe
        >>> model = sidepipe.load(checkpoint, device="cpu")
        >>> model.image_shape, model.num_train_timesteps
        ((8, 8, 1), 1000)
    """
    require_known("device", device, DEVICES)
    folder = as_path("path", path)
    if batch_size is not None:
        require_whole(batch_size=batch_size)
    require(batch_size is None or batch_size >= 1, "batch_size", ">= 1 or None", batch_size)
    quiet_libraries()
    runtime = Runtime(accelerator=device, sampling_batch_size=batch_size)
    with as_arguments():
        runtime.require_accelerator()
        artifact = _artifact(folder)
        source = str(path) if artifact is None else str(artifact / "model")
        lora = None if adapter is None else str(adapter)
        denoiser = denoiser_of(load_checkpoint(source, revision, variant, adapter=lora))
    channels, height, width = denoiser.image_shape
    return Model(
        path=source,
        image_shape=(height, width, channels),
        num_train_timesteps=len(denoiser.alphas_cumprod),
        num_classes=denoiser.num_classes,
        _denoiser=denoiser,
        _runtime=runtime,
    )


def load_split(path: str | Path) -> tuple[Images, Images]:
    """Load the training images and the held-out images of a model that the pipeline trained.

    Args:
        path: a finished artifact ``outputs/dpm/<key>``; or ``outputs/dpm`` itself where it holds
            one.

    Returns:
        Training images and held-out images, uint8 ``(n, height, width, channels)`` each, the best
        control first.

    Raises:
        FileNotFoundError: where there is no such artifact.
        ValueError: where the folder holds several.

    Example:
        >>> import sidepipe
        >>> train, heldout = sidepipe.load_split(artifact)  # outputs/dpm/<key>
        >>> len(train), len(heldout), train.shape[1:]
        (40, 200, (8, 8, 1))
    """
    from sidepipe.stages.data.stage import load as load_images
    from sidepipe.stages.dpm.stage import load_subset

    folder = _artifact(as_path("path", path))
    if folder is None:
        raise FileNotFoundError(
            f"path must be a finished artifact outputs/dpm/<key>, got {path}; remedy: run "
            "sidepipe stage=dpm, or pass your own images to compare"
        )
    images = load_images(Artifact(folder).inputs["data"].folder)
    train, heldout = load_subset(folder)
    return np.asarray(images[train]), np.asarray(images[heldout])


def _artifact(folder: Path) -> Path | None:
    """The dpm artifact that `folder` is or contains; None for any other folder."""
    if (folder / "model_index.json").is_file() or not folder.is_dir():
        return None
    if _is_dpm(folder):
        return folder
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST}") if _is_dpm(path.parent))
    remedy = f"name one of them, such as {found[0]}" if found else ""
    names = [path.name for path in found]
    require(len(found) <= 1, "path", "a folder of one finished dpm artifact", names, remedy)
    return found[0] if found else None


def _is_dpm(folder: Path) -> bool:
    return (read_manifest(folder) or {}).get("stage") == "dpm"
