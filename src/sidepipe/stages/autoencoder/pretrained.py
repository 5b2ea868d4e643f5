"""Stage `autoencoder` that takes a checkpoint trained elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sidepipe.base.files import sha256_of
from sidepipe.base.settings import require
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.autoencoder.stage import Autoencoder

# The standard deviation of codes that a noise schedule expects is 1.
LOWEST, HIGHEST = 0.5, 2.0


@dataclass(frozen=True, kw_only=True)
class PretrainedAutoencoder(Autoencoder):
    """An autoencoder of others, as it is.

    path: a folder written by its `save_pretrained`, such as `vae/` of a pipeline. It must not be
    trained on the training images alone, or held-out images are no control.
    """

    path: str

    @property
    def _folder(self) -> Path:
        return Path(self.path).expanduser()

    def unused(self) -> tuple[str, ...]:
        return ("train_partitions", "subset_seed")

    def config(self) -> Mapping[str, Any]:
        from sidepipe.models import autoencoders

        remedy = "autoencoder.path must name a folder written by save_pretrained, such as vae/"
        return autoencoders.check(self._folder, remedy)

    def source_changed(self, summary: Mapping[str, Any], runtime: Runtime) -> str | None:
        if not self._folder.is_dir() or self._fingerprint() == summary["files"]:
            return None  # a finished artifact does not need the checkpoint
        return (
            f"the autoencoder {self._folder} changed since this artifact was made, and results "
            "would be of the old one; remedy: restore it, or delete the artifact's folder"
        )

    def _fingerprint(self) -> dict[str, str]:
        files = sorted(path for path in self._folder.iterdir() if path.is_file())
        return {path.name: sha256_of(path) for path in files}

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.models import autoencoders

        vae = autoencoders.read(self._folder)
        scale = vae.config["scaling_factor"]
        codes = self._encode(job, vae)
        deviation = scale * float(codes.std(dtype=np.float64))
        require(
            LOWEST <= deviation <= HIGHEST,
            "the standard deviation of codes times scaling_factor",
            f"in [{LOWEST}, {HIGHEST}], near the noise of 1",
            round(deviation, 4),
            f"set scaling_factor in {self._folder / 'config.json'} to {scale / deviation:.4g}",
        )
        self._save(job.folder, vae, codes, scale)
        return {"scaling_factor": scale, "files": self._fingerprint()}
