"""Folders of saved models: their location, configs and weight files.

All functions but `fingerprint` read only names and JSON, so that a wrong path or a damaged config
is an error before anything is loaded.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidepipe.base.files import sha256_of
from sidepipe.base.settings import require
from sidepipe.base.single_file import SUFFIXES, conversion

HUB = "hf://"
OUTPUTS = "outputs"  # the default of runtime.outputs
PARTS = (
    *("unet", "transformer", "scheduler", "vae", "vqvae"),
    *(
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
        "tokenizer",
        "tokenizer_2",
        "tokenizer_3",
    ),
)
DEFAULT, EMA = "default", "ema"
NOT_FUSED = (
    "a LoRA adapter that is not fused; remedy: call pipeline.fuse_lora() and "
    "pipeline.unload_lora_weights(), and save it again"
)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
# model.safetensors, diffusion_pytorch_model.fp16.bin, model.safetensors.index.json; not one shard.
_WEIGHTS = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model|ema_model)(\.(?P<variant>\w+))?"
    r"\.(?P<format>safetensors|bin)(?P<index>\.index(\.(?P<of>\w+))?\.json)?"
)


def folder_or_hub_id(name: str, path: str) -> Path | str:
    """The folder at `path`, or `path` itself where it is a hub id "owner/name".

    name: the setting, for messages. A path whose first part exists is a local one, so that a
    misspelled folder is not looked up on the hub, and so is one below `OUTPUTS`; `hf://owner/name`
    is always on the hub. Raises
    FileNotFoundError for anything else.
    """
    if path.startswith(HUB):
        hub_id = path.removeprefix(HUB)
        require(bool(_HUB_ID.fullmatch(hub_id)), name, f"{HUB}owner/name", path)
        return hub_id
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        single = folder.suffix in SUFFIXES
        what = conversion(folder) if single else "a file; remedy: name its folder"
        raise FileNotFoundError(f"{name} names {path}, which is {what}")
    first = folder.parts[0] if folder.parts else "."
    is_local = first == OUTPUTS or (not folder.is_absolute() and Path(first).exists())
    if is_local or not _HUB_ID.fullmatch(path):
        raise FileNotFoundError(f"{name} names {path}, which is not a folder{_hint(folder)}")
    return path


def _hint(folder: Path) -> str:
    """A hint at similar folders if a folder does not exist."""
    there = next(parent for parent in folder.parents if parent.is_dir())
    names = sorted(path.name for path in there.iterdir() if path.is_dir())
    missing = folder.relative_to(there).parts[0]
    close = difflib.get_close_matches(missing, names, n=1)
    if folder.parts[0] == OUTPUTS:
        return "; remedy: run make demo, or name the folder or the hub id of a checkpoint"
    if close:
        instead = f"; did you mean {there / close[0]}?"
    else:
        instead = "; remedy: name a folder that save_pretrained wrote, or a hub id owner/name"
    is_id = _HUB_ID.fullmatch(str(folder))
    return instead + (f"; write {HUB}{folder} for the hub" if is_id else "")


@contextmanager
def fetching(name: str, hub_id: str) -> Iterator[None]:
    """Raises FileNotFoundError, in one line, where the body cannot fetch a model from the hub."""
    try:
        yield
    except (OSError, ValueError) as error:  # the libraries have no common error class
        raise FileNotFoundError(
            f"{name} must be a folder or the id of a model on the hub, got {hub_id}, which is no "
            f"folder and cannot be fetched: {one_line(error)}; remedy: check the name"
        ) from None


def read_object(path: Path, missing: str = "") -> dict[str, Any]:
    """The JSON object in a file; missing: the rule that a missing file breaks.

    Raises FileNotFoundError for a missing file, ValueError for any other content.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{missing}{', but ' if missing else ''}there is no {path}")
    content = path.read_bytes()
    require(not (junk := junk_in(content)), str(path), "a JSON object", *(junk or ("", "")))
    try:
        found = json.loads(content)
    except ValueError as error:  # includes a wrong encoding
        raise ValueError(f"{path} must be a JSON object, but it cannot be read: {error}") from None
    require(isinstance(found, dict), str(path), "a JSON object", found)
    return found


def junk_in(content: bytes) -> tuple[str, str] | None:
    """The known junk that a file holds, and the remedy; None for anything else."""
    start = content[:512].lstrip()
    if not content:
        return "an empty file", "copy it again"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS", "run git lfs pull in its folder"
    if start[:1] == b"<":
        return "an HTML page", "download the file itself"
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "a byte-order mark", "save it as UTF-8 without one"
    return None


