"""Families of models: which pipelines are supported, and by which option of `dpm`.

A pipeline belongs to a family by its parts; the class in its model_index.json names it in messages.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from sidepipe.base.pretrained import parts_of, read_object
from sidepipe.base.settings import require

INDEX = "model_index.json"
MISSING = "dpm.path must name a folder written by save_pretrained of a diffusers pipeline"


class Family(NamedTuple):
    """Pipelines with the same parts.

    option: of `dpm`. pipelines: their usual classes. parts: all must be there. optional: parts that
    may be there.
    """

    option: str
    pipelines: tuple[str, ...]
    parts: frozenset[str]
    optional: frozenset[str] = frozenset()


FAMILIES = {
    "images": Family(
        "pretrained",
        ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline"),
        frozenset({"unet", "scheduler"}),
    ),
    "text": Family(
        "stable_diffusion",
        ("StableDiffusionPipeline",),
        frozenset({"unet", "scheduler", "text_encoder", "tokenizer"}),
        frozenset({"vae", "safety_checker", "feature_extractor", "image_encoder"}),
    ),
}
# Beginnings of the classes of pipelines that are not supported; the first that fits names the kind.
OTHERS = {
    "an upscaler": (
        *("StableDiffusionUpscale", "StableDiffusionLatentUpscale", "LDMSuperResolution"),
        "IFSuperResolution",
    ),
    "SDXL, which has two text encoders": ("StableDiffusionXL", "Kolors"),
    "a rectified flow model": (
        *("StableDiffusion3", "Flux", "AuraFlow", "Lumina", "Sana", "QwenImage", "HiDream"),
        *("Chroma", "ZImage", "CogView4", "OmniGen"),
    ),
    "a transformer with a T5 text encoder": ("PixArt", "HunyuanDiT", "Latte", "CogView3"),
    "a model of several stages": (
        *("Kandinsky", "UnCLIP", "StableUnCLIP", "StableCascade", "Wuerstchen", "IF"),
    ),
    "a model distilled for a few steps": ("LatentConsistency", "ConsistencyModel"),
    "a model of continuous noise levels": ("ScoreSdeVe", "KarrasVe"),
}
COMPARE = "sample it with diffusers, and compare its images by sidepipe.compare"


def require_family(folder: Path, option: str) -> str:
    """The name of the family of the pipeline in `folder`.

    Raises FileNotFoundError without an index, and ValueError unless `dpm=<option>` takes it.
    """
    index = read_object(folder / INDEX, MISSING)
    kind, parts = str(index.get("_class_name")), parts_of(index)
    name = _family_of(kind, parts)
    other = next((what for what, starts in OTHERS.items() if kind.startswith(starts)), "")
    supported = ", ".join(p for family in FAMILIES.values() for p in family.pipelines)
    if name is None:
        own = next((family for family in FAMILIES.values() if kind in family.pipelines), None)
        if own is not None:
            rule = f"{', '.join(sorted(own.parts))} (optional: {', '.join(sorted(own.optional))})"
            require(False, f"the parts of the {kind} in {folder}", rule, sorted(parts))
        has = other or f"its parts are {', '.join(sorted(parts)) or 'missing'}"
        where, rule = f"the pipeline in {folder}", f"one of {supported}"
        require(False, where, rule, f"{kind} ({has})", COMPARE)
    assert name is not None
    wanted, remedy = FAMILIES[name].option, f"set dpm={FAMILIES[name].option}"
    require(wanted == option, "dpm", f"{wanted} for the {name} model in {folder}", option, remedy)
    return name


def _family_of(kind: str, parts: Mapping[str, str]) -> str | None:
    if any(kind.startswith(starts) for starts in OTHERS.values()):
        return None
    return next((n for n, family in FAMILIES.items() if _fits(family, parts)), None)


def _fits(family: Family, parts: Collection[str]) -> bool:
    return family.parts <= set(parts) <= family.parts | family.optional
