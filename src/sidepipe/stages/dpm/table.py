"""Stage `dpm` that trains a model of the rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sidepipe.base.settings import build, require, tried
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.checkpoint import denoiser_of, save_parts
from sidepipe.models.families import ENCODING
from sidepipe.stages.data.stage import load as load_rows
from sidepipe.stages.data.stage import load_encoding, load_table
from sidepipe.stages.dpm.trained import TrainDPM

if TYPE_CHECKING:
    from sidepipe.stages.dpm.module import DenoisingModule


@dataclass(frozen=True, kw_only=True)
class TrainTableDPM(TrainDPM):
    """A network of vectors trained on the encoded rows of the subset.

    unet: a partial config of the network; `in_channels` follows from the columns. augment: how as
    many rows as the subset has are made from it; the model is trained on both.
    """

    of_rows: ClassVar[bool] = True
    augment: Literal["none", "tabcutmix", "tabcutmix_plus", "mixup", "smote"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.random_flip, "dpm.random_flip", "false for rows", True)
        require(self.random_shift == 0, "dpm.random_shift", "0 for rows", self.random_shift)
        require(self.ambient_t is None, "dpm.ambient_t", "null for rows", self.ambient_t)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        import torch

        self._check_schedule()
        with torch.device("meta"):
            tried("dpm.unet", {**self.unet, "_partial_": False, "in_channels": 1})

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L

        from sidepipe.models.rows import rows_of
        from sidepipe.models.tables import RowEncoding
        from sidepipe.stages.dpm.kept import complete

        rows, encoding = load_rows(job.inputs["data"]), load_encoding(job.inputs["data"])
        train, heldout, about = self._write_split(job)
        L.seed_everything(self.seed, verbose=False)
        network = build(self.unet)(in_channels=encoding.width)
        scheduler = build(self.noise_schedule)
        parts = {"unet": network, ENCODING: RowEncoding(encoding), "scheduler": scheduler}
        denoiser = denoiser_of(parts)
        settings = {"decode": denoiser.decode, **self.shaping}
        module = self._module(network.train(), scheduler, job.folder, **settings)
        x_0 = rows_of(denoiser, rows, "cpu")
        fitted = self._fitted(job, module, [x_0], (train, heldout))
        save_parts(parts, job.folder / "model")
        complete(job.folder)
        return {**about, "num_parameters": network.num_parameters(), **fitted}

    def _averaged(
        self,
        job: Job,
        module: DenoisingModule,
        arrays: Sequence[np.ndarray],
        rows: np.ndarray,
        parts: Sequence[np.ndarray],
    ) -> dict[str, float]:
        if self.augment == "none":
            return super()._averaged(job, module, arrays, rows, parts)
        from sidepipe.stages.dpm.augment import augmented

        data, (x_0,) = job.inputs["data"], arrays
        frame = load_table(data).iloc[rows]
        made = augmented(self.augment, frame, load_encoding(data), self.seed)
        every = np.concatenate([x_0, made[:, :, None, None]])
        rows = np.concatenate([rows, len(x_0) + np.arange(len(made))])
        return super()._averaged(job, module, [every], rows, parts)
