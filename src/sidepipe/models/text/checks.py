"""Checks of the pipeline folders of text-conditional models, before any weight is read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderKL, UNet2DConditionModel

from sidepipe.base.pretrained import (
    network_folder,
    parts_of,
    read_object,
    unet_files,
    weight_files,
)
from sidepipe.base.settings import require
from sidepipe.base.weights import built, check_weights
from sidepipe.models.continuous import FLOW, read_continuous
from sidepipe.models.families import INDEX, MISSING
from sidepipe.models.schedules import SCHEDULER, read_schedule
from sidepipe.models.text.flow import FlowModel, Flux
from sidepipe.models.text.kinds import kind_of
from sidepipe.models.text.sdxl import StableDiffusionXL

# The model_type of a text encoder's config, and transformers' defaults of settings it may lack.
ENCODERS = {
    "T5EncoderModel": ("t5", {"d_model": 512}),
    "CLIPTextModel": ("clip_text_model", {"hidden_size": 512}),
    "CLIPTextModelWithProjection": (
        *("clip_text_model", {"hidden_size": 512, "projection_dim": 512}),
    ),
}
# Files of which a tokenizer needs one group.
TOKENIZERS = {
    "t5": (["tokenizer.json"], ["spiece.model"]),
    "clip_text_model": (["tokenizer.json"], ["vocab.json", "merges.txt"]),
}
TRANSFORMERS = {
    "StableDiffusion3Pipeline": "SD3Transformer2DModel",
    "FluxPipeline": "FluxTransformer2DModel",
}


def check_pipeline(folder: Path, variant: str | None = None) -> None:
    """Raises unless `folder` is a pipeline that is guided by text.

    FileNotFoundError where a file is missing, ValueError where its content is wrong. Names and
    shapes of the weights of network and autoencoder must be those of their configs.
    """
    kind = kind_of(folder)
    parts = parts_of(read_object(folder / INDEX))
    for name, wanted in (*kind.encoders.items(), ("vae", "AutoencoderKL")):
        found = parts.get(name, wanted)
        require(found == wanted, f"the {name} of {folder}", f"of class {wanted}", found)
    if kind.network_part == "unet":
        pooled = kind is StableDiffusionXL
        network = _checked_unet(network_folder(folder, variant), variant, pooled)
        channels = network.config["in_channels"]
    else:
        network = _checked_transformer(folder, variant, TRANSFORMERS[kind.kind])
        channels = network.config["in_channels"] // (4 if kind is Flux else 1)
    load_schedule(folder)
    if "vae" in parts:
        _checked_vae(folder / "vae", variant, channels)
    present = {name: of for name, of in kind.encoders.items() if name in parts}
    encoders = {name: _checked_encoder(folder, name, of, variant) for name, of in present.items()}
    for setting, found, of in kind.widths(network.config, encoders):
        wanted = network.config[of]
        rule = f"{wanted}, the {of} of the {kind.network_part}"
        require(found == wanted, f"{setting} of {folder}", rule, found)


def load_schedule(folder: Path) -> Any:
    """The scheduler of a pipeline folder after its checks: a DDPMScheduler, or one of a flow."""
    checked = checked_schedule(folder)
    if not issubclass(kind_of(folder), FlowModel):
        return checked
    return type(checked).from_config(read_object(folder / "scheduler" / SCHEDULER))


def checked_schedule(folder: Path) -> Any:
    """As `load_schedule`, without the shift by the size of images that a flow may have."""
    path = folder / "scheduler" / SCHEDULER
    config = read_object(path, MISSING)
    if not issubclass(kind_of(folder), FlowModel):
        return read_schedule(config, str(path))
    own = str(config.get("_class_name"))
    require(own in FLOW, f"the scheduler of {path}", f"one of {', '.join(FLOW)}", own)
    return read_continuous({**config, "use_dynamic_shifting": False}, own, str(path))


def require_guided(
    folder: Path, stage: str, *, by_token: bool = False, by_attention: bool = False
) -> None:
    """Raises ValueError unless a stage can compare the pipeline's prompts with the empty one.

    by_token: and differentiate by tokens that all encoders share. by_attention: and read or change
    the cross-attention of a UNet.
    """
    kind, parts = kind_of(folder), parts_of(read_object(folder / INDEX, MISSING))
    if kind is Flux:
        path = folder / "transformer" / "config.json"
        distilled = read_object(path, MISSING).get("guidance_embeds")
        rule = f"false for {stage}, as || D_t || needs predictions without a prompt"
        remedy = "sample and refine it: generate.prompts, extract.prompts and extract.refine"
        require(not distilled, f"guidance_embeds of {path}", rule, distilled, remedy)
    if by_token:
        rule = "of CLIP alone, as T5 has tokens of its own"
        t5 = [name for name, of in parts.items() if of == "T5EncoderModel"]
        where = f"the text encoders of the {kind.kind} in {folder} for {stage}"
        require(not t5, where, rule, ", ".join(t5), "use detect, which needs no tokens")
    if by_attention:
        where = f"the network of the {kind.kind} in {folder} for {stage}"
        remedy = "leave out the signal entropy, or choose another mitigate.method"
        rule = "a UNet with cross-attention"
        require("unet" in parts, where, rule, parts.get("transformer"), remedy)


def image_shape(folder: Path, variant: str | None = None) -> tuple[int, int, int]:
    """(c, h, w) of the images of a pipeline folder, from its configs."""
    kind = kind_of(folder)
    if "vae" not in parts_of(read_object(folder / INDEX, MISSING)):
        unet = _config_of(folder, "unet", variant)
        return unet["in_channels"], *_sides(unet["sample_size"])
    path = folder / "vae" / "config.json"
    vae = built(AutoencoderKL, read_object(path), str(path)).config
    if kind is Flux:
        return vae["out_channels"], *_sides(vae["sample_size"])
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    height, width = _sides(_config_of(folder, kind.network_part, variant)["sample_size"])
    return vae["out_channels"], height * factor, width * factor


def _config_of(folder: Path, part: str, variant: str | None) -> dict[str, Any]:
    inside = network_folder(folder, variant) if part == "unet" else folder / part
    return read_object(inside / "config.json", MISSING)


def _sides(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


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
    check_weights(unet, unet_files(inside, variant))
    return unet


def _checked_transformer(folder: Path, variant: str | None, kind: str) -> Any:
    path = folder / "transformer" / "config.json"
    config = read_object(path, MISSING)
    found = config.get("_class_name", kind)
    require(found == kind, f"the network of {path}", f"of class {kind}", found)
    transformer = built(getattr(diffusers, kind), config, str(path))
    both = [transformer.config["in_channels"], transformer.out_channels]
    names = f"in_channels and out_channels of {path}"
    require(both[0] == both[1], names, "equal", both, "transformers for other tasks are not")
    check_weights(transformer, weight_files(path.parent, variant, required=False))
    return transformer


def _checked_vae(folder: Path, variant: str | None, channels: int) -> None:
    path = folder / "config.json"
    vae = built(AutoencoderKL, read_object(path, MISSING), str(path))
    found = vae.config["latent_channels"]
    rule = f"{channels}, the in_channels of the network's latents"
    require(found == channels, f"latent_channels of {path}", rule, found)
    mean = vae.config.get("latents_mean")
    remedy = "latents with a mean and a deviation per channel are not supported"
    require(mean is None, f"latents_mean of {path}", "none", mean, remedy)
    check_weights(vae, weight_files(folder, variant, required=False))


def _checked_encoder(folder: Path, name: str, kind: str, variant: str | None) -> dict[str, Any]:
    """The config of a text encoder of this class, with the files of its tokenizer checked too."""
    path = folder / name / "config.json"
    weight_files(path.parent, variant, required=False)
    wanted, defaults = ENCODERS[kind]
    config = {"model_type": wanted, **defaults, **read_object(path, MISSING)}
    require(config["model_type"] == wanted, f"model_type of {path}", wanted, config["model_type"])
    tokenizer = folder / name.replace("text_encoder", "tokenizer")
    whole = TOKENIZERS[wanted]
    if not any(all((tokenizer / file).is_file() for file in files) for files in whole):
        needed = ", or ".join(" and ".join(files) for files in reversed(whole))
        raise FileNotFoundError(f"{tokenizer} must hold {needed}; copy it again")
    for file in sorted(tokenizer.glob("*.json")):
        read_object(file)
    return config
