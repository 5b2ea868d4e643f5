"""Stage `descriptor`: trains a copy descriptor on images that the model was not trained on.

Only an evaluation may use it: an attacker cannot tell which images the model was not trained on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Int64

from sidepipe.base.files import write_json, write_table
from sidepipe.base.settings import require
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.engine.trained import Training
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.stage import DPM, load_subset

if TYPE_CHECKING:
    from sidepipe.features.copydet import CopyDet, CopyNet
    from sidepipe.features.encoders import Encoder

log = logging.getLogger(__name__)

MIN_IMAGES = 64
TASK_SHARE, MAX_TASK_IMAGES = 0.2, 1200


@dataclass(frozen=True, kw_only=True)
class Descriptor(Training):
    """A copy descriptor in the recipe of SSCD.

    fraction: share of the images outside the model's training subset that it is trained on, taken
    from the end of the held-out order; evaluate leaves them out. widths: channels per level of the
    network. dimensions: of the vectors. temperature: of the cosines. entropy_weight: of KoLeo.
    sscd_path, sscd_sha256: the official descriptor, for comparison; None to skip it. Each step uses
    two copies of every image in the batch.
    """

    name: ClassVar[str] = "descriptor"
    needed_by: ClassVar[str] = "evaluate=copydet"
    checkpoints: ClassVar[str] = "model.safetensors"
    fraction: float
    widths: list
    dimensions: int
    temperature: float
    entropy_weight: float
    validate_every_steps: int
    sscd_path: str | None
    sscd_sha256: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.temperature > 0, "descriptor.temperature", "> 0", self.temperature)
        require(self.entropy_weight >= 0, "descriptor.entropy_weight", ">= 0", self.entropy_weight)
        require(0 < self.fraction < 1, "descriptor.fraction", "in (0, 1)", self.fraction)
        every, rule = self.validate_every_steps, "in [1, max_steps]"
        require(1 <= every <= self.max_steps, "descriptor.validate_every_steps", rule, every)

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        require(
            self.batch_size >= 4 and self.batch_size % (2 * runtime.num_processes) == 0,
            "descriptor.batch_size",
            f">= 4 and divisible by {2 * runtime.num_processes}, pairs of images on every device",
            self.batch_size,
        )

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        import torch

        from sidepipe.features.copydet import CopyNet
        from sidepipe.features.encoders import SSCD

        # On "meta", without memory or weights: a refused network fails before any stage runs.
        with torch.device("meta"):
            CopyNet(8, self.widths, self.dimensions)
        if self.sscd_path is not None:
            SSCD(self.sscd_path, self.sscd_sha256).check()

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        self.rows(dpm.split(data, runtime)[1])

    def rows(self, unseen: Int64[np.ndarray, "m"]) -> Int64[np.ndarray, "n"]:
        """The unseen images that it is trained on; ValueError where they are too few."""
        return last_share(unseen, self.fraction)

    def run(self, job: Job) -> dict[str, Any]:
        from safetensors.torch import save_file

        from sidepipe.features.copydet import WEIGHTS

        images, unseen = load_images(job.inputs["data"]), load_subset(job.inputs["dpm"])[1]
        rows = self.rows(unseen)
        np.save(job.folder / "rows.npy", rows)
        train, task = _split(rows, self.seed)
        network = self._new_network(job.folder, images.shape[1])
        log.info(
            "training %.2f M parameters on %d unseen images, %d for validation",
            *(sum(p.numel() for p in network.parameters()) / 1e6, len(train), len(task)),
        )
        self._train(network, images[train], images[task], job)
        save_file(network.state_dict(), job.folder / WEIGHTS)
        return self._judge(job.folder, images[task], job.runtime) | {
            "num_train_images": len(train),
            "num_task_images": len(task),
        }

    def _new_network(self, folder: Path, size: int) -> CopyNet:
        """A network with seeded weights, described in the folder for `load`."""
        import lightning as L

        from sidepipe.features.copydet import DESCRIPTION, CopyNet

        L.seed_everything(self.seed, verbose=False)
        arguments = {"size": size, "widths": list(self.widths), "dimensions": self.dimensions}
        write_json(folder / DESCRIPTION, arguments)
        return CopyNet(**arguments)

    def _train(self, network: CopyNet, seen: np.ndarray, unseen: np.ndarray, job: Job) -> None:
        """Leaves the trained weights in `network`."""
        from sidepipe.engine.training import fit, validation_batches, weights
        from sidepipe.stages.descriptor.module import DescriptorModule

        module = DescriptorModule(
            network,
            temperature=self.temperature,
            entropy_weight=self.entropy_weight,
            lr=self.lr,
            weight_decay=self.weight_decay,
            lr_warmup_steps=self.lr_warmup_steps,
            seed=self.seed,
        )
        fit(
            self,
            module,
            [seen],
            validation_batches([unseen]),
            job,
            validate_every_steps=self.validate_every_steps,
        )
        module.load_state_dict(weights(job.folder))

    def _judge(self, folder: Path, images: np.ndarray, runtime: Runtime) -> dict[str, Any]:
        """Writes quality.csv; the summary has its rows for all edits together."""
        import pandas as pd

        from sidepipe.features.encoders import SSCD, Pixels, PixelsL2
        from sidepipe.stages.descriptor.task import judge

        encoders: dict[str, Encoder] = {
            e.transform: e for e in (load(folder), PixelsL2(), Pixels())
        }
        if self.sscd_path is not None:
            sscd = SSCD(self.sscd_path, self.sscd_sha256)
            encoders[sscd.transform] = sscd
        rows = list(judge(encoders, images, self.seed, runtime.torch_device()))
        write_table(folder / "quality.csv", pd.DataFrame(rows))
        together = {r["encoder"]: r["average_precision"] for r in rows if r["edit"] == "all"}
        for name, value in together.items():
            log.info("%s: average precision %.3f on planted copies", name, value)
        return {"average_precision": together}


def last_share(unseen: Int64[np.ndarray, "m"], fraction: float) -> Int64[np.ndarray, "n"]:
    """The last `fraction` of the images outside the training subset, the worst held-out images.

    Raises ValueError for fewer than `MIN_IMAGES`.
    """
    count = int(len(unseen) * fraction)
    require(
        count >= MIN_IMAGES,
        "descriptor.fraction",
        f"enough for {MIN_IMAGES} of the {len(unseen)} images outside the training subset",
        fraction,
        "raise it, lower dpm.num_train_images, bring more images, or choose another encoder",
    )
    return unseen[len(unseen) - count :]


def _split(rows: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for validation."""
    order = np.random.default_rng(seed).permutation(rows)
    count = min(round(len(rows) * TASK_SHARE), MAX_TASK_IMAGES)
    return order[count:], order[:count]


def load(folder: Path) -> CopyDet:
    """The trained descriptor."""
    from sidepipe.features.copydet import CopyDet

    return CopyDet(str(folder))


def load_encoder(inputs: Mapping[str, Path], own: Encoder) -> Encoder:
    """The descriptor where it is among a stage's inputs, else the encoder of its settings."""
    descriptor = inputs.get("descriptor")
    return load(descriptor) if descriptor else own


def load_rows(folder: Path) -> Int64[np.ndarray, "n"]:
    """Indices in the data's array of all images of its training and validation."""
    return np.load(folder / "rows.npy")
