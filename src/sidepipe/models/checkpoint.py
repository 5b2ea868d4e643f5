"""Checkpoints without text in the diffusers format: checking, loading and saving them.

`families.FAMILIES` lists the families; a module of each checks and reads its pipelines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.base.files import write_json
from sidepipe.base.pretrained import (
    DEFAULT,
    EMA,
    fetching,
    folder_or_hub_id,
    part_folder,
    read_object,
)
from sidepipe.models import pixels
from sidepipe.models.adapters import adapter_file, fuse_adapter
from sidepipe.models.continuous import PIPELINES
from sidepipe.models.families import INDEX, Family, family_of, require_family
from sidepipe.models.schedules import SCHEDULER, log_replaced

if TYPE_CHECKING:
    from sidepipe.diffusion.denoiser import Denoiser

OPTION = "pretrained"  # of dpm
NETWORKS = ("unet", "transformer", "mixture")


def check_checkpoint(
    folder: Path, variant: str | None, size: int | None, channels: int | None
) -> None:
    """Raises unless the pipeline in `folder` is supported and of images of this shape.

    size, channels: None for any. FileNotFoundError where a file is missing, ValueError otherwise.
    """
    _module(require_family(folder, OPTION)).check(folder, variant, size, channels)


def load_checkpoint(
    path: str,
    revision: str | None,
    variant: str | None,
    size: int | None = None,
    channels: int | None = None,
    adapter: str | None = None,
) -> dict[str, Any]:
    """The parts of a folder or hub id by name, after all checks, with the adapter fused."""
    found = folder_or_hub_id("dpm.path", path)
    folder = found if isinstance(found, Path) else _fetched(found, revision, variant)
    check_checkpoint(folder, variant, size, channels)
    parts = _module(require_family(folder, OPTION)).read(folder, variant)
    if (file := adapter_file(folder, adapter)) is not None:
        fuse_adapter({name: parts[name] for name in NETWORKS if name in parts}, file)
    scheduler = part_folder(folder, "scheduler") / SCHEDULER
    log_replaced(read_object(scheduler), str(scheduler))
    return parts


def _fetched(hub_id: str, revision: str | None, variant: str | None) -> Path:
    from diffusers import DiffusionPipeline

    named = {} if variant in (None, DEFAULT, EMA) else {"variant": variant}
    with fetching("dpm.path", hub_id):
        return Path(DiffusionPipeline.download(hub_id, revision=revision, **named))


def denoiser_of(parts: Mapping[str, Any]) -> Denoiser:
    """The model as a Denoiser, on the CPU."""
    return _module(family_of("", parts)).denoiser_of(parts)


def save_parts(parts: Mapping[str, Any], folder: Path) -> None:
    """Writes the parts as a pipeline folder, from which `read_parts` and diffusers read them."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    classes = {name: _class_of(part) for name, part in parts.items()}
    family = family_of("", parts)
    assert family is not None
    kind = PIPELINES.get(type(parts["scheduler"]).__name__, family.pipelines[0])
    write_json(folder / INDEX, {"_class_name": kind, **classes})


def _class_of(part: Any) -> list[str]:
    return [type(part).__module__.partition(".")[0], type(part).__name__]


def read_parts(folder: Path) -> dict[str, Any]:
    """The parts of a pipeline folder that `save_parts` or training wrote, in eval mode."""
    return _module(require_family(folder, OPTION)).read(folder, None)


def network_of(parts: Mapping[str, Any]) -> Any:
    """The network that predicts noise."""
    return next(parts[name] for name in NETWORKS if name in parts)


def network_config(folder: Path) -> dict[str, Any]:
    """The config of the network of the pipeline in `folder`, as its file has it."""
    places = [folder / name for name in (*NETWORKS, "unet_ema")]
    return read_object(next((p for p in places if p.is_dir()), folder) / "config.json")


def num_classes(folder: Path) -> int | None:
    """How many classes the model in a checked folder has; None without classes."""
    config = network_config(folder)
    return config.get("num_class_embeds") or config.get("num_embeds_ada_norm")


def _module(family: Family | None) -> Any:
    """The module of the family: check, read, denoiser_of."""
    from sidepipe.models import exact, latents, tables  # they import torch

    assert family is not None
    modules = {"image": pixels, "latent": latents, "DiT": latents, "exact": exact, "table": tables}
    return modules[family.name]
