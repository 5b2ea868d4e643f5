"""Prompts of plain samples: captions that an attacker has, and the draw of one per image.

Only this module reads captions outside the data and the model: an attacker by prompts has them
(Carlini et al., 2023), but not the images.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from sidepipe.diffusion.noise import generator
from sidepipe.models.text.prompts import read_prompts
from sidepipe.stages.data.stage import load_captions
from sidepipe.stages.dpm.stage import load_subset
from sidepipe.stages.generate.stage import OF_DATA


def prompts_of(source: str, inputs: Mapping[str, Path], root: str) -> list[str]:
    """The different prompts of a source, in order: "train", "heldout" or a file below root."""
    if source not in OF_DATA:
        captions = [
            p.caption for p in read_prompts(Path(root).expanduser() / Path(source).expanduser())
        ]
    else:
        rows = load_subset(inputs["dpm"])[OF_DATA.index(source)]
        captions = load_captions(inputs["data"])["caption"].iloc[rows]
    found = list(dict.fromkeys(captions))
    if not found:
        raise ValueError(f"there are no {source} captions; remedy: choose other prompts")
    return found


def draw_prompts(num_prompts: int, num_images: int, seed: int) -> Int64[np.ndarray, "n"]:
    """The prompt's number for each image, uniform and independent of `num_images`."""
    drawn = [generator(seed, "targets", i).integers(num_prompts) for i in range(num_images)]
    return np.array(drawn, np.int64)
