"""Stage `generate`: N_syn plain samples of the model, the attacker's only data (SIDE, step 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sidepipe.base.images import Images, save_grid
from sidepipe.base.settings import PRECISIONS, Precision, require
from sidepipe.base.tables import write_csv
from sidepipe.engine.shards import load_first, load_shards, load_steps
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.models.checkpoint import denoiser_of
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.dpm.stage import DPM, load_null_class
from sidepipe.stages.dpm.stage import load as load_dpm
from sidepipe.stages.dpm.text import load_text_model
from sidepipe.stages.dpm.trained import TrainDPM, TrainedDPM
from sidepipe.stages.generate.refine import NoRefine, Refine

if TYPE_CHECKING:
    from sidepipe.diffusion.denoiser import Denoiser
    from sidepipe.diffusion.timesteps import Guidance
    from sidepipe.engine.image_sampler import ImageSampler

SYNTHETIC = "synthetic.csv"  # the rows of a model of a table, decoded
# Captions of the data; other values of `prompts` name a file.
OF_DATA = ("train", "heldout")
WITHOUT_CLASSES = "a model without classes, or with a null class, for surrogates and audits"


@dataclass(frozen=True, kw_only=True)
class Sampling(Stage):
    """Settings that every sampling stage has.

    num_images: the number of samples. sampler: "ddim", or of second order, for few steps,
    "dpm_solver_pp" or "heun". num_inference_steps: steps per image; each is one evaluation of the
    network, with "heun" two but for the last. eta: 0 DDIM, 1 ancestral.
    timestep_spacing: as in diffusers, None for that of the model's scheduler. prompts: for a
    text-conditional model, None for the empty prompt, "train" or "heldout" for captions of the
    data, or a file under `runtime.data_root`; each image gets a random one.
    condition_guidance_scale: s of classifier-free guidance by prompts or classes; 1 for the prompt
    or class alone, at half the cost, 0 for the null class alone. precision: "true" of
    16 bits is for text-conditional models. shard_size: starts per file. refine: the strategy
    that moves finished samples toward a mode of the model, which reveals memorized images; some
    give several candidates per sample, so that num_images counts starts. classes: numbers of the
    classes of a class-conditional model, which the images get in turn; None for all classes.
    """

    parallel: ClassVar[bool] = True
    pictures: ClassVar[str] = "preview.png"
    num_images: int
    sampler: Literal["ddim", "dpm_solver_pp", "heun"]
    num_inference_steps: int
    eta: float
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None
    refine: Refine = NoRefine()
    prompts: str | None
    condition_guidance_scale: float
    precision: Precision
    shard_size: int
    seed: int
    classes: list | None = None

    def __post_init__(self) -> None:
        for field in ("num_images", "num_inference_steps", "shard_size"):
            require(getattr(self, field) >= 1, f"{self.name}.{field}", ">= 1", getattr(self, field))
        require(0 <= self.eta <= 1, f"{self.name}.eta", "in [0, 1]", self.eta)
        if self.sampler != "ddim":
            require(self.eta == 0, f"{self.name}.eta", f"0 for {self.sampler}", self.eta)
        self.refine.check(f"{self.name}.refine")
        scale = self.condition_guidance_scale
        require(scale >= 0, f"{self.name}.condition_guidance_scale", ">= 0", scale)
        require(0 <= self.seed < 2**32, f"{self.name}.seed", "in [0, 2**32)", self.seed)

    @property
    def evaluations(self) -> int:
        """Evaluations of the network per plain image, refinement included, from a little signal."""
        steps = self.num_inference_steps
        return (2 * steps - 1 if self.sampler == "heun" else steps) + self.refine.evaluations

    def inputs(self) -> tuple[str, ...]:
        return ("dpm", "data") if self.prompts in OF_DATA else ("dpm",)

    def unused(self) -> tuple[str, ...]:
        unused = ()
        if not self.refine.chains:
            unused = (*unused, "refine")
        if self.prompts is None:
            unused = (*unused, "prompts")
        if self.prompts is None and self.condition_guidance_scale == 1:
            unused = (*unused, "condition_guidance_scale")
        return unused if self.classes is not None else (*unused, "classes")

    def check_needed(self, upstream: Mapping[str, Stage]) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        dpm.require_network(self.name)
        if self.classes is not None and (found := dpm.num_classes()) is not None:
            self._check_classes(found)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        if isinstance(dpm, TrainDPM | PretrainedDPM):
            remedy = "this model takes no text"
            require(self.prompts is None, f"{self.name}.prompts", "null", self.prompts, remedy)
            known, rule = PRECISIONS, "32-true or mixed"
            require(self.precision in known, f"{self.name}.precision", rule, self.precision, remedy)
        if isinstance(dpm, TrainedDPM):
            steps = dpm.noise_schedule["num_train_timesteps"]
            require(
                self.num_inference_steps <= steps,
                f"{self.name}.num_inference_steps",
                f"<= diffusion.num_train_timesteps = {steps}",
                self.num_inference_steps,
            )
            most = max([0, *self.refine.timesteps])
            name, rule = f"{self.name}.refine", f"< diffusion.num_train_timesteps = {steps}"
            require(most < steps, f"the timesteps of {name}", rule, most)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm, name = upstream["dpm"], self.name
        assert isinstance(dpm, DPM)
        if "data" in upstream:
            dpm.check_images(upstream["data"])
        if dpm.scheduler() is not None:  # it is on this machine
            self._check_classes(dpm.num_classes())
            if isinstance(dpm, TrainDPM | PretrainedDPM):
                self._check_scale(dpm)
        dpm.check_timesteps(
            name,
            self.num_inference_steps,
            self.timestep_spacing,
            {f"{name}.refine": max(levels)} if (levels := self.refine.timesteps) else {},
        )

    def _check_classes(self, num_classes: int | None) -> None:
        name, classes = f"{self.name}.classes", self.classes
        rule = "null, as the model has no classes"
        require(num_classes is not None or classes is None, name, rule, classes)
        every = range(num_classes or 0)
        known = classes is None or (classes and all(number in every for number in classes))
        require(bool(known), name, f"null or numbers in [0, {num_classes})", classes)

    def _check_scale(self, dpm: DPM) -> None:
        name, scale = f"{self.name}.condition_guidance_scale", self.condition_guidance_scale
        has_classes = dpm.num_classes() is not None
        remedy = "set dpm.null_class if one of its classes stands for none" if has_classes else ""
        kind = "a null class" if has_classes else "prompts and classes"
        fits = scale == 1 or dpm.has_null_class()
        require(fits, name, f"1 for a model without {kind}", scale, remedy)

    def num_bytes(self, upstream: Mapping[str, Stage]) -> int:
        data: Any = upstream["data"]
        return self.num_images * self.refine.candidates * data.size**2 * data.channels

    def sample(
        self,
        job: Job,
        surrogate: Any = None,
        guidance: Guidance | None = None,
        targets: np.ndarray | None = None,
        first: int = 0,
    ) -> dict[str, Any]:
        """Writes the images' shards; returns the evaluations spent.

        targets: the labels of a surrogate; None where the condition, if any, is the model's own.
        first: the number of images that an earlier call made and counted.
        """
        from sidepipe.engine.sampling import sample_to_shards

        prompts = None
        if self.prompts is not None:
            prompts, targets = self._draw_prompts(job, self.prompts)
        by_class, scale = surrogate is None or targets is None, self.condition_guidance_scale
        denoiser = load_denoiser(
            job.inputs["dpm"], self.precision, prompts, scale, by_class=by_class
        )
        self._check_classes(denoiser.num_classes)
        if denoiser.num_classes is not None and by_class:
            targets = np.resize(self.classes or denoiser.classes, self.num_images)
            np.save(job.folder / "classes.npy", targets)
        sampler = self._sampler(denoiser, surrogate, guidance)
        sample_to_shards(
            sampler,
            job.folder,
            self.num_images,
            self.shard_size,
            self.precision,
            job.runtime,
            targets,
        )
        save_grid(job.folder / "preview.png", load_first(job.folder, 64))
        if (encoding := getattr(denoiser, "encoding", None)) is not None:
            frame = encoding.decode(load(job.folder))
            write_csv(job.folder / SYNTHETIC, frame, encoding.schema)
        return self._spent(job.folder, sampler, first)

    def _sampler(
        self, denoiser: Denoiser, surrogate: Any, guidance: Guidance | None
    ) -> ImageSampler:
        from sidepipe.engine.image_sampler import ImageSampler

        return ImageSampler(
            denoiser,
            seed=self.seed,
            stream=self.name,
            sampler=self.sampler,
            timesteps=denoiser.timesteps(self.num_inference_steps, self.timestep_spacing),
            eta=self.eta,
            surrogate=surrogate,
            guidance=guidance,
            chains=self.refine.chains,
            kept=self.refine.per_chain,
            settle=getattr(self.refine, "settle", None),
        )

    def _spent(self, folder: Path, sampler: ImageSampler, first: int) -> dict[str, Any]:
        """The evaluations of the starts from `first` on."""
        count, guided = self.num_images - first, len(sampler.guided_timesteps)
        plain = len(sampler.evaluated) - (guided if sampler.label_alone else 0)
        refining, settles = count * self.refine.evaluations, sampler.settle is not None
        taken = int(load_steps(folder)[first:].sum()) if settles else refining
        each = sampler.denoiser.evaluations
        saved = {"evaluations_saved": (refining - taken) * each} if settles else {}
        return {
            "num_images": count,
            "unet_forwards": (count * plain + taken) * each,
            "surrogate_gradients": count * guided,
            **({"candidates": sampler.candidates} if sampler.candidates > 1 else {}),
            **saved,
        }

    def _draw_prompts(self, job: Job, source: str) -> tuple[list[str], np.ndarray]:
        """The prompts, and the number of each image's prompt; prompts.csv has the text."""
        import pandas as pd

        from sidepipe.stages.generate.prompts import draw_prompts, prompts_of

        prompts = prompts_of(source, job.inputs, job.runtime.data_root)
        numbers = draw_prompts(len(prompts), self.num_images, self.seed)
        of_each = pd.DataFrame({"prompt": [prompts[i] for i in numbers]})
        of_each.to_csv(job.folder / "prompts.csv", index_label="image")
        return prompts, numbers


