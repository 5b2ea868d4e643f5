"""Stage `shadow`: a model of the same architecture, trained on samples of the model under attack.

Its training images are known to the attacker, so an attack on it shows what hits look like (shadow
models: Shokri et al., arXiv 1610.05820).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sidepipe.base.images import Images
from sidepipe.base.settings import require
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.checkpoint import OPTION, denoiser_of, save_parts
from sidepipe.models.families import ENCODING, require_family
from sidepipe.models.rows import rows_of
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.dpm.stage import DPM
from sidepipe.stages.dpm.stage import load as load_dpm
from sidepipe.stages.dpm.trained import DenoiserTraining, TrainDPM
from sidepipe.stages.generate.stage import Generate
from sidepipe.stages.generate.stage import load as load_synthetic

log = logging.getLogger(__name__)

PLAIN = ("image", "table")  # families whose loss `dpm` has
UNSEEN = 20  # samples that it is not trained on: they set the threshold of a hit


@dataclass(frozen=True, kw_only=True)
class Shadow(DenoiserTraining):
    """An unconditional model trained from scratch on the first samples of `generate`.

    num_images: samples that it is trained on; the others are its held-out images. The network and
    the noise schedule are those of the model under attack.
    """

    name: ClassVar[str] = "shadow"
    needed_by: ClassVar[str] = "verdict=shadow"
    checkpoints: ClassVar[str] = "model/*"
    pictures: ClassVar[str] = "previews/*.png"
    num_images: int

    def __post_init__(self) -> None:
        require(self.num_images >= 2, "shadow.num_images", ">= 2", self.num_images)
        start, rule = self.ema_start_step, f"in [0, shadow.max_steps = {self.max_steps})"
        require(0 <= start < self.max_steps, "shadow.ema_start_step", rule, start)
        super().__post_init__()

    @property
    def _own_seed(self) -> int:
        """Another seed than that of the model under attack, whose initial weights nobody has."""
        return int(np.random.SeedSequence([self.seed, 1]).generate_state(1)[0])

    def inputs(self) -> tuple[str, ...]:
        return ("dpm", "generate")

    def check_model(self, upstream: Mapping[str, Stage]) -> None:
        """Raises ValueError for a model that cannot have a shadow; verdicts alone need one."""
        dpm, generate = upstream["dpm"], upstream["generate"]
        assert isinstance(generate, Generate)
        assert isinstance(dpm, DPM)
        kind, remedy = type(dpm).__name__, "leave out verdict=shadow"
        of_images = isinstance(dpm, TrainDPM | PretrainedDPM)
        require(of_images, "dpm", "an unconditional model of images", kind, remedy)
        classes = dpm.num_classes()
        require(classes is None, "dpm", "a model without classes", f"{classes} classes", remedy)
        most = generate.num_images - UNSEEN
        rule = f"<= {most}, generate.num_images less {UNSEEN} held-out ones"
        require(self.num_images <= most, "shadow.num_images", rule, self.num_images)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        folder = Path(dpm.path).expanduser() if isinstance(dpm, PretrainedDPM) else Path()
        if isinstance(dpm, PretrainedDPM) and folder.is_dir():
            _require_plain(require_family(folder, OPTION).name in PLAIN, dpm.scheduler())

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L

        parts = load_dpm(job.inputs["dpm"])
        plain = "unet" in parts and parts.keys() <= {"unet", "scheduler", ENCODING}
        _require_plain(plain, parts["scheduler"])
        seed, denoiser = self._own_seed, denoiser_of(parts)
        images = rows_of(denoiser, load_synthetic(job.inputs["generate"]), "cpu")
        L.seed_everything(seed, verbose=False)
        unet = type(parts["unet"]).from_config(parts["unet"].config)
        own, scheduler = replace(self, seed=seed), parts["scheduler"]
        module = own._module(unet, scheduler, job.folder, decode=denoiser.decode)
        train, unseen = np.split(np.arange(len(images)), [self.num_images])
        log.info(
            "training %.2f M parameters on %d samples", *(unet.num_parameters() / 1e6, len(train))
        )
        metrics = self._averaged(job, module, [images], train, (train, unseen))
        save_parts({**parts, "unet": unet}, job.folder / "model")
        return {"num_train_images": len(train), "num_heldout_images": len(unseen), **metrics}


def _require_plain(of_images: bool, scheduler: Any) -> None:
    """Raises ValueError for a model that the loss of `dpm` does not train."""
    kind = type(scheduler).__name__
    fits = of_images and kind == "DDPMScheduler"
    rule, remedy = "a model of images or rows, with discrete timesteps", "leave out verdict=shadow"
    require(fits, "dpm", rule, kind if of_images else "a latent model", remedy)


def load_split(folder: Path) -> tuple[Images, Images]:
    """The samples that a finished shadow model is trained on, and its held-out ones."""
    made = Artifact(folder)
    images = load_synthetic(made.inputs["generate"].folder)
    count = made.summary["num_train_images"]
    return images[:count], images[count:]