def one_line(error: Exception) -> str:
    """The error's class and the beginning of its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def parts_of(index: Mapping[str, Any]) -> dict[str, str]:
    """Class of each part that a model_index.json names; those set to nothing are left out."""
    entries = {name: value for name, value in index.items() if isinstance(value, list)}
    return {name: str(value[-1]) for name, value in entries.items() if value and value[0]}


def part_folder(folder: Path, name: str) -> Path:
    """The folder of a pipeline's part: the root in the oldest checkpoints."""
    return folder / name if (folder / name).is_dir() else folder


def network_folder(folder: Path, variant: str | None) -> Path:
    """The folder of the UNet: `unet`, or `unet_ema`, which holds its averaged weights."""
    averaged = folder / "unet_ema"
    if not averaged.is_dir():
        return part_folder(folder, "unet")
    if not (folder / "unet").is_dir():
        return averaged
    choices = [DEFAULT, EMA]
    remedy = f"set dpm.variant={DEFAULT} for {folder / 'unet'}, dpm.variant={EMA} for {averaged}"
    require(variant is not None, "dpm.variant", f"one of {choices}", variant, remedy)
    return averaged if variant == EMA else folder / "unet"


def unet_files(folder: Path, variant: str | None) -> list[Path]:
    """The weight files of the UNet in a `network_folder`; arguments as in `weight_files`."""
    # The variant "ema" chose the folder unet_ema; the file in it has no variant.
    within = None if folder.name == f"unet_{EMA}" else variant
    return weight_files(folder, within)


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a pipeline's parts, to detect a changed checkpoint."""
    networks = {folder / "unet", folder / f"unet_{EMA}"}
    folders = {path for path in networks | {folder / name for name in PARTS} if path.is_dir()}
    if not networks & folders or folder / "scheduler" not in folders:
        folders.add(folder)  # the oldest have these files at the root
    files = sorted(path for part in folders for path in part.iterdir() if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}


def weight_files(folder: Path, variant: str | None = None, *, required: bool = True) -> list[Path]:
    """The files that hold the weights of the network in `folder`: one, or its shards.

    variant: "fp16", "non_ema", "ema", ...; "default" for the file without a variant; None for that
    file or else the only variant. `.bin` is taken where `.safetensors` is missing. required: False
    accepts another variant where this one is missing. Raises FileNotFoundError without weights,
    ValueError where the user must choose the variant.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no {folder}, a part of the model; copy it again")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if match := _WEIGHTS.fullmatch(path.name):
            kind = match["variant"] or match["of"] or DEFAULT
            kind = EMA if match["stem"] == "ema_model" else kind
            # As in diffusers: an index of shards comes before a single file.
            files = found.setdefault(kind, {})
            files[match["format"]] = path if match["index"] else files.get(match["format"], path)
    if not found and (folder / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} has no weights of its own, but {NOT_FUSED}")
    if not found:
        raise FileNotFoundError(
            f"{folder} has no weights: no diffusion_pytorch_model.safetensors or model.safetensors"
        )
    if not required and variant not in found:
        variant = None
    files = found[_chosen(folder, sorted(found), variant)]
    return _shards(files.get("safetensors") or files["bin"])


def _chosen(folder: Path, variants: list[str], variant: str | None) -> str:
    if variant is None and len(variants) > 1:
        # Weights with and without averaging are different models.
        require(
            DEFAULT in variants and EMA not in variants,
            f"the weights in {folder}",
            "of one variant",
            variants,
            f"set dpm.variant={variants[0]} or another of them",
        )
        return DEFAULT
    if variant is None:
        return variants[0]
    require(variant in variants, "dpm.variant", f"one of {variants}, which {folder} has", variant)
    return variant


def _shards(path: Path) -> list[Path]:
    if path.suffix != ".json":
        return [path]
    names = read_object(path).get("weight_map")
    require(isinstance(names, dict) and bool(names), f"weight_map of {path}", "a mapping", names)
    assert isinstance(names, dict)
    files = [path.parent / name for name in sorted(set(map(str, names.values())))]
    missing = [file.name for file in files if not file.is_file() or file.parent != path.parent]
    if missing:
        raise FileNotFoundError(f"{path} lists {missing[0]}, which is missing; copy it again")
    return files
