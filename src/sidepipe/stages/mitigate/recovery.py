"""Recovery of images by an adversary with the weights, and its control."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import UInt8

from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Runtime
from sidepipe.models.text.memory import GRADIENT_SHARE, images_at_once
from sidepipe.stages.mitigate.adversary import recovering
from sidepipe.stages.mitigate.judging import Copies, Generated, parts_of
from sidepipe.stages.mitigate.requests import Mitigated, Requests, requests
from sidepipe.stages.mitigate.strategies import Adversary


def recovered(
    folder: Path,
    mitigated: Mitigated,
    adversary: Adversary,
    table: pd.DataFrame,
    images: Generated,
    copies: Copies,
    runtime: Runtime,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table with what is recovered, and the rates of recovery of images.

    These are images that prompts replayed, and held-out images of test prompts as the control:
    embeddings alone can describe them. The start that recovers most of a prompt's images counts for
    both.
    """
    rows = table["nearest"].where(table["group"] == "memorized", table["row"]).to_numpy()
    some = rows >= 0
    asked, rows, images = table.loc[some], rows[some], images[some]
    captions, numbers = asked["caption"].tolist(), asked["number"].tolist()
    each = images.shape[1]
    made = recover(
        folder,
        mitigated,
        requests(captions, numbers, each),
        copies.data[rows],
        adversary,
        runtime,
    )
    starts = np.stack([copies.of(one, rows) for one in made.reshape(-1, *images.shape)])
    best = starts[starts.sum(axis=2).argmax(axis=0), np.arange(len(rows))]
    found = {"before": copies.of(images, rows), "after": best}
    values = pd.Series(copies.memorized(best), index=asked.index, dtype=float)
    return table.assign(recovered=values), {
        name: {when: copies.rates(their[part]) for when, their in found.items()}
        for name, part in parts_of(asked).items()
    }


def recover(
    folder: Path,
    mitigated: Mitigated,
    asked: Requests,
    wanted: UInt8[np.ndarray, "p h w c"],
    adversary: Adversary,
    runtime: Runtime,
) -> UInt8[np.ndarray, "n h w c"]:
    """Images by an adversary that wants one image per prompt back; in parts within `folder`.

    asked: equally many requests per prompt, prompt by prompt; the images of each start follow each
    other. The first embedding starts at that of the method for the prompt's first request, others
    at random; all are optimized for `wanted`. The network is that of the method.
    """
    model, each, prompts = mitigated.model, len(asked.captions) // len(wanted), len(wanted)
    asked = asked.part([*range(len(asked.captions))] * adversary.num_starts)
    wanted = np.concatenate([wanted] * adversary.num_starts)
    first = asked.part(range(0, len(asked.captions), each))

    def embed(some: range) -> Arrays:
        part = first.part(some)
        e, _ = mitigated.embeddings(part)
        x_0 = model.to_latents(torch.from_numpy(wanted[some.start : some.stop]))
        starts = [(part.numbers[i], place // prompts) for i, place in enumerate(some)]
        with mitigated.network(part):
            e = recovering(model, x_0, e, mitigated.seed, starts, adversary.num_steps, adversary.lr)
        return {"e": e.cpu().numpy()}

    def make(some: range) -> Arrays:
        rows = torch.from_numpy(e[[i // each for i in some]]).to(model.device)
        return {"images": mitigated.images(asked.part(some), rows)}

    every, batch_size = runtime.progress_seconds, runtime.sampling_batch_size
    size = images_at_once(model, batch_size, GRADIENT_SHARE)
    e = in_parts(folder / "e", len(wanted), size, embed, "embedding", every)["e"]
    size = images_at_once(model, batch_size)
    return in_parts(folder / "images", len(asked.captions), size, make, "image", every)["images"]
