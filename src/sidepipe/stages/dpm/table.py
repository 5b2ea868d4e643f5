"""Stage `dpm` that trains a model of the rows of a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sidepipe.base.settings import build, require, tried
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.checkpoint import denoiser_of, save_parts
from sidepipe.models.families import ENCODING
from sidepipe.stages.data.stage import load as load_rows
from sidepipe.stages.data.stage import load_encoding
from sidepipe.stages.dpm.trained import TrainDPM

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainTableDPM(TrainDPM):
    """A network of vectors trained on the encoded rows of the subset.

    unet: a partial config of the network; `in_channels` follows from the columns.
    """

    of_rows: ClassVar[bool] = True

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
        network, scheduler = (
            build(self.unet)(in_channels=encoding.width),
            build(self.noise_schedule),
        )
        parts = {"unet": network, ENCODING: RowEncoding(encoding), "scheduler": scheduler}
        denoiser = denoiser_of(parts)
        settings = {"decode": denoiser.decode, **self.shaping}
        module = self._module(network.train(), scheduler, job.folder, **settings)
        fitted = self._fitted(job, module, [rows_of(denoiser, rows, "cpu")], (train, heldout))
        save_parts(parts, job.folder / "model")
        complete(job.folder)
        return {**about, "num_parameters": network.num_parameters(), **fitted}
