"""Checkpoints in the diffusers format: checking and loading them.

A checkpoint is a folder written by `DDPMPipeline.save_pretrained`, or its copy on a hub. The oldest
have the files of the network and the schedule at the root, not in `unet/` and `scheduler/`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.base.pretrained import (
    DEFAULT,
    EMA,
    folder_or_hub_id,
    network_folder,
    part_folder,
    read_object,
    unet_files,
    weight_files,
)
from sidepipe.base.settings import require
from sidepipe.base.weights import built, network_names, read_network, read_shapes, shapes_of
from sidepipe.models.adapters import adapter_file, fuse_adapter
from sidepipe.models.families import MISSING, require_family
from sidepipe.models.schedules import clip_range, log_replaced, read_schedule, step_rule

log = logging.getLogger(__name__)

SCHEDULER = "scheduler_config.json"

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel

    from sidepipe.diffusion.denoiser import Denoiser


def check_checkpoint(
    folder: Path, variant: str | None, size: int | None, channels: int | None
) -> int:
    """The side of the images of the checkpoint in `folder`, after every check.

    size, channels: the required shape, None for any. Raises FileNotFoundError where a file is
    missing, and ValueError unless it is an unconditional model of images of this shape. Weights in
    safetensors are compared with the network by name and shape.
    """
    from diffusers import UNet2DModel

    require_family(folder, "pretrained")
    inside = network_folder(folder, variant)
    config, where = read_object(inside / "config.json", MISSING), str(inside / "config.json")
    check_kind(config, str(folder))
    network = built(UNet2DModel, config, where)
    size = _own_size(network.config, where) if size is None else size
    channels = _own_channels(network.config, where) if channels is None else channels
    check_network(network.config, where, size, channels)
    halved = 2 ** (len(network.config["block_out_channels"]) - 1)
    rule = f"divisible by {halved}, as its blocks halve images"
    require(size % halved == 0, f"sample_size of {where}", rule, size)
    scheduler = part_folder(folder, "scheduler") / SCHEDULER
    read_schedule(read_object(scheduler, MISSING), str(scheduler))
    files = unet_files(inside, variant)
    if (shapes := read_shapes(files)) is not None:
        network_names(shapes_of(network.state_dict()), shapes, str(files[0]))
    return size


def _own_size(config: Mapping[str, Any], where: str) -> int:
    given = config["sample_size"]
    side = side_of(given)
    remedy = "models of images that are not square are not supported"
    remedy = remedy if given else 'write the side in pixels there, such as "sample_size": 32'
    require(side is not None, f"sample_size of {where}", "a number of pixels", given, remedy)
    assert side is not None
    return side


def _own_channels(config: Mapping[str, Any], where: str) -> int:
    found, remedy = config["in_channels"], "latent models are not supported"
    require(found in (1, 3), f"in_channels of {where}", "1 or 3, as of images", found, remedy)
    return found


def check_kind(config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError unless this is the config of an unconditional UNet."""
    kind = config.get("_class_name", "UNet2DModel")
    require(kind == "UNet2DModel", f"the network of {where}", "an unconditional UNet2DModel", kind)


def check_network(config: Mapping[str, Any], where: str, size: int, channels: int) -> None:
    """Raises ValueError unless this built UNet is unconditional and of images of this shape."""
    classes = config.get("num_class_embeds") or config.get("class_embed_type")
    require(classes is None, f"the classes of {where}", "none (an unconditional model)", classes)
    found = config["in_channels"]
    rule = f"{channels}, as the data are"
    of_images = f"set data.channels={found}"
    remedy = of_images if found in (1, 3) else "images have 1 or 3; latent models are not supported"
    require(found == channels, f"in_channels of {where}", rule, found, remedy)
    found, remedy = config["out_channels"], "learned-variance outputs are not supported"
    require(found == channels, f"out_channels of {where}", rule, found, remedy)
    check_size(config, where, size)


def check_size(config: Mapping[str, Any], where: str, size: int) -> None:
    """Raises ValueError unless the UNet is of square images of `size` pixels."""
    given, name = config["sample_size"], f"sample_size of {where}"
    side = side_of(given)
    rule = f"{size}, as the data are"
    if side is None:
        remedy = f'write "sample_size": {size} there if its images are {size} x {size} pixels'
        require(given is not None, name, rule, given, remedy)
        require(False, name, rule, given, "models of images that are not square are not supported")
    require(side == size, name, rule, given, f"set data.size={side}")


def side_of(sample_size: Any) -> int | None:
    """The side of a config's square images: 8 for 8 and [8, 8]; None for other shapes."""
    sides = {sample_size} if isinstance(sample_size, int) else set(sample_size or [])
    return sides.pop() if len(sides) == 1 else None


def load_checkpoint(
    path: str,
    revision: str | None,
    variant: str | None,
    size: int | None = None,
    channels: int | None = None,
    adapter: str | None = None,
) -> tuple[UNet2DModel, DDPMScheduler]:
    """The network, with its adapter, and the schedule of a folder or hub id, after all checks."""
    from diffusers import UNet2DModel

    found = folder_or_hub_id("dpm.path", path)
    folder = found if isinstance(found, Path) else _fetched(found, revision, variant)
    side = check_checkpoint(folder, variant, size, channels)
    inside = network_folder(folder, variant)
    files = unet_files(inside, variant)
    log.info("reading %s", ", ".join(map(str, files)))
    unet: Any = read_network(UNet2DModel, inside, files)
    if (file := adapter_file(folder, adapter)) is not None:
        fuse_adapter({"unet": unet}, file)
    unet.register_to_config(sample_size=side)  # a number instead of [8, 8]
    scheduler = part_folder(folder, "scheduler") / SCHEDULER
    config, where = read_object(scheduler), str(scheduler)
    log_replaced(config, where)
    return unet, read_schedule(config, where)


def _fetched(hub_id: str, revision: str | None, variant: str | None) -> Path:
    from diffusers import DDPMPipeline

    named = {} if variant in (None, DEFAULT, EMA) else {"variant": variant}
    return Path(DDPMPipeline.download(hub_id, revision=revision, **named))


def denoiser_of(unet: UNet2DModel, scheduler: DDPMScheduler) -> Denoiser:
    """The model as a Denoiser, on the CPU."""
    from sidepipe.diffusion.denoiser import Denoiser

    side, channels = unet.config["sample_size"], unet.config["in_channels"]
    kind = scheduler.config["prediction_type"]
    denoiser = Denoiser(unet, scheduler.alphas_cumprod, kind, (channels, side, side))
    denoiser.clip_range = clip_range(scheduler)
    denoiser.step_rule = step_rule(scheduler)
    return denoiser


def load_unet(folder: Path) -> UNet2DModel:
    """The network that `save_pretrained` wrote to `folder`, in eval mode."""
    from diffusers import UNet2DModel

    return read_network(UNet2DModel, folder, weight_files(folder))
