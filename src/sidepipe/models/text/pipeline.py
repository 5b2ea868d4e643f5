"""Pipeline folders of text-conditional models: loading and saving them.

A folder is that of a family in `kinds.py`, as `save_pretrained` of its pipeline writes it, or that
of a model of pixels trained here, which has no autoencoder. `checks.py` checks it first.
"""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
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
    common_prefix,
    log_prefix,
    read_network,
    read_tensors,
)
from sidepipe.models.families import FAMILIES, INDEX, MISSING
from sidepipe.models.text.checks import load_schedule
from sidepipe.models.text.kinds import kind_of
from sidepipe.models.text.model import TextModel

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


def load_model(
    folder: Path, precision: Precision = "32-true", variant: str | None = None
) -> TextModel:
    """The model of a pipeline folder, on the CPU, in eval mode, its weights without gradient.

    precision: "true" casts the weights, "mixed" casts the inputs of each operation. variant: that
    of the weight files. Raises ValueError where weights do not fit or are not finite.
    """
    _without_bars()
    kind = kind_of(folder)
    index = read_object(folder / INDEX, MISSING)
    classes = parts_of(index)
    bits, _, how = precision.partition("-")
    parts = {
        name: _network(folder, name, classes[name], variant)
        for name in (kind.network_part, *kind.encoders, "vae")
        if name in classes
    }
    for name, part in parts.items() if how == "true" and bits != "32" else ():
        # In float16 such an autoencoder overflows, so it stays float32 as in SDXL's own pipeline.
        if not (name == "vae" and bits == "16" and part.config["force_upcast"]):
            part.to(DTYPES[bits])
    for encoder in (name for name in kind.encoders if name in parts):
        name = encoder.replace("text_encoder", "tokenizer")
        parts[name] = _tokenizer(folder / name, classes[name])
    parts["scheduler"] = load_schedule(folder)
    settings = {name: index.get(name, default) for name, default in kind.defaults.items()}
    autocast = DTYPES[bits] if how == "mixed" else None
    return kind(parts, settings, autocast).eval().requires_grad_(False)


def _network(folder: Path, name: str, kind: str, variant: str | None) -> Any:
    """A part with weights, float32."""
    if "text_encoder" in name:
        return read_text_encoder(folder / name, variant, kind)
    if name == "unet":
        inside = network_folder(folder, variant)
        return read_network(UNet2DConditionModel, inside, unet_files(inside, variant))
    files = weight_files(folder / name, variant, required=False)
    return read_network(getattr(diffusers, kind), folder / name, files)


def _tokenizer(folder: Path, kind: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer picks the encoder's own class; one made here names no class of one version.
    made_here = not kind.startswith(("CLIPTokenizer", "T5Tokenizer"))
    tokenizers = PreTrainedTokenizerFast if made_here else AutoTokenizer
    try:
        return tokenizers.from_pretrained(folder)
    except Exception as error:  # tokenizers document no list of their errors
        raise ValueError(f"the tokenizer {folder} cannot be read: {one_line(error)}") from None


def read_text_encoder(folder: Path, variant: str | None = None, kind: str = "CLIPTextModel") -> Any:
    """The text encoder in `folder`, float32; ValueError unless its weights fit it exactly.

    kind: its class in transformers.
    """
    import transformers

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
    network: Any = getattr(transformers, kind)
    try:
        encoder, report = network.from_pretrained(
            None,
            config=network.config_class.from_dict(settings),
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


def save_model(model: TextModel, folder: Path) -> None:
    """Writes the parts as a pipeline folder for `load_model` and diffusers."""
    _without_bars()
    if model.vae is None:
        TextToImagePipeline(**model.parts).save_pretrained(folder)
        return
    for name, part in model.parts.items():
        part.save_pretrained(folder / name)
    index = {name: _class_of(part) for name, part in model.parts.items()}
    own = next(family for family in FAMILIES if model.kind in family.pipelines)
    nothing = {name: [None, None] for name in sorted(own.optional - index.keys())}
    index = {"_class_name": model.kind, **index, **nothing, **model.settings}
    write_json(folder / INDEX, index)


def _without_bars() -> None:
    """Hides progress bars of reading and writing single files; downloads keep theirs."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _class_of(part: Any) -> list[str]:
    return [type(part).__module__.partition(".")[0], type(part).__name__]
