"""Stage `dpm` without a model: training and held-out images, for images of another tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sidepipe.base.settings import require
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.data.stage import Data
from sidepipe.stages.dpm.stage import DPM


@dataclass(frozen=True, kw_only=True)
class NoModel(DPM):
    """The split of the data alone; every stage that needs a network refuses it."""

    accelerated: ClassVar[bool] = False
    parallel: ClassVar[bool] = False
    checkpoints: ClassVar[str] = ""

    def require_network(self, stage: str) -> None:
        raise ValueError(
            f"{stage} needs a model, and dpm=none has none; remedy: dpm=pretrained "
            "dpm.path=/my/checkpoint, or images of another tool: attacks=single extract=images "
            "extract.surrogate.folder=/my/generated"
        )

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        data = upstream["data"]
        assert isinstance(data, Data)
        remedy = "data=imagefolder data.source.folder=/my/images"
        require(not data.is_empty, "data", "images to compare with", "none", remedy)

    def scheduler(self) -> Any | None:
        return None

    def _take_all(self, partitions: str) -> None:
        raise ValueError(
            f"dpm.train_partitions must name the partitions that the images were learned from, of "
            f"{partitions}, got null; remedy: 'dpm.train_partitions=[train]'"
        )

    def run(self, job: Job) -> dict[str, Any]:
        return self._write_split(job)[2]
