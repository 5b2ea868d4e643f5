"""Stage `shadow`: a model of the same architecture, trained on samples of the model under attack.

Its training images are known to the attacker, so an attack on it shows what hits look like (shadow
models: Shokri et al., arXiv 1610.05820).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from sidepipe.base.settings import require
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.engine.trained import Training
from sidepipe.models.checkpoint import OPTION
from sidepipe.models.families import require_family
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.dpm.stage import DPM
from sidepipe.stages.dpm.stage import load as load_dpm
from sidepipe.stages.dpm.trained import TrainDPM
from sidepipe.stages.generate.stage import Generate
from sidepipe.stages.generate.stage import load as load_synthetic

if TYPE_CHECKING:
    from sidepipe.stages.dpm.module import DenoisingModule

log = logging.getLogger(__name__)

UNSEEN = 20  # samples that it is not trained on: they set the threshold of a hit


@dataclass(frozen=True, kw_only=True)
class Shadow(Training):
    """An unconditional model trained from scratch on the first samples of `generate`.

    num_images: samples that it is trained on; the others are its held-out images. The network and
    the noise schedule are those of the model under attack. ema_decay, ema_start_step,
    preview_every_steps: as for dpm.
    """

    name: ClassVar[str] = "shadow"
    needed_by: ClassVar[str] = "verdict=shadow"
    checkpoints: ClassVar[str] = "model/**/*"
    pictures: ClassVar[str] = "previews/*.png"
    num_images: int
    ema_decay: float
    ema_start_step: int
    random_flip: bool
    preview_every_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        every, start = self.preview_every_steps, self.ema_start_step
        require(self.num_images >= 2, "shadow.num_images", ">= 2", self.num_images)
        require(every >= 1, "shadow.preview_every_steps", ">= 1", every)
        rule = f"in [0, shadow.max_steps = {self.max_steps})"
        require(0 <= start < self.max_steps, "shadow.ema_start_step", rule, start)
        require(0 <= self.ema_decay < 1, "shadow.ema_decay", "in [0, 1)", self.ema_decay)

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
            _require_plain(require_family(folder, OPTION).name == "image", dpm.scheduler())

    def run(self, job: Job) -> dict[str, Any]:
        from diffusers import DDPMPipeline

        from sidepipe.engine.training import fit, validation_batches, weights
        from sidepipe.stages.dpm.module import EMA

        images, unseen = load_images(job.inputs["generate"], self.num_images)
        module, scheduler = self._module(job)
        unet: Any = module.unet
        log.info("training %.2f M parameters on %d samples", *(_millions(unet), len(images)))
        metrics = fit(
            self,
            module,
            [images],
            [validation_batches([some[:512]]) for some in (images, unseen)],
            job,
            validate_every_steps=self.preview_every_steps,
            callbacks=[EMA(self.ema_decay, self.ema_start_step)],
        )
        module.load_state_dict(weights(job.folder))
        DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(job.folder / "model")
        return {"num_train_images": len(images), "num_heldout_images": len(unseen), **metrics}

    def _module(self, job: Job) -> tuple[DenoisingModule, Any]:
        """The network of the model under attack with new weights, and its noise schedule."""
        import lightning as L
        from diffusers import UNet2DModel

        from sidepipe.models.schedules import clip_range
        from sidepipe.stages.dpm.module import DenoisingModule

        parts = load_dpm(job.inputs["dpm"])
        _require_plain(set(parts) == {"unet", "scheduler"}, parts["scheduler"])
        seed, scheduler = self._own_seed, parts["scheduler"]
        L.seed_everything(seed, verbose=False)
        unet: Any = UNet2DModel.from_config(parts["unet"].config)
        size, channels = unet.config["sample_size"], unet.config["in_channels"]
        module = DenoisingModule(
            unet,
            scheduler.alphas_cumprod,
            scheduler.config["prediction_type"],
            lr=self.lr,
            weight_decay=self.weight_decay,
            lr_warmup_steps=self.lr_warmup_steps,
            random_flip=self.random_flip,
            seed=seed,
            preview_folder=job.folder / "previews",
            image_shape=(channels, size, size),
            clip_range=clip_range(scheduler),
        )
        return module, scheduler


def _require_plain(of_images: bool, scheduler: Any) -> None:
    """Raises ValueError for a model that the loss of `dpm` does not train."""
    kind = type(scheduler).__name__
    fits = of_images and kind == "DDPMScheduler"
    rule, remedy = "a model of images with discrete timesteps", "leave out verdict=shadow"
    require(fits, "dpm", rule, kind if of_images else "a latent model", remedy)


def _millions(unet: Any) -> float:
    return unet.num_parameters() / 1e6


def load_images(
    generate: Path, num_images: int
) -> tuple[UInt8[np.ndarray, "n h w c"], UInt8[np.ndarray, "m h w c"]]:
    """The samples of `generate` that a shadow model is trained on, and the others."""
    images = load_synthetic(generate)
    return images[:num_images], images[num_images:]


def load_split(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The images that a finished shadow model is trained on, and its held-out ones."""
    made = Artifact(folder)
    return load_images(made.inputs["generate"].folder, made.summary["num_train_images"])
