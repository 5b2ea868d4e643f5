"""Models from checkpoints and artifacts, and the images that the pipeline trained one on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sidepipe.api.images import Images
from sidepipe.api.model import Model
from sidepipe.api.naming import as_arguments, as_path, require_whole
from sidepipe.base.pretrained import folder_or_hub_id
from sidepipe.base.settings import require, require_known
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.engine.artifacts import MANIFEST, Artifact, read_manifest
from sidepipe.engine.logs import quiet_libraries
from sidepipe.engine.stage import Runtime
from sidepipe.models.adapters import NONE
from sidepipe.models.checkpoint import denoiser_of, load_checkpoint, network_of
from sidepipe.models.contrast import require_comparable
from sidepipe.models.schedules import schedule_from
from sidepipe.stages.dpm.stage import BASE, load_null_class

DEVICES = ("auto", "cpu", "cuda", "mps")


def load(
    path: str | Path,
    *,
    variant: str | None = None,
    revision: str | None = None,
    adapter: str | Path | None = None,
    base: str | Path | None = None,
    null_class: int | None = None,
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
        base: the model that it was fine-tuned from, a folder or hub id, for
            ``sample(base_guidance_scale=...)`` and the column ``contrast`` of ``audit``; ``None``
            for that of an artifact, with ``adapter`` for the model without it, and else for none.
        null_class: the class of a class-conditional UNet that stands for no class, as training with
            dropped classes leaves it; ``None`` where there is none, and for that of an artifact.
            A DiT has its own.
        device: ``"auto"`` for a GPU where there is one.
        batch_size: images per batch; ``None`` for the fastest size, by timing. It changes images
            by rounding only.

    Returns:
        The model, which samples and refines.

    Raises:
        FileNotFoundError: where the folder or one of its files is missing.
        ValueError: where the checkpoint is of another family, such as text-conditional models,
            where the variant has to be chosen, or where the base or the null class does not fit.

    Example:
        >>> import sidepipe
        >>> model = sidepipe.load(checkpoint, device="cpu")
        >>> model.image_shape, model.num_train_timesteps
        ((8, 8, 1), 1000)
    """
    require_known("device", device, DEVICES)
    if batch_size is not None:
        require_whole(batch_size=batch_size)
    require(batch_size is None or batch_size >= 1, "batch_size", ">= 1 or None", batch_size)
    quiet_libraries()
    runtime = Runtime(accelerator=device, sampling_batch_size=batch_size)
    with as_arguments():
        runtime.require_accelerator()
        artifact = _artifact(as_path("path", path))
        source = str(path) if artifact is None else str(artifact / "model")
        lora = None if adapter is None else str(adapter)
        parts = load_checkpoint(source, revision, variant, adapter=lora)
        denoiser, of_base = denoiser_of(parts), None
        _set_null_class(denoiser, null_class, artifact)
        if (place := _base(base, lora, source, artifact)) is not None:
            own = {"revision": revision, "variant": variant} if place == source else {}
            of_base = _base_of(parts, place, **own)
            of_base.null_class = denoiser.null_class
    channels, height, width = denoiser.image_shape
    return Model(
        path=source,
        image_shape=(height, width, channels),
        num_train_timesteps=len(denoiser.alphas_cumprod),
        num_classes=denoiser.num_classes,
        null_class=denoiser.null_class,
        _denoiser=denoiser,
        _base=of_base,
        _runtime=runtime,
    )


def _set_null_class(denoiser: Denoiser, null_class: int | None, artifact: Path | None) -> None:
    """Names the class that stands for none, of the argument or of the artifact."""
    if null_class is not None:
        require_whole(null_class=null_class)
    rows = denoiser.num_classes
    fits = null_class is None or (
        rows is not None and denoiser.null_class is None and 0 <= null_class < rows
    )
    rule = "None" if rows is None or denoiser.null_class is not None else f"in [0, {rows}) or None"
    remedy = "a DiT has its own null class, and a model without classes has none"
    require(fits, "null_class", rule, null_class, remedy)
    if null_class is None and artifact is not None:
        null_class = load_null_class(artifact)
    if null_class is not None:
        denoiser.null_class = null_class


def _base(
    base: str | Path | None, adapter: str | None, source: str, artifact: Path | None
) -> str | None:
    """The folder or hub id of the model that the loaded one was fine-tuned from; None for none."""
    if base is not None:
        return str(folder_or_hub_id("dpm.base", str(as_path("base", base))))
    if artifact is not None and (artifact / BASE).is_dir():
        return str(artifact / BASE)
    return source if adapter not in (None, NONE) else None


def _base_of(
    parts: Mapping[str, Any], place: str, revision: str | None = None, variant: str | None = None
) -> Denoiser:
    """The base as a denoiser; ValueError unless it can be compared with the model."""
    others = load_checkpoint(place, revision, variant, adapter=NONE)
    own, other = (schedule_from(each["scheduler"]).alphas_cumprod for each in (parts, others))
    configs = network_of(parts).config, network_of(others).config
    require_comparable(configs[0], own, configs[1], other)
    return denoiser_of(others)


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
