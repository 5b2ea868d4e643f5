"""Pipeline folders of text-conditional models: what they must be, loading and saving them.

A folder is Stable Diffusion's, written by `StableDiffusionPipeline.save_pretrained` (1.x and 2.x),
or one of a model of images trained here, which has no autoencoder. Weights are safetensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from sidepipe.artifacts import write_json
from sidepipe.files import sha256_of
from sidepipe.settings import require
from sidepipe.stage import Precision
from sidepipe.text.model import TextModel

PARTS = ("unet", "scheduler", "text_encoder", "tokenizer", "vae")
INDEX = "model_index.json"
# Parts that Stable Diffusion's index names and that nothing here uses.
NOT_NEEDED = ("safety_checker", "feature_extractor", "image_encoder")
# What no part needs and hubs hold: other precisions, weights without averaging.
NOT_FETCHED = ["*.fp16.*", "*non_ema*"]
FETCHED = [f"{part}/*{ending}" for part in PARTS for ending in (".json", ".txt", ".safetensors")]

DTYPES = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


class TextToImagePipeline(DiffusionPipeline):
    """A model of images, not latents: unet, scheduler, text_encoder and tokenizer, as diffusers
    saves and loads them. To sample, use `load_model`."""

    def __init__(self, unet: Any, scheduler: Any, text_encoder: Any, tokenizer: Any) -> None:
        super().__init__()
        self.register_modules(
            unet=unet, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )


def found_folder(path: str, revision: str | None) -> Path:
    """The folder at `path`, or of the hub id that it is, fetched without pickles."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    fetched = snapshot_download(
        path, revision=revision, allow_patterns=[INDEX, *FETCHED], ignore_patterns=NOT_FETCHED
    )
    return Path(fetched)


def check_pipeline(folder: Path) -> None:
    """Raises unless `folder` is a pipeline guided by the text of one encoder.

    FileNotFoundError where a file is missing, ValueError where one says the wrong thing.
    """
    index = _config(folder / INDEX)
    there = [name for name in PARTS if (index.get(name) or [None])[0] is not None]
    missing = [name for name in PARTS if name not in there and name != "vae"]
    rule = "unet, scheduler, text_encoder, tokenizer and, of latent models, vae"
    remedy = f"{', '.join(missing)} missing; dpm=pretrained is for unconditional checkpoints"
    require(not missing, f"the parts of {folder}", rule, there, remedy)
    second = [name for name in index if name.endswith("encoder_2")]
    require(not second, f"the encoders of {folder}", "one", second, "SDXL is not supported")
    check_network(_config(folder / "unet" / "config.json"), str(folder))
    scheduler = _config(folder / "scheduler" / "scheduler_config.json")
    kind = scheduler.get("_class_name")
    remedy = "flow and consistency models are not supported"
    discrete = "beta_schedule" in scheduler
    require(discrete, f"the scheduler of {folder}", "one with betas", kind, remedy)
    for name in ("unet", "text_encoder", *(["vae"] if "vae" in there else [])):
        if not list((folder / name).glob("*.safetensors")):
            raise FileNotFoundError(
                f"{folder / name} has no *.safetensors, and pickled weights are not read; remedy: "
                "save the pipeline again with safe_serialization=True"
            )


def check_network(config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError unless this UNet is conditioned on text alone and can be guided by it."""
    kind = config.get("_class_name", "UNet2DConditionModel")
    rule = "a UNet2DConditionModel"
    require(kind == "UNet2DConditionModel", f"the network of {where}", rule, kind)
    more = config.get("addition_embed_type")
    require(more is None, f"the conditions of {where}", "text alone", more, "SDXL is not supported")
    name, distilled = f"time_cond_proj_dim of {where}", config.get("time_cond_proj_dim")
    remedy = "it was distilled for one guidance scale and knows no empty prompt"
    require(distilled is None, name, "none, as of a model that can be guided", distilled, remedy)
    names = f"in_channels and out_channels of {where}"
    both = [config["in_channels"], config["out_channels"]]
    require(both[0] == both[1], names, "equal", both, "inpainting and learned variances are not")


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            "dpm.path must name a folder written by StableDiffusionPipeline.save_pretrained, but "
            f"there is no {path}"
        )
    return json.loads(path.read_text())


def load_model(folder: Path, precision: Precision = "32-true") -> TextModel:
    """The model of a pipeline folder, on the CPU, in eval mode, its weights without gradient.

    precision: "true" casts the weights, "mixed" casts what each operation takes.
    """
    from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerFast

    _without_bars()
    index = json.loads((folder / INDEX).read_text())
    safe: dict[str, Any] = {"use_safetensors": True}
    unet: Any = UNet2DConditionModel.from_pretrained(
        folder / "unet", low_cpu_mem_usage=False, **safe
    )
    encoder: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", **safe)
    has_vae = (index.get("vae") or [None])[0] is not None
    vae: Any = None
    if has_vae:
        vae = AutoencoderKL.from_pretrained(folder / "vae", low_cpu_mem_usage=False, **safe)
    bits, _, kind = precision.partition("-")
    if kind == "true" and bits != "32":
        for part in filter(None, (unet, encoder, vae)):
            part.to(DTYPES[bits])
    # Of CLIP's own class Auto knows; a tokenizer made here names none that every version has.
    made_here = index["tokenizer"][1] not in ("CLIPTokenizer", "CLIPTokenizerFast")
    tokenizers = PreTrainedTokenizerFast if made_here else AutoTokenizer
    scheduler: Any = DDPMScheduler.from_pretrained(folder / "scheduler")
    model = TextModel(
        unet,
        encoder,
        tokenizers.from_pretrained(folder / "tokenizer"),
        vae,
        scheduler.alphas_cumprod,
        scheduler.config["prediction_type"],
        steps_offset=scheduler.config["steps_offset"],
        autocast=DTYPES[bits] if kind == "mixed" else None,
    )
    return model.eval().requires_grad_(False)


def save_model(model: TextModel, scheduler: Any, folder: Path) -> None:
    """Writes the parts as a pipeline folder, from which `load_model` and diffusers read them."""
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
    """Reading and writing a file or two needs no progress bar; fetching them keeps its own."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _class_of(part: Any) -> list[str]:
    return [type(part).__module__.partition(".")[0], type(part).__name__]


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of the parts' files, to notice a checkpoint that changed."""
    files = sorted(path for name in PARTS for path in (folder / name).glob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}