@dataclass(frozen=True, kw_only=True)
class Generate(Sampling):
    """N_syn plain samples of the model."""

    name: ClassVar[str] = "generate"
    version: ClassVar[int] = 3
    needed_by: ClassVar[str] = "evaluate.truth=train, or extract.surrogate=posterior"

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check(upstream, runtime)
        self.refine.require_single("generate.refine", "the attacker's images are one per sample")

    def run(self, job: Job) -> dict[str, Any]:
        return self.sample(job)


def load(folder: Path) -> Images:
    """The synthetic images, in index order."""
    return load_shards(folder)


def load_denoiser(
    dpm: Path,
    precision: Precision,
    prompts: Sequence[str] | None = None,
    condition_guidance_scale: float = 1.0,
    *,
    by_class: bool = False,
    part: str = "model",
) -> Denoiser:
    """The model of a dpm artifact as a denoiser for samplers, on the CPU.

    prompts: the prompts of a text-conditional model, None for the empty one. by_class: whether each
    image gets a class; else the null class, and ValueError for a model of classes without one.
    part: "base" for the model that it was fine-tuned from.
    """
    from sidepipe.models.text.denoiser import PromptedDenoiser

    model = load_text_model(dpm, precision, part)
    if model is not None:
        return PromptedDenoiser(model, prompts, condition_guidance_scale)
    denoiser = denoiser_of(load_dpm(dpm, part))
    if (found := denoiser.num_classes) is not None:
        if (null_class := load_null_class(dpm)) is not None:
            denoiser.null_class = null_class
        known = by_class or denoiser.null_class is not None
        require(known, "dpm", WITHOUT_CLASSES, f"{found} classes", "surrogate=none")
        denoiser.guide_by_class(condition_guidance_scale if by_class else 0.0)
    return denoiser
