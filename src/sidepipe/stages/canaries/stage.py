"""Stage `canaries`: what leaks of images that were mixed into training at known repeats.

A canary is extracted where at least one image is a copy of it: closer than nearly all real unseen
images are to any training image. Its exposure is its rank among candidates that training never saw.
Controls, which are held out, show both without any training.
"""

from __future__ import annotations

import json
import logging
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidepipe.base.files import write_json
from sidepipe.base.settings import Precision, build, require
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.memorization.thresholds import usable_rates
from sidepipe.stages.data.stage import Data, load_canaries
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.stage import DPM, load_subset

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.stages.mitigate.judging import Copies

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CanaryAudit(Stage):
    """Extraction and exposure of the canaries of data.

    features: an encoder. false_positive_rate: the share of real unseen images that would be copies.
    num_noises: noise levels at which losses are measured.
    """

    name: ClassVar[str] = "canaries"
    needed_by: ClassVar[str] = "canaries=triggers, of models with captions, or canaries=images"
    reported: ClassVar[bool] = True
    kind: ClassVar[str]
    features: dict[str, Any]
    false_positive_rate: float
    num_noises: int
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        share = self.false_positive_rate
        require(0 < share < 1, "canaries.false_positive_rate", "in (0, 1)", share)
        require(self.num_noises >= 1, "canaries.num_noises", ">= 1", self.num_noises)

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        remedy = "mix some into training, as 'data.canaries={repeats: [1, 4, 16, 64]}'"
        require(data.canaries is not None, "data.canaries", "set, for canaries", None, remedy)
        captioned = "triggers" if data.has_captions else "images"
        remedy = f"choose canaries={captioned}"
        require(self.kind == captioned, "canaries", "that of the data", self.kind, remedy)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        build(self.features).check()

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        usable_rates([self.false_positive_rate], len(dpm.split(data, runtime)[1]))

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.memorization.canaries import by_repeats, exposure, leaks_from

        table, copies = load_canaries(job.inputs["data"]), self._copies(job)
        table, about = self._extracted(job, table, copies)
        losses = self._losses(job, table)
        found = [exposure(own, others) for own, others in losses]
        ranks, bits = (list(column) for column in zip(*found, strict=True))
        table = table.assign(rank=ranks, exposure=bits)
        rows = by_repeats(table)
        table.to_csv(job.folder / "canaries.csv")
        results = {
            "kind": self.kind,
            "num_candidates": 1 + min(len(others) for _, others in losses),
            "threshold": copies.threshold,
            "false_positive_rate": self.false_positive_rate,
            "epochs": Artifact(job.inputs["dpm"]).summary.get("epochs"),
            "by_repeats": rows,
            "leaks_from": leaks_from(rows),
            **about,
        }
        write_json(job.folder / "results.json", results)
        shutil.rmtree(job.folder / "parts", ignore_errors=True)
        for row in rows:
            of = row["extracted"]
            log.info("repeats %d: %d of %d are extracted", row["repeats"], of["count"], of["of"])
        return {"leaks_from": results["leaks_from"]}

    def _copies(self, job: Job) -> Copies:
        """The rule for copies, whose threshold is that of real unseen images."""
        from sidepipe.memorization.real import encode_rows
        from sidepipe.stages.detect.replays import training_truth
        from sidepipe.stages.mitigate.judging import Copies

        encoder, device = build(self.features), job.runtime.torch_device()
        images, (train, unseen) = load_images(job.inputs["data"]), load_subset(job.inputs["dpm"])
        truth = training_truth(
            encoder,
            images,
            train,
            unseen,
            rate=self.false_positive_rate,
            threshold=None,
            device=device,
        )
        features = encode_rows(encoder, images, train, device)
        return Copies(images, features, encoder, truth.threshold, 1.0, device)

    @abstractmethod
    def _extracted(
        self, job: Job, table: pd.DataFrame, copies: Copies
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """The table with the share of images that are copies of each canary, and for the results.

        These have num_images, per canary, and evaluations of the network.
        """

    @abstractmethod
    def _losses(self, job: Job, table: pd.DataFrame) -> list[tuple[float, np.ndarray]]:
        """The denoising loss of each canary, and those of its candidates."""


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_table(folder: Path) -> pd.DataFrame:
    """A row per canary, by its row of the data: repeats, trigger, share, rank and exposure."""
    import pandas as pd

    return pd.read_csv(folder / "canaries.csv", index_col="index", keep_default_na=False)
