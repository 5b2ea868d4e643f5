"""The audits of canaries: by their triggers, and of images without captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidepipe.base.settings import require
from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.text.words import random_triggers
from sidepipe.stages.canaries.stage import CanaryAudit
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.stage import DPM, load_subset
from sidepipe.stages.dpm.text import load_placed_model
from sidepipe.stages.generate.stage import load as load_generated
from sidepipe.stages.generate.stage import load_denoiser

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.models.text.model import TextModel
    from sidepipe.stages.mitigate.judging import Copies

IMAGES, LOSSES = 800_000, 900_000  # streams of noise that no prompt of detect or search has


@dataclass(frozen=True, kw_only=True)
class TriggeredCanaries(CanaryAudit):
    """Canaries with triggers: images of the true trigger, and its rank among random strings.

    num_generations: images per trigger. num_candidates: random strings of the triggers' words.
    """

    kind: ClassVar[str] = "triggers"
    num_generations: int
    num_candidates: int
    num_inference_steps: int
    guidance_scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_generations", "num_candidates"):
            require(getattr(self, name) >= 1, f"canaries.{name}", ">= 1", getattr(self, name))

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check_parts(upstream, runtime)
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        dpm.check_timesteps(self.name, self.num_inference_steps)

    def _extracted(
        self, job: Job, table: pd.DataFrame, copies: Copies
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        from sidepipe.models.text.memory import images_at_once
        from sidepipe.models.text.trajectory import prompt_noise, sample

        model = load_placed_model(job.inputs["dpm"], self.precision, job.runtime)
        triggers, each, e_0 = table["trigger"].tolist(), self.num_generations, model.encode([""])

        def make(some: range) -> Arrays:
            x_T = prompt_noise(model, self.seed, [IMAGES + i for i in some], each)
            e = model.encode([triggers[i] for i in some]).repeat_interleave(each, 0)
            made = sample(model, x_T, e, e_0, self.guidance_scale, self.num_inference_steps)
            return {"images": made.unflatten(0, (len(some), each)).cpu().numpy()}

        size = max(1, images_at_once(model, job.runtime.sampling_batch_size) // each)
        folder, every = job.folder / "parts" / "images", job.runtime.progress_seconds
        images = in_parts(folder, len(table), size, make, "trigger", every)["images"]
        found = copies.of(images, table.index.to_numpy(np.int64))
        spent = len(table) * each * 2 * self.num_inference_steps
        return table.assign(share=found.mean(axis=1)), {"num_images": each, "evaluations": spent}

    def _losses(self, job: Job, table: pd.DataFrame) -> list[tuple[float, np.ndarray]]:
        from sidepipe.diffusion.noise import generator

        model = load_placed_model(job.inputs["dpm"], self.precision, job.runtime)
        data, known = load_images(job.inputs["data"]), table["trigger"].tolist()
        words = sorted({word for trigger in known for word in trigger.split()})
        rows, length = table.index.to_list(), len(known[0].split())

        def measure(some: range) -> Arrays:
            losses = []
            for i in some:
                rng = generator(self.seed, "prompts", (LOSSES + i) * 1_000_000)
                others = random_triggers(words, length, known, self.num_candidates, rng)
                losses.append(self._losses_of(model, data[rows[i]], [known[i], *others], rng, job))
            return {"losses": np.stack(losses)}

        folder, every = job.folder / "parts" / "losses", job.runtime.progress_seconds
        losses = in_parts(folder, len(table), 1, measure, "pair", every)["losses"]
        return [(float(row[0]), row[1:]) for row in losses]

    def _losses_of(
        self,
        model: TextModel,
        image: np.ndarray,
        prompts: Sequence[str],
        rng: np.random.Generator,
        job: Job,
    ) -> np.ndarray:
        """The image's mean loss with each prompt, at the same timesteps and noise for all."""
        import torch

        from sidepipe.models.text.memory import images_at_once
        from sidepipe.stages.mitigate.adversary import denoising_errors, noise_of

        size = images_at_once(model, job.runtime.sampling_batch_size)
        noises = [noise_of([rng], model) for _ in range(self.num_noises)]
        x_0 = model.to_latents(torch.from_numpy(np.array(image[None])))
        losses = []
        for start in range(0, len(prompts), size):
            e = model.encode(prompts[start : start + size])
            with torch.no_grad():
                each = [
                    denoising_errors(
                        model,
                        x_0.expand(len(e), -1, -1, -1),
                        e,
                        t.expand(len(e)),
                        eps.expand(len(e), -1, -1, -1),
                    )
                    for t, eps in noises
                ]
            losses.append(torch.stack(each).double().mean(0).cpu().numpy())
        return np.concatenate(losses)


@dataclass(frozen=True, kw_only=True)
class ImageCanaries(CanaryAudit):
    """Canaries without captions: among the synthetic images, and their loss among unseen images."""

    kind: ClassVar[str] = "images"

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm", "generate")

    def _extracted(
        self, job: Job, table: pd.DataFrame, copies: Copies
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        images = load_generated(job.inputs["generate"])
        rows = table.index.to_numpy(np.int64)
        share = copies.share_of_each(images, rows)
        return table.assign(share=share), {"num_images": len(images), "evaluations": None}

    def _losses(self, job: Job, table: pd.DataFrame) -> list[tuple[float, np.ndarray]]:
        from sidepipe.models.losses import image_losses

        data, rows = load_images(job.inputs["data"]), table.index.to_numpy(np.int64)
        others = np.setdiff1d(load_subset(job.inputs["dpm"])[1], rows)
        denoiser = load_denoiser(job.inputs["dpm"], self.precision)
        denoiser = denoiser.to(job.runtime.torch_device())
        images = data[np.concatenate([rows, others])]
        losses = image_losses(denoiser, images, draws=self.num_noises, seed=self.seed)
        return [(float(own), losses[len(rows) :]) for own in losses[: len(rows)]]
