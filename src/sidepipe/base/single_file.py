"""Files that hold a whole model: which model it is, and the command that saves it as a folder.

Only the names of the tensors are read. diffusers' `from_single_file` converts a file; the configs
and tokenizers that it does not hold come from the hub, or from a folder of a model of this kind.
"""

import json
from collections.abc import Collection
from pathlib import Path

SUFFIXES = (".safetensors", ".ckpt")
OFFLINE = (
    "it fetches configs and tokenizers from the hub, or takes them from a folder of such a model, "
    "with config='/folder' after the file's name"
)
# Beginnings of names without `PREFIX`; the first that a name has tells the pipeline.
PREFIX = "model.diffusion_model."
PIPELINES = {
    "conditioner.embedders.1.": "StableDiffusionXLPipeline",
    "joint_blocks.": "StableDiffusion3Pipeline",
    "double_blocks.": "FluxPipeline",
    "cond_stage_model.": "StableDiffusionPipeline",
}
# Pipelines whose files often lack the text encoders: the network, and where the other parts are.
ALONE = {
    "StableDiffusion3Pipeline": (
        *("SD3Transformer2DModel", "stabilityai/stable-diffusion-3-medium-diffusers"),
    ),
    "FluxPipeline": ("FluxTransformer2DModel", "black-forest-labs/FLUX.1-dev"),
}


def conversion(file: Path) -> str:
    """A phrase: what the file is, and the command with which dpm.path names a folder instead."""
    if file.suffix == ".ckpt":
        return (
            "a pickle, whose model is not known before it is opened; remedy: "
            f"{_command('StableDiffusionPipeline', file)}, or with StableDiffusionXLPipeline; "
            "diffusers opens it with weights_only=True"
        )
    names = _names(file)
    found = (p for start, p in PIPELINES.items() if any(_begins(name, start) for name in names))
    if (pipeline := next(found, None)) is not None:
        alone = pipeline in ALONE and not any(name.startswith("text_encoders.") for name in names)
        what = f"the network of a {pipeline} alone" if alone else f"a whole {pipeline}"
        options = _without_t5(names) if pipeline == "StableDiffusion3Pipeline" else ""
        command = _network_command if alone else _command
        return f"a file of {what}; remedy: {command(pipeline, file, options)}; {OFFLINE}"
    if any("lora" in name for name in names):
        return (
            f"a LoRA adapter; remedy: name the folder of its base model, and set dpm.adapter={file}"
        )
    if any(name.startswith((PREFIX, "first_stage_model.")) for name in names):
        return (
            "a file of a latent model without a known text encoder; remedy: "
            "scripts/convert_ldm_original_checkpoint_to_diffusers.py of diffusers' repository "
            "saves an LDMPipeline as a folder, for dpm=pretrained"
        )
    return (
        "a file of weights without their config; remedy: name the folder that save_pretrained of "
        "the whole pipeline wrote"
    )


def _names(file: Path) -> Collection[str]:
    """The names of the tensors of a .safetensors file; none where its header cannot be read."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if length > file.stat().st_size:
            return []
        try:
            found = json.loads(opened.read(length))
        except ValueError:  # also of a wrong encoding
            return []
        return found if isinstance(found, dict) else []


def _begins(name: str, start: str) -> bool:
    return name.removeprefix(PREFIX).startswith(start)


def _without_t5(names: Collection[str]) -> str:
    has_t5 = any(name.startswith("text_encoders.t5xxl.") for name in names)
    return "" if has_t5 else ", text_encoder_3=None"


def _command(pipeline: str, file: Path, options: str = "") -> str:
    code = f"P.from_single_file({str(file)!r}{options}).save_pretrained({str(_folder(file))!r})"
    return _python(f"from diffusers import {pipeline} as P; {code}", file)


def _network_command(pipeline: str, file: Path, options: str = "") -> str:
    network, base = ALONE[pipeline]
    code = f"P.from_pretrained({base!r}, transformer=T.from_single_file({str(file)!r}))"
    code += f".save_pretrained({str(_folder(file))!r})"
    return _python(f"from diffusers import {pipeline} as P, {network} as T; {code}", file)


def _python(code: str, file: Path) -> str:
    return f'python -c "{code}", then dpm=stable_diffusion dpm.path={_folder(file)}'


def _folder(file: Path) -> Path:
    return file.with_suffix("")
