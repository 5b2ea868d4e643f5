"""Pipeline folders of text-conditional models: checking, loading and saving them.

A folder is Stable Diffusion's, as `StableDiffusionPipeline.save_pretrained` writes it (1.x and
2.x), or that of a model of pixels trained here, which has no autoencoder. Weights are safetensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sidepipe.base.files import write_json
from sidepipe.base.pretrained import (
    PARTS,
    fetching,
    folder_or_hub_id,
    network_folder,
    one_line,
    parts_of,
    read_object,
    unet_files,
    weight_files,
)
from sidepipe.base.settings import Precision, require
from sidepipe.base.weights import (
    built,
    common_prefix,
    log_prefix,
    network_names,
    read_network,
    read_shapes,
    read_tensors,
    shapes_of,
)
from sidepipe.models.families import INDEX, MISSING, require_family
from sidepipe.models.schedules import clip_range, read_schedule, step_rule
from sidepipe.models.text.model import TextModel

SCHEDULER = "scheduler_config.json"
# Parts that Stable Diffusion's index lists and that no code here uses.
NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
# Files of hubs that no part needs: other precisions, weights without averaging.
NOT_FETCHED = ["*.fp16.*", "*non_ema*"]
FETCHED = [f"{part}/*{ending}" for part in PARTS for ending in (".json", ".txt", ".safetensors")]

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


class TextToImagePipeline(DiffusionPipeline):
    """A model of pixels: unet, scheduler, text_encoder and tokenizer, as diffusers saves and
    loads them. To sample, use `load_model`."""

    def __init__(self, unet: Any, scheduler: Any, text_encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        self.register_modules(
            unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )


def found_folder(path: str, revision: str | None, variant: str | None = None) -> Path:
    """The folder at `path`, or a download of the hub id without pickles."""
    found = folder_or_hub_id("dpm.path", path)
    if isinstance(found, Path):
        return found
    from huggingface_hub import snapshot_download

    ignored = [pattern for pattern in NOT_FETCHED if variant is None or variant not in pattern]
    with fetching("dpm.path", found):
        fetched = snapshot_download(
            found, revision=revision, allow_patterns=[INDEX, *FETCHED], ignore_patterns=ignored
        )
    return Path(fetched)


def check_pipeline(folder: Path, variant: str | None = None) -> None:
    """Raises unless `folder` is a pipeline guided by the text of one encoder.

    FileNotFoundError where a file is missing, ValueError where its content is wrong. Names and
    shapes of the weights of UNet and autoencoder must be those of their networks.
    """
    require_family(folder, "stable_diffusion")
    parts = parts_of(read_object(folder / INDEX))
    for name, kind in (("text_encoder", "CLIPTextModel"), ("vae", "AutoencoderKL")):
        known = parts.get(name, kind) == kind
        require(known, f"the {name} of {folder}", f"of class {kind}", parts.get(name))
    unet = _checked_unet(network_folder(folder, variant), variant)
    load_schedule(folder)
    if "vae" in parts:
        _checked_vae(folder / "vae", variant, unet)
    _check_text(folder, variant, unet)


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


def _checked_unet(inside: Path, variant: str | None) -> Any:
    path = inside / "config.json"
    config = read_object(path, MISSING)
    check_network(config, str(path))
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
    _check_names(vae, weight_files(folder, variant, required=False))


def _check_names(network: Any, files: Sequence[Path]) -> None:
    if (shapes := read_shapes(files)) is not None:
        network_names(shapes_of(network.state_dict()), shapes, str(files[0]))


def _check_text(folder: Path, variant: str | None, unet: Any) -> None:
    """The encoder's size and the tokenizer's files."""
    path = folder / "text_encoder" / "config.json"
    weight_files(path.parent, variant, required=False)
    config = read_object(path, MISSING)
    kind = config.get("model_type", "clip_text_model")
    require(kind == "clip_text_model", f"model_type of {path}", "clip_text_model", kind)
    found = config.get("hidden_size", 512)  # CLIPTextConfig's default
    wanted = unet.config["cross_attention_dim"]
    rule = f"{wanted}, the cross_attention_dim of the UNet"
    require(found == wanted, f"hidden_size of {path}", rule, found)
    tokenizer = folder / "tokenizer"
    whole = [["tokenizer.json"], ["vocab.json", "merges.txt"]]
    if not any(all((tokenizer / name).is_file() for name in names) for names in whole):
        raise FileNotFoundError(
            f"{tokenizer} must hold vocab.json and merges.txt, or tokenizer.json; copy it again"
        )
    for file in sorted(tokenizer.glob("*.json")):
        read_object(file)


def check_network(config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError unless this UNet is conditioned on text alone and can be guided by it."""
    kind = config.get("_class_name", "UNet2DConditionModel")
    rule = "a UNet2DConditionModel"
    require(kind == "UNet2DConditionModel", f"the network of {where}", rule, kind)
    more = config.get("addition_embed_type")
    require(more is None, f"the conditions of {where}", "text alone", more, "SDXL is not supported")
    name, distilled = f"time_cond_proj_dim of {where}", config.get("time_cond_proj_dim")
    remedy = "it was distilled for one guidance scale and has no empty prompt"
    require(distilled is None, name, "none, as in a model that can be guided", distilled, remedy)
    names = f"in_channels and out_channels of {where}"
    both = [config.get(name, 4) for name in ("in_channels", "out_channels")]  # diffusers' default
    require(both[0] == both[1], names, "equal", both, "inpainting and learned variances are not")


