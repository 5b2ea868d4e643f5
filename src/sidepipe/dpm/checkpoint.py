"""Somebody else's diffusers checkpoint: what it must be, and loading it.

A checkpoint is a folder written by `DDPMPipeline.save_pretrained`, or its copy on a hub. The oldest
have the network's and the schedule's files at the root, not in `unet/` and `scheduler/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.files import sha256_of
from sidepipe.settings import require, require_known

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, UNet2DModel


def check_checkpoint(folder: Path, size: int, channels: int) -> None:
    """Raises unless the checkpoint in `folder` is an unconditional model of images of this shape.

    FileNotFoundError where a config file is missing, ValueError where it says the wrong thing.
    """
    index = _config(folder / "model_index.json")
    parts = sorted(k for k, v in index.items() if isinstance(v, list) and v[0] is not None)
    # A latent model's network may look like an image model's; its other parts give it away.
    require(
        parts == ["scheduler", "unet"],
        f"the parts of {folder}",
        "scheduler and unet alone",
        parts,
        "latent and conditional pipelines are not supported",
    )
    check_network(_config(_part(folder, "unet") / "config.json"), str(folder), size, channels)
    check_schedule(_config(_part(folder, "scheduler") / "scheduler_config.json"), str(folder))


def _part(folder: Path, name: str) -> Path:
    return folder / name if (folder / name).is_dir() else folder


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"dpm.path must name a folder written by DDPMPipeline.save_pretrained, but there is no "
            f"{path}"
        )
    return json.loads(path.read_text())


def check_network(config: Mapping[str, Any], where: str, size: int, channels: int) -> None:
    """Raises ValueError unless this UNet config is unconditional and of images of this shape."""
    kind = config.get("_class_name", "UNet2DModel")
    require(kind == "UNet2DModel", f"the network of {where}", "an unconditional UNet2DModel", kind)
    classes = config.get("num_class_embeds") or config.get("class_embed_type")
    require(classes is None, f"the classes of {where}", "none (an unconditional model)", classes)
    wanted = (
        ("in_channels", channels, f"set data.channels={config['in_channels']}"),
        ("out_channels", channels, "learned-variance outputs are not supported"),
        ("sample_size", size, f"set data.size={config['sample_size']}"),
    )
    for name, value, remedy in wanted:
        rule = f"{value}, as the data are"
        require(config[name] == value, f"{name} of {where}", rule, config[name], remedy)


def check_schedule(config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError unless this scheduler config gives alphas_cumprod and a known target."""
    require(
        "beta_schedule" in config,
        f"the scheduler of {where}",
        "one with betas at discrete timesteps (DDPM, DDIM and kin)",
        config.get("_class_name"),
        "score-based, consistency and flow models are not supported",
    )
    target = config.get("prediction_type", "epsilon")
    known = ["epsilon", "v_prediction", "sample"]
    require_known(f"prediction_type of {where}", target, known)


def load_checkpoint(
    path: str, revision: str | None, size: int, channels: int
) -> tuple[UNet2DModel, DDPMScheduler]:
    """The network and the schedule of a folder or hub id, after `check_checkpoint`."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder = Path(DDPMPipeline.download(path, revision=revision))
    check_checkpoint(folder, size, channels)
    unet = UNet2DModel.from_pretrained(_part(folder, "unet"), low_cpu_mem_usage=False)
    schedule: Any = DDPMScheduler.from_pretrained(_part(folder, "scheduler"))
    return unet, schedule


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of the network's and the schedule's files, to notice a checkpoint that changed."""
    parts = {_part(folder, "unet"), _part(folder, "scheduler")}
    files = sorted(path for part in parts for path in part.iterdir() if path.is_file())
    return {str(path.relative_to(folder)): sha256_of(path) for path in files}
