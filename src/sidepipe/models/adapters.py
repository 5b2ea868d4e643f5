"""LoRA adapters of others: found, read in the formats of diffusers, PEFT and Kohya, and fused.

An adapter adds scale * up @ down to the weight of a layer (Hu et al., 2022), scale = alpha / rank.
The sum is the model under attack, so nothing else needs to change for it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sidepipe.base.pretrained import read_object
from sidepipe.base.settings import require
from sidepipe.base.weights import SHOWN, read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)

NONE = "none"  # as dpm.adapter: the base model, although an adapter lies in its folder
# File names of diffusers and PEFT; other tools have "lora" somewhere in the name.
NAMES = ("pytorch_lora_weights", "adapter_model")
FORMATS = (".safetensors", ".bin")
PEFT_CONFIG = "adapter_config.json"
OWN_TOOL = "fuse it into the checkpoint with its own tool"
# Beginnings of Kohya's names of the layers of text encoders.
KOHYA = {
    "text_encoder": ("lora_te", "lora_te1"),
    "text_encoder_2": ("lora_te2",),
    "text_encoder_3": ("lora_te3",),
}
# Stability's names of layers of UNets.
IN_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE_OF_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
# Blocks of transformers by the names of their own code, which Kohya and others keep.
OF_TRANSFORMERS = {
    "double_blocks": ("Flux", "FluxPipeline"),
    "single_blocks": ("Flux", "FluxPipeline"),
    "joint_blocks": ("Stable Diffusion 3", "StableDiffusion3Pipeline"),
}

_MATRIX = re.compile(
    r"(?P<layer>.+?)\.(lora_linear_layer\.|lora\.|lora_)(?P<side>A|B|down|up)"
    r"(\.default(_\d+)?)?\.weight"
)
# Attention processors of diffusers before 0.20.
_PROCESSOR = re.compile(
    r"(?P<layer>.+)\.processor\.(?P<to>to_q|to_k|to_v|to_out)_lora\.(?P<side>down|up)\.weight"
)


class Layer(NamedTuple):
    """An adapter adds scale * up @ down to the weight of a layer."""

    down: Tensor
    up: Tensor
    scale: float


def adapter_file(folder: Path, adapter: str | None) -> Path | None:
    """The file of the adapter for the checkpoint in `folder`; None without one.

    adapter: a file, a folder with one, None, or "none" for the base model although an adapter lies
    in its folder. Raises FileNotFoundError where it does not exist, and ValueError for None where
    the folder has an adapter.
    """
    if adapter == NONE:
        return None
    if adapter is not None:
        return _only_file(Path(adapter).expanduser())
    if found := _adapters_in(folder):
        remedy = f"dpm.adapter={found[0]} fuses it, and dpm.adapter={NONE} attacks the base model"
        rule = f"set where {folder} has a LoRA adapter, which the base model does not contain"
        require(False, "dpm.adapter", rule, None, remedy)
    return None


def _adapters_in(folder: Path) -> list[Path]:
    """The files of adapters in a pipeline's folder and in that of its network."""
    places = [folder, folder / "unet", folder / "transformer"]
    files = [file for place in places if place.is_dir() for file in sorted(place.iterdir())]
    return [file for file in files if file.suffix in FORMATS and _is_named_so(file)]


def _is_named_so(file: Path) -> bool:
    return file.stem in NAMES or "lora" in file.stem.lower()


def _only_file(path: Path) -> Path:
    if path.is_file():
        require(path.suffix in FORMATS, "dpm.adapter", f"a {' or '.join(FORMATS)} file", str(path))
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"dpm.adapter names {path}, which is neither a file nor a folder")
    files = sorted(file for file in path.iterdir() if file.suffix in FORMATS)
    named = [file for file in files if _is_named_so(file)] or files
    has = ", ".join(file.name for file in named) or f"no {' or '.join(FORMATS)} file"
    rule, remedy = "a folder with one file of weights", f"it has {has}; name the file of the LoRA"
    require(len(named) == 1, "dpm.adapter", rule, str(path), remedy)
    return named[0]


def fuse_adapter(networks: Mapping[str, nn.Module], path: Path) -> None:
    """Adds the adapter in the file to the weights, in place.

    networks: by the names of their parts, such as "unet" and "text_encoder". Raises ValueError
    where the file holds something else than LoRA of layers of these networks.
    """
    layers, modules = read_adapter(path), _modules_of(networks)
    unknown = [name for name in layers if name not in modules]
    remedy = f"it is of another model, or of parts other than {', '.join(networks)}"
    for part, (family, pipeline) in OF_TRANSFORMERS.items():
        if any(part in name for name in unknown):
            remedy = (
                f"they have other names than those of diffusers for {family}, where one matrix is "
                f"several layers; {pipeline}.lora_state_dict translates them, and "
                f"{pipeline}.save_lora_weights saves them under the names that are read here"
            )
    rule = f"layers of the model ({len(layers)} are in the file)"
    require(not unknown, f"the layers of {path}", rule, unknown[:SHOWN], remedy)
    for name, layer in layers.items():
        weight: Any = modules[name].weight
        delta = layer.up.float().flatten(1) @ layer.down.float().flatten(1)
        shapes = [list(layer.up.shape), list(layer.down.shape)]
        fits = delta.numel() == weight.numel() and len(delta) == len(weight)
        require(fits, f"{name} of {path}", f"up and down for {list(weight.shape)}", shapes, remedy)
        weight.data += (layer.scale * delta).reshape(weight.shape).to(weight.dtype)
    log.info("fused %d layers of the adapter %s", len(layers), path)


