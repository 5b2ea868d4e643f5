"""The family of models of images themselves: a UNet2DModel, with or without class labels.

A checkpoint is a folder written by `DDPMPipeline.save_pretrained`. The oldest have the files of the
network and the schedule at the root, not in `unet/` and `scheduler/`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.base.pretrained import network_folder, part_folder, read_object, unet_files
from sidepipe.base.settings import require
from sidepipe.base.weights import built, check_weights, read_network
from sidepipe.models.continuous import CONTINUOUS, check_called, read_continuous
from sidepipe.models.families import MISSING
from sidepipe.models.schedules import SCHEDULER, read_schedule, schedule_from

if TYPE_CHECKING:
    from sidepipe.diffusion.denoiser import Denoiser

log = logging.getLogger(__name__)

VARIANCE = "%s: the predicted variance is not used; the mean's half is, and eta sets the noise"


def check(folder: Path, variant: str | None, size: int | None, channels: int | None) -> None:
    """Raises unless the pipeline in `folder` is a model of images of this shape, None for any.

    FileNotFoundError where a file is missing, ValueError otherwise. Weights in safetensors are
    compared with the network by name and shape.
    """
    from diffusers import UNet2DModel

    inside = network_folder(folder, variant)
    config, where = read_object(inside / "config.json", MISSING), str(inside / "config.json")
    check_kind(config, str(folder))
    network = built(UNet2DModel, config, where)
    size = _own_size(network.config, where) if size is None else size
    channels = _own_channels(network.config, where) if channels is None else channels
    check_shape(network.config, where, size, channels)
    check_classes(network.config, where)
    halved = 2 ** (len(network.config["block_out_channels"]) - 1)
    rule = f"divisible by {halved}, as its blocks halve images"
    require(size % halved == 0, f"sample_size of {where}", rule, size)
    scheduler = schedule_of(folder, predicts_variance(network.config))
    check_called(scheduler, network.config, where)
    files = unet_files(inside, variant)
    check_weights(network, files)


def read(folder: Path, variant: str | None) -> dict[str, Any]:
    """The network, in eval mode on the CPU, and the schedule of a pipeline that was checked."""
    from diffusers import UNet2DModel

    inside = network_folder(folder, variant)
    files = unet_files(inside, variant)
    log.info("reading %s", ", ".join(map(str, files)))
    unet = read_network(UNet2DModel, inside, files)
    unet.register_to_config(sample_size=side_of(unet.config["sample_size"]))  # 8 for [8, 8]
    if predicts_variance(unet.config):
        log.info(VARIANCE, folder)
    return {"unet": unet, "scheduler": schedule_of(folder, predicts_variance(unet.config))}


def denoiser_of(parts: Mapping[str, Any]) -> Denoiser:
    """The model as a Denoiser, on the CPU."""
    from sidepipe.diffusion.denoiser import Denoiser

    unet, schedule = parts["unet"], schedule_from(parts["scheduler"])
    side, channels = unet.config["sample_size"], unet.config["in_channels"]
    kind, shape = schedule.prediction_type, (channels, side, side)
    denoiser = Denoiser(schedule.called(unet), schedule.alphas_cumprod, kind, shape)
    denoiser.num_classes = unet.config.get("num_class_embeds")
    denoiser.clip_range = schedule.clip_range
    denoiser.step_rule = schedule.step_rule
    return denoiser


def schedule_of(folder: Path, learned_variance: bool = False) -> Any:
    """The scheduler of the pipeline in `folder`: a DDPMScheduler, or one of continuous time.

    Raises ValueError for the first setting that is not supported.
    """
    path = part_folder(folder, "scheduler") / SCHEDULER
    config = read_object(path, MISSING)
    if (kind := config.get("_class_name")) in CONTINUOUS:
        return read_continuous(config, str(kind), str(path))
    return read_schedule(config, str(path), learned_variance)


def predicts_variance(config: Mapping[str, Any]) -> bool:
    """Whether half of the network's output channels are the variance (Nichol & Dhariwal, 2021)."""
    return config["out_channels"] == 2 * config["in_channels"]


def check_kind(config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError unless this is the config of a UNet without text."""
    kind = config.get("_class_name", "UNet2DModel")
    require(kind == "UNet2DModel", f"the network of {where}", "an unconditional UNet2DModel", kind)


def check_classes(config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError where the classes of this built network are not numbers of an embedding."""
    kind = config["class_embed_type"]
    require(kind is None, f"class_embed_type of {where}", "null, for numbered classes", kind)


def check_network(config: Mapping[str, Any], where: str, size: int, channels: int) -> None:
    """Raises ValueError unless this built UNet is of images of this shape and is unconditional."""
    classes = config.get("num_class_embeds") or config.get("class_embed_type")
    require(classes is None, f"the classes of {where}", "none (an unconditional model)", classes)
    found, remedy = config["out_channels"], "training does not learn a variance"
    check_shape(config, where, size, channels)
    require(found == channels, f"out_channels of {where}", f"{channels}", found, remedy)


def check_shape(config: Mapping[str, Any], where: str, size: int, channels: int) -> None:
    """Raises ValueError unless this built UNet is of images of this shape."""
    found = config["in_channels"]
    rule = f"{channels}, as the data are"
    of_images = f"set data.channels={found}"
    remedy = of_images if found in (1, 3) else "images have 1 or 3, latents need a vae"
    require(found == channels, f"in_channels of {where}", rule, found, remedy)
    found = config["out_channels"]
    rule = f"{channels}, as the data are, or {2 * channels} with a predicted variance"
    require(found in (channels, 2 * channels), f"out_channels of {where}", rule, found)
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


def _own_size(config: Mapping[str, Any], where: str) -> int:
    given = config["sample_size"]
    side = side_of(given)
    remedy = "models of images that are not square are not supported"
    remedy = remedy if given else 'write the side in pixels there, such as "sample_size": 32'
    require(side is not None, f"sample_size of {where}", "a number of pixels", given, remedy)
    assert side is not None
    return side


def _own_channels(config: Mapping[str, Any], where: str) -> int:
    found, remedy = config["in_channels"], "images have 1 or 3, latents need a vae"
    require(found in (1, 3), f"in_channels of {where}", "1 or 3, as of images", found, remedy)
    return found