def load_model(
    folder: Path, precision: Precision = "32-true", variant: str | None = None
) -> TextModel:
    """The model of a pipeline folder, on the CPU, in eval mode, its weights without gradient.

    precision: "true" casts the weights, "mixed" casts the inputs of each operation. variant: that
    of the weight files. Raises ValueError where weights do not fit or are not finite.
    """
    _without_bars()
    parts = parts_of(read_object(folder / INDEX, MISSING))
    inside = network_folder(folder, variant)
    unet: Any = read_network(UNet2DConditionModel, inside, unet_files(inside, variant))
    encoder = read_text_encoder(folder / "text_encoder", variant)
    vae: Any = None
    if "vae" in parts:
        files = weight_files(folder / "vae", variant, required=False)
        vae = read_network(AutoencoderKL, folder / "vae", files)
    bits, _, kind = precision.partition("-")
    if kind == "true" and bits != "32":
        for part in filter(None, (unet, encoder, vae)):
            part.to(DTYPES[bits])
    scheduler = load_schedule(folder)
    rule = step_rule(scheduler)
    if vae is not None:  # StableDiffusionPipeline overrides the config
        rule = replace(rule, steps_offset=1)
    model = TextModel(
        unet,
        encoder,
        _tokenizer(folder / "tokenizer", parts["tokenizer"]),
        vae,
        scheduler.alphas_cumprod,
        scheduler.config["prediction_type"],
        step_rule=rule,
        autocast=DTYPES[bits] if kind == "mixed" else None,
        clip_range=clip_range(scheduler),
    )
    return model.eval().requires_grad_(False)


def load_schedule(folder: Path) -> Any:
    """The DDPMScheduler of a pipeline folder, after the checks of `read_schedule`."""
    path = folder / "scheduler" / SCHEDULER
    return read_schedule(read_object(path, MISSING), str(path))


def _tokenizer(folder: Path, kind: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer picks CLIP's own class; a tokenizer made here names no class of one version.
    made_here = kind not in ("CLIPTokenizer", "CLIPTokenizerFast")
    tokenizers = PreTrainedTokenizerFast if made_here else AutoTokenizer
    try:
        return tokenizers.from_pretrained(folder)
    except Exception as error:  # tokenizers document no list of their errors
        raise ValueError(f"the tokenizer {folder} cannot be read: {one_line(error)}") from None


def read_text_encoder(folder: Path, variant: str | None = None) -> Any:
    """The CLIPTextModel in `folder`, float32; ValueError unless its weights fit it exactly."""
    from transformers import CLIPTextConfig, CLIPTextModel

    files = weight_files(folder, variant, required=False)
    found = read_tensors(files)
    prefix = common_prefix(found)
    log_prefix(found, (), str(files[0]))
    # Files of old versions hold the buffer position_ids, which every version computes.
    tensors = {
        name.removeprefix(prefix): value.float()
        for name, value in found.items()
        if not name.endswith("position_ids")
    }
    path = folder / "config.json"
    settings = {k: v for k, v in read_object(path, MISSING).items() if "dtype" not in k}
    try:
        encoder, report = cast("Any", CLIPTextModel).from_pretrained(
            None,
            config=CLIPTextConfig.from_dict(settings),
            state_dict=tensors,
            output_loading_info=True,
        )
    except Exception as error:  # transformers documents no list of its errors
        raise ValueError(
            f"the weights in {files[0]} do not fit {path}: {one_line(error)}"
        ) from None
    kinds = ("missing", "unexpected", "mismatched")
    wrong = {kind: sorted(map(str, report[f"{kind}_keys"])) for kind in kinds}
    text = ", ".join(
        f"{len(names)} {kind} ({names[0]}, ...)" for kind, names in wrong.items() if names
    )
    require(not text, f"the weights in {files[0]}", f"those of {path}", text)
    return encoder


def save_model(model: TextModel, scheduler: Any, folder: Path) -> None:
    """Writes the parts as a pipeline folder for `load_model` and diffusers."""
    _without_bars()
    parts = {"unet": model.unet, "scheduler": scheduler, "text_encoder": model.text_encoder}
    parts |= {"tokenizer": model.tokenizer}
    if model.vae is None:
        TextToImagePipeline(**parts).save_pretrained(folder)
        return
    for name, part in {**parts, "vae": model.vae}.items():
        part.save_pretrained(folder / name)
    classes = {name: _class_of(part) for name, part in {**parts, "vae": model.vae}.items()}
    nothing = {name: [None, None] for name in NOT_NEEDED}
    index = {"_class_name": "StableDiffusionPipeline", **classes, **nothing}
    write_json(folder / INDEX, {**index, "requires_safety_checker": False})


def _without_bars() -> None:
    """Hides progress bars of reading and writing single files; downloads keep theirs."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _class_of(part: Any) -> list[str]:
    return [type(part).__module__.partition(".")[0], type(part).__name__]
