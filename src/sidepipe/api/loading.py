"""Models from checkpoints and artifacts, and the images that the pipeline trained one on."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from sidepipe.api.images import Images
from sidepipe.api.model import Model
from sidepipe.api.naming import as_arguments, as_path, require_whole
from sidepipe.base.settings import require, require_known
from sidepipe.engine.artifacts import MANIFEST, Artifact, read_manifest
from sidepipe.engine.logs import quiet_libraries
from sidepipe.engine.stage import Runtime
from sidepipe.models.checkpoint import denoiser_of, load_checkpoint

DEVICES = ("auto", "cpu", "cuda", "mps")


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
        path: a folder written by ``save_pretrained`` of ``DDPMPipeline``, ``LDMPipeline``,
            ``DiTPipeline`` or ``ScoreSdeVePipeline``, also with a scheduler of EDM or of a
            rectified flow; a hub id such as ``"google/ddpm-cifar10-32"``
            (``"hf://owner/name"`` where a folder ``owner`` exists); a finished artifact
            ``outputs/dpm/<key>``; or ``outputs/dpm`` itself where it holds one.
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
