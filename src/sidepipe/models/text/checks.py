"""Checks of the pipeline folders of text-conditional models, before any weight is read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel

from sidepipe.base.pretrained import (
    network_folder,
    parts_of,
    read_object,
    unet_files,
    weight_files,
)
from sidepipe.base.settings import require
from sidepipe.base.weights import built, network_names, read_shapes, shapes_of
from sidepipe.models.families import INDEX, MISSING
from sidepipe.models.schedules import SCHEDULER, read_schedule
from sidepipe.models.text.kinds import kind_of
from sidepipe.models.text.sdxl import NUM_TIME_IDS, StableDiffusionXL

# transformers' defaults, which configs may leave out.
CLIP_DEFAULTS = {"model_type": "clip_text_model", "hidden_size": 512, "projection_dim": 512}


def check_pipeline(folder: Path, variant: str | None = None) -> None:
    """Raises unless `folder` is a pipeline that is guided by text.

    FileNotFoundError where a file is missing, ValueError where its content is wrong. Names and
    shapes of the weights of UNet and autoencoder must be those of their networks.
    """
    kind = kind_of(folder)
    parts = parts_of(read_object(folder / INDEX))
    for name, wanted in (*kind.encoders.items(), ("vae", "AutoencoderKL")):
        found = parts.get(name, wanted)
        require(found == wanted, f"the {name} of {folder}", f"of class {wanted}", found)
    unet = _checked_unet(network_folder(folder, variant), variant, kind is StableDiffusionXL)
    load_schedule(folder)
    if "vae" in parts:
        _checked_vae(folder / "vae", variant, unet)
    encoders = [_checked_encoder(folder, name, variant) for name in kind.encoders]
    _check_widths(unet.config, encoders, folder)


def load_schedule(folder: Path) -> Any:
    """The DDPMScheduler of a pipeline folder, after the checks of `read_schedule`."""
    path = folder / "scheduler" / SCHEDULER
    return read_schedule(read_object(path, MISSING), str(path))


def image_shape(folder: Path, variant: str | None = None) -> tuple[int, int, int]:
    """(c, h, w) of the images of a pipeline folder, from its configs."""
    unet = read_object(network_folder(folder, variant) / "config.json", MISSING)
    size = unet["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    if "vae" not in parts_of(read_object(folder / INDEX, MISSING)):
        return unet["in_channels"], height, width
    path = folder / "vae" / "config.json"
    vae = built(AutoencoderKL, read_object(path), str(path)).config
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return vae["out_channels"], height * factor, width * factor


def check_network(config: Mapping[str, Any], where: str, pooled: bool = False) -> None:
    """Raises ValueError unless this UNet can be guided by text, and is conditioned on it alone.

    pooled: whether it takes a pooled embedding and the sizes of images as well, as SDXL's does.
    """
    kind = config.get("_class_name", "UNet2DConditionModel")
    rule = "a UNet2DConditionModel"
    require(kind == "UNet2DConditionModel", f"the network of {where}", rule, kind)
    more, wanted = config.get("addition_embed_type"), "text_time" if pooled else None
    rule = "text and the sizes of images (text_time)" if pooled else "text alone"
    remedy = "the UNet of SDXL belongs to a StableDiffusionXLPipeline, others are not supported"
    require(more == wanted, f"the conditions of {where}", rule, more, remedy)
    name, distilled = f"time_cond_proj_dim of {where}", config.get("time_cond_proj_dim")
    remedy = "it was distilled for one guidance scale and has no empty prompt"
    require(distilled is None, name, "none, as in a model that can be guided", distilled, remedy)
    names = f"in_channels and out_channels of {where}"
    both = [config.get(name, 4) for name in ("in_channels", "out_channels")]  # diffusers' default
    require(both[0] == both[1], names, "equal", both, "inpainting and learned variances are not")


def _checked_unet(inside: Path, variant: str | None, pooled: bool) -> Any:
    path = inside / "config.json"
    config = read_object(path, MISSING)
    check_network(config, str(path), pooled)
    unet = built(UNet2DConditionModel, config, str(path))
    size = unet.config["sample_size"]
    remedy = 'write "sample_size" there: pixels per side, or pixels divided by 8 for latents'
    require(size is not None, f"sample_size of {path}", "set", size, remedy)
    _check_names(unet, unet_files(inside, variant))
    return unet


def _checked_vae(folder: Path, variant: str | None, unet: Any) -> None:
    path = folder / "config.json"
    vae = built(AutoencoderKL, read_object(path, MISSING), str(path))
    found, wanted = vae.config["latent_channels"], unet.config["in_channels"]
    rule = f"{wanted}, the in_channels of the UNet"
    require(found == wanted, f"latent_channels of {path}", rule, found)
    mean = vae.config.get("latents_mean")
    remedy = "latents with a mean and a deviation per channel are not supported"
    require(mean is None, f"latents_mean of {path}", "none", mean, remedy)
    _check_names(vae, weight_files(folder, variant, required=False))


def _check_names(network: Any, files: Sequence[Path]) -> None:
    if (shapes := read_shapes(files)) is not None:
        network_names(shapes_of(network.state_dict()), shapes, str(files[0]))


def _checked_encoder(folder: Path, name: str, variant: str | None) -> dict[str, Any]:
    """The config of a text encoder, with the files of its tokenizer checked as well."""
    path = folder / name / "config.json"
    weight_files(path.parent, variant, required=False)
    config = CLIP_DEFAULTS | read_object(path, MISSING)
    kind = config["model_type"]
    require(kind == "clip_text_model", f"model_type of {path}", "clip_text_model", kind)
    tokenizer = folder / name.replace("text_encoder", "tokenizer")
    whole = [["tokenizer.json"], ["vocab.json", "merges.txt"]]
    if not any(all((tokenizer / name).is_file() for name in names) for names in whole):
        raise FileNotFoundError(
            f"{tokenizer} must hold vocab.json and merges.txt, or tokenizer.json; copy it again"
        )
    for file in sorted(tokenizer.glob("*.json")):
        read_object(file)
    return config


def _check_widths(
    unet: Mapping[str, Any], encoders: Sequence[Mapping[str, Any]], folder: Path
) -> None:
    """Raises ValueError unless the UNet takes embeddings as wide as the encoders give."""
    found, wanted = sum(c["hidden_size"] for c in encoders), unet["cross_attention_dim"]
    names = " and ".join(str(folder / name) for name in ("text_encoder", "text_encoder_2"))
    where = names if len(encoders) > 1 else f"{folder / 'text_encoder' / 'config.json'}"
    rule = f"{wanted}, the cross_attention_dim of the UNet"
    require(found == wanted, f"hidden_size of {where}", rule, found)
    if (given := unet["projection_class_embeddings_input_dim"]) is not None:
        pooled = given - NUM_TIME_IDS * unet["addition_time_embed_dim"]
        found = encoders[-1]["projection_dim"]
        rule = f"{pooled}, as the UNet's added embeddings take it"
        require(found == pooled, f"projection_dim of {folder / 'text_encoder_2'}", rule, found)
