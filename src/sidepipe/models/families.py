"""Families of models: which pipelines are supported, and by which option of `dpm`.

A pipeline belongs to a family by its parts; the class in its model_index.json names it in messages.
"""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from sidepipe.base.pretrained import parts_of, read_object
from sidepipe.base.settings import require
from sidepipe.models.continuous import PIPELINES

INDEX = "model_index.json"
ENCODING = "encoding"  # the part that makes a model one of table rows
MISSING = "dpm.path must name a folder written by save_pretrained of a diffusers pipeline"


class Family(NamedTuple):
    """Pipelines with the same parts.

    option: of `dpm`. pipelines: their usual classes. parts: all must be there. optional: parts that
    may be there.
    """

    name: str
    option: str
    pipelines: tuple[str, ...]
    parts: frozenset[str]
    optional: frozenset[str] = frozenset()


FAMILIES = (
    Family(
        "image",
        "pretrained",
        ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", *PIPELINES.values()),
        frozenset({"unet", "scheduler"}),
    ),
    Family(
        "latent",
        "pretrained",
        ("LDMPipeline",),
        frozenset({"unet", "scheduler", "vqvae"}),
    ),
    Family(
        "latent",
        "pretrained",
        ("LDMPipeline",),
        frozenset({"unet", "scheduler", "vae"}),
    ),
    Family(
        "DiT",
        "pretrained",
        ("DiTPipeline",),
        frozenset({"transformer", "scheduler", "vae"}),
    ),
    Family(
        "exact",
        "pretrained",
        ("ExactPipeline",),
        frozenset({"mixture", "scheduler"}),
    ),
    Family(
        "table",
        "pretrained",
        ("TablePipeline",),
        frozenset({"unet", ENCODING, "scheduler"}),
    ),
    Family(
        "table",
        "pretrained",
        ("TablePipeline",),
        frozenset({"mixture", ENCODING, "scheduler"}),
    ),
    Family(
        "text",
        "stable_diffusion",
        ("StableDiffusionPipeline",),
        frozenset({"unet", "scheduler", "text_encoder", "tokenizer"}),
        frozenset({"vae", "safety_checker", "feature_extractor", "image_encoder"}),
    ),
    Family(
        "SDXL",
        "stable_diffusion",
        ("StableDiffusionXLPipeline",),
        frozenset(
            {"unet", "scheduler", "vae"}
            | {"text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"}
        ),
        frozenset({"feature_extractor", "image_encoder"}),
    ),
    Family(
        "Stable Diffusion 3",
        "stable_diffusion",
        ("StableDiffusion3Pipeline",),
        frozenset(
            {"transformer", "scheduler", "vae"}
            | {"text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"}
        ),
        frozenset({"text_encoder_3", "tokenizer_3", "feature_extractor", "image_encoder"}),
    ),
    Family(
        "Flux",
        "stable_diffusion",
        ("FluxPipeline",),
        frozenset(
            {"transformer", "scheduler", "vae"}
            | {"text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"}
        ),
        frozenset({"feature_extractor", "image_encoder"}),
    ),
)
# Beginnings of the classes of pipelines that are not supported; the first that fits names the kind.
OTHERS = {
    "an upscaler": (
        *("StableDiffusionUpscale", "StableDiffusionLatentUpscale", "LDMSuperResolution"),
        "IFSuperResolution",
    ),
    "SDXL for another task": ("StableDiffusionXL",),
    "SDXL with another text encoder": ("Kolors",),
    "Stable Diffusion 3 or Flux for another task": ("StableDiffusion3", "Flux"),
    "a rectified flow model": (
        *("AuraFlow", "Lumina", "Sana", "QwenImage", "HiDream"),
        *("Chroma", "ZImage", "CogView4", "OmniGen"),
    ),
    "a transformer with a T5 text encoder": ("PixArt", "HunyuanDiT", "Latte", "CogView3"),
    "a model of several stages": (
        *("Kandinsky", "UnCLIP", "StableUnCLIP", "StableCascade", "Wuerstchen", "IF"),
    ),
    "a model distilled for a few steps": ("LatentConsistency", "ConsistencyModel"),
}
COMPARE = "sample it with diffusers, and compare its images by sidepipe.compare"


def require_family(folder: Path, option: str) -> Family:
    """The family of the pipeline in `folder`.

    Raises FileNotFoundError without an index, and ValueError unless `dpm=<option>` takes it.
    """
    index = read_object(folder / INDEX, MISSING)
    kind, parts = str(index.get("_class_name")), parts_of(index)
    family = family_of(kind, parts)
    if family is None:
        raise _refusal(folder, kind, sorted(parts))
    wanted, remedy = family.option, f"set dpm={family.option}"
    rule = f"{wanted} for the {family.name} model in {folder}"
    require(wanted == option, "dpm", rule, option, remedy)
    return family


def family_of(kind: str, parts: Collection[str]) -> Family | None:
    """The family of a pipeline of this class with these parts, None where it has none."""
    known = any(kind in family.pipelines for family in FAMILIES)
    if not known and any(kind.startswith(starts) for starts in OTHERS.values()):
        return None
    every = set(parts)
    fits = (f for f in FAMILIES if f.parts <= every <= f.parts | f.optional)
    # Stable Diffusion 3 without T5 and Flux have the same parts.
    return next((f for f in fits if not known or kind in f.pipelines), None)


def _refusal(folder: Path, kind: str, parts: list[str]) -> ValueError:
    own = next((family for family in FAMILIES if kind in family.pipelines), None)
    if own is not None:
        rule = ", ".join(sorted(own.parts))
        rule += f" (optional: {', '.join(sorted(own.optional))})" if own.optional else ""
        return ValueError(f"the parts of the {kind} in {folder} must be {rule}, got {parts}")
    supported = ", ".join(dict.fromkeys(p for family in FAMILIES for p in family.pipelines))
    other = next((what for what, starts in OTHERS.items() if kind.startswith(starts)), "")
    has = other or f"its parts are {', '.join(parts) or 'missing'}"
    return ValueError(
        f"the pipeline in {folder} must be one of {supported}, got '{kind} ({has})'; {COMPARE}"
    )