def read_adapter(path: Path) -> dict[str, Layer]:
    """The layers of an adapter, by their names in the file without those of the matrices.

    Raises ValueError where the file holds something else than LoRA.
    """
    sides: dict[str, dict[str, Tensor]] = {}
    others = []
    for name, tensor in read_tensors([path]).items():
        if name.endswith(".alpha"):
            sides.setdefault(name.removesuffix(".alpha"), {})["alpha"] = tensor
        elif (found := _MATRIX.fullmatch(name)) or (found := _PROCESSOR.fullmatch(name)):
            side = {"A": "down", "B": "up"}.get(found["side"], found["side"])
            sides.setdefault(_layer_of(found), {})[side] = tensor
        else:
            others.append(name)
    rule = "matrices of LoRA alone, not of LoHa, LoKr or DoRA, and no biases"
    require(not others, f"the weights of {path}", rule, others[:SHOWN], OWN_TOOL)
    halves = [name for name, found in sides.items() if not {"up", "down"} <= found.keys()]
    whole = bool(sides) and not halves
    require(whole, f"the layers of {path}", "LoRA with up and down each", halves[:SHOWN])
    config = _config_of(path)
    return {
        name: Layer(found["down"], found["up"], _scale(name, found, config))
        for name, found in sides.items()
    }


def _layer_of(found: re.Match[str]) -> str:
    if "to" not in found.groupdict():
        return found["layer"]
    return f"{found['layer']}.{found['to']}" + (".0" if found["to"] == "to_out" else "")


def _scale(name: str, found: Mapping[str, Tensor], config: Mapping[str, Any]) -> float:
    """alpha / rank, as PEFT and Kohya define it; 1 where nothing sets alpha."""
    rank = len(found["down"])
    if "alpha" in found:
        return float(found["alpha"]) / rank
    part = name.partition(".")[0]
    own = {key.removeprefix(f"{part}."): value for key, value in config.items()}
    of_layer = (
        value
        for pattern, value in (own.get("alpha_pattern") or {}).items()
        if re.match(rf"(.*\.)?({pattern})$", name)
    )
    alpha = next(of_layer, own.get("lora_alpha", rank))
    return alpha / (rank**0.5 if own.get("use_rslora") else rank)


def _config_of(path: Path) -> dict[str, Any]:
    """PEFT's settings of the adapter, from the file next to it or from its own metadata."""
    config: dict[str, Any] = {}
    if (path.parent / PEFT_CONFIG).is_file() and path.stem == "adapter_model":
        config = read_object(path.parent / PEFT_CONFIG)
    elif path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    dora = [key for key, value in config.items() if key.endswith("use_dora") and value]
    require(not dora, f"the adapter {path}", "LoRA", "DoRA", OWN_TOOL)
    return config


def _modules_of(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The layers with weights, by every name that a file may have for them.

    Diffusers begins a name with the part, Kohya writes _ for dots, and PEFT knows one network: the
    first here. transformers has text encoders with and without `text_model`.
    """
    modules: dict[str, nn.Module] = {}
    for number, (part, network) in enumerate(networks.items()):
        for name, module in network.named_modules():
            bare = name.removeprefix("text_model.")
            names = [bare, f"text_model.{bare}"] if part in KOHYA else [name]
            underscored = [*names, stability_name(name, network)] if part == "unet" else names
            for own in names if hasattr(module, "weight") else []:
                modules[f"{part}.{own}"] = module
                if number == 0:
                    modules |= {own: module, f"base_model.model.{own}": module}
            for own in underscored if hasattr(module, "weight") else []:
                for kohya in KOHYA.get(part, (f"lora_{part}",)):
                    modules[f"{kohya}_{own.replace('.', '_')}"] = module
    return modules


def stability_name(name: str, unet: Any) -> str:
    """The name of a UNet's layer in Stability's code, which Kohya has for SDXL."""
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{place}.{IN_RESNET.get(found[3], found[3])}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    each = unet.config["layers_per_block"]
    if found is None or not isinstance(each, int):
        return OUTSIDE_OF_BLOCKS.get(name, name)
    side, block, kind, layer, rest = found.groups()
    first = int(block) * (each + 1) + (side == "down")
    if kind == "downsamplers":
        return f"input_blocks.{first + each}.0.op"
    if kind == "upsamplers":
        place = 2 if hasattr(unet.up_blocks[int(block)], "attentions") else 1
        return f"output_blocks.{first + each}.{place}.conv"
    blocks = "input_blocks" if side == "down" else "output_blocks"
    place = 0 if kind == "resnets" else 1
    return f"{blocks}.{first + int(layer)}.{place}.{IN_RESNET.get(rest, rest)}"
