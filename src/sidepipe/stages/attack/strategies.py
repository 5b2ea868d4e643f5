"""The surrogates that an attack can choose, each with its settings, its inputs and its cost.

A surrogate stands in for the missing condition: its gradient of log p(label | x_t), or its own
prediction of eps, guides sampling. The base of a fine-tuned model has no labels: sampling moves
away from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sidepipe.base.image_reading import Entry
from sidepipe.base.images import Images
from sidepipe.base.settings import Precision, require
from sidepipe.engine.kinds import check_kind
from sidepipe.engine.stage import Stage
from sidepipe.models.rows import channels_first, rows_of
from sidepipe.stages.attack.guidance import AttackGuidance
from sidepipe.stages.attack.others import (
    FOLDER,
    content_of,
    entries_in,
    require_sizes,
    write_images,
)
from sidepipe.stages.classifier.stage import load as load_classifier
from sidepipe.stages.dpm.stage import BASE, DPM
from sidepipe.stages.generate.stage import load_denoiser
from sidepipe.stages.label.stage import load as load_labels
from sidepipe.stages.lora.stage import Lora, load_training_evaluations
from sidepipe.stages.lora.stage import load as load_lora

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sidepipe.diffusion.denoiser import Denoiser


MIN_IMAGES = 20  # of an attack, for the 5th and 95th percentiles


@dataclass(frozen=True)
class Material:
    """The parts of a surrogate: the attack's inputs, its model on the CPU, and labeled images.

    images, and the artifact (or a round's folder) with their labels, are those that a posterior
    sums over; None for a surrogate without labels. A latent model encodes them on the device.
    """

    inputs: Mapping[str, Path]
    denoiser: Denoiser
    precision: Precision
    images: Images | None
    label: Path | None
    device: str


@dataclass(frozen=True, kw_only=True)
class Surrogate:
    """Base of all surrogates.

    reads: the stages that it is made from, in addition to the model. guides: whether it guides at
    all. has_labels: whether toward labels, or away from another model. samples: whether the model
    samples the images. in_rounds: whether it can follow new labels at once, without training.
    """

    name: str
    reads: ClassVar[tuple[str, ...]] = ("generate", "label")
    guides: ClassVar[bool] = True
    has_labels: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    in_rounds: ClassVar[bool] = False

    def check_guidance(self, guidance: AttackGuidance) -> None:
        """Raises ValueError for guidance that this surrogate does not support."""

    def check(self, upstream: Mapping[str, Stage]) -> None:
        """Raises ValueError or ImportError where it cannot be made from `upstream`."""

    def build(self, material: Material) -> nn.Module:
        """The module that guides, on the CPU: with `grad_log_prob(x_t, t, y)`, or a Denoiser."""
        raise NotImplementedError

    def shaped(self, built: nn.Module, alphas_cumprod: Tensor) -> nn.Module:
        """The module with this surrogate's settings applied."""
        return built

    def summary(
        self, built: nn.Module, material: Material, guided: list[int], seed: int, device: str
    ) -> dict[str, Any]:
        """Its part of the attack's summary; guided: the timesteps, most noise first."""
        return {}

    def _require_only(self, guidance: AttackGuidance, name: str, only: Any, why: str) -> None:
        value, rule = getattr(guidance, name), f"{only!r} where extract.surrogate is {self.name!r}"
        remedy = why if name == "targets" else f"{why}; or extract.surrogate=classifier"
        require(value == only, f"extract.guidance.{name}", rule, value, remedy)


@dataclass(frozen=True, kw_only=True)
class NoSurrogate(Surrogate):
    """Plain sampling: the unconditional baseline."""

    name: Literal["none"] = "none"
    reads: ClassVar[tuple[str, ...]] = ()
    guides: ClassVar[bool] = False
    has_labels: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class OtherImages(Surrogate):
    """Images that another tool made, from a folder: nothing is sampled.

    folder: of images, or a NumPy file. resize: "crop" or "stretch" to the size of the data; None
    where they have it. on_bad_file: "error", or "skip" leaves out files that cannot be read.
    """

    name: Literal["images"] = "images"
    reads: ClassVar[tuple[str, ...]] = ()
    guides: ClassVar[bool] = False
    has_labels: ClassVar[bool] = False
    samples: ClassVar[bool] = False
    folder: str
    resize: Literal["crop", "stretch"] | None = None
    on_bad_file: Literal["error", "skip"] = "error"

    @cached_property
    def entries(self) -> list[Entry]:
        """The images, not yet read; an OSError or ValueError where there are none."""
        return entries_in(self.folder)

    @cached_property
    def content(self) -> str:
        """The SHA-256 of names and content of the files, for the key."""
        return content_of(self.folder) if self.entries else ""

    def check(self, upstream: Mapping[str, Stage]) -> None:
        check_kind(upstream, "images of another tool")
        count = sum(not entry.problem for entry in self.entries)
        require(count >= MIN_IMAGES, FOLDER, f">= {MIN_IMAGES} images", count, "make more images")

    def require_sizes(self, size: int) -> None:
        """Raises ValueError where images must be resized to `size` pixels and `resize` is None."""
        require_sizes(self.entries, size, self.resize)

    def write(self, folder: Path, shape: Sequence[int], shard_size: int) -> dict[str, Any]:
        """Writes the images of the artifact in `folder`; ValueError where files have changed."""
        options = {"resize": self.resize, "on_bad_file": self.on_bad_file}
        summary = write_images(folder, self.entries, shape, shard_size=shard_size, **options)
        unchanged = content_of(self.folder) == self.content
        rule, remedy = "unchanged while the command runs", "run the same command again"
        require(unchanged, FOLDER, rule, f"other files in {self.folder}", remedy)
        return {**summary, "folder": self.folder, "content": self.content}


@dataclass(frozen=True, kw_only=True)
class Classifier(Surrogate):
    """The paper's surrogate: a time-conditioned classifier trained on the labels.

    guide_through: the classifier's input, "x_t", or "pred_x_0" (eps held constant).
    """

    name: Literal["classifier"] = "classifier"
    reads: ClassVar[tuple[str, ...]] = ("generate", "label", "classifier")
    guide_through: Literal["x_t", "pred_x_0"] = "x_t"

    def build(self, material: Material) -> nn.Module:
        from sidepipe.stages.attack.surrogates import ClassifierSurrogate

        return ClassifierSurrogate(load_classifier(material.inputs["classifier"]))

    def shaped(self, built: nn.Module, alphas_cumprod: Tensor) -> nn.Module:
        from sidepipe.diffusion.shaping import ThroughPredX0

        return built if self.guide_through == "x_t" else ThroughPredX0(built, alphas_cumprod)


@dataclass(frozen=True, kw_only=True)
class Posterior(Surrogate):
    """Closed form over the labeled images, without training.

    neighbors: the number of nearest images, of the label and of all, in its sums; None for all.
    """

    name: Literal["posterior"] = "posterior"
    in_rounds: ClassVar[bool] = True
    neighbors: int | None = None

    def __post_init__(self) -> None:
        enough = self.neighbors is None or self.neighbors >= 1
        require(enough, "extract.surrogate.neighbors", ">= 1 or null", self.neighbors)

    def check_guidance(self, guidance: AttackGuidance) -> None:
        measured = guidance.guidance_schedule == "classifier_quality"
        rule = "'constant' or points where extract.surrogate is 'posterior'"
        remedy = "it has no measured quality; or extract.surrogate=classifier"
        name, value = "extract.guidance.guidance_schedule", guidance.guidance_schedule
        require(not measured, name, rule, value, remedy)

    def build(self, material: Material) -> nn.Module:
        import torch

        from sidepipe.diffusion import guidance, nearest

        assert material.images is not None
        assert material.label is not None
        rows = channels_first(rows_of(material.denoiser, material.images, material.device))
        labels = torch.from_numpy(load_labels(material.label))
        alphas_cumprod = material.denoiser.alphas_cumprod
        if self.neighbors is None:
            return guidance.Posterior(rows, labels, alphas_cumprod)
        return nearest.NearestPosterior(rows, labels, alphas_cumprod, self.neighbors)

    def summary(
        self, built: nn.Module, material: Material, guided: list[int], seed: int, device: str
    ) -> dict[str, Any]:
        from sidepipe.stages.attack.surrogates import judge_cut

        if self.neighbors is None or not guided:
            return {}
        cut: Any = built
        full: Any = Posterior().build(material)
        rng = np.random.default_rng(seed)
        return {"cut_error": judge_cut(cut, full, guided, rng, device)}


@dataclass(frozen=True, kw_only=True)
class AdaptedModel(Surrogate):
    """The model itself, adapted to the labels by LoRA: the paper's surrogate for large models."""

    name: Literal["lora"] = "lora"
    reads: ClassVar[tuple[str, ...]] = ("generate", "label", "lora")

    def check_guidance(self, guidance: AttackGuidance) -> None:
        self._require_only(guidance, "guidance_schedule", "constant", "there is no gradient")
        self._require_only(guidance, "max_guidance_norm", None, "there is no gradient")

    def check(self, upstream: Mapping[str, Stage]) -> None:
        check_kind(upstream, "LoRA")
        if isinstance(lora := upstream.get("lora"), Lora):
            lora.check_read(upstream["dpm"])

    def build(self, material: Material) -> nn.Module:
        return load_lora(material.inputs["lora"], material.inputs["dpm"], material.precision)

    def summary(
        self, built: nn.Module, material: Material, guided: list[int], seed: int, device: str
    ) -> dict[str, Any]:
        return {"training_evaluations": load_training_evaluations(material.inputs["lora"])}


@dataclass(frozen=True, kw_only=True)
class BaseModel(Surrogate):
    """The model that the attacked one was fine-tuned from: eps + w (eps - eps_base).

    It leads away from the images that the base already makes, toward those that fine-tuning added
    (FineXtract, Wu et al., arXiv 2410.03039, whose guidance scale is w + 1). A text model's base
    has the empty prompt, as there.
    """

    name: Literal["base"] = "base"
    reads: ClassVar[tuple[str, ...]] = ()
    has_labels: ClassVar[bool] = False

    def check_guidance(self, guidance: AttackGuidance) -> None:
        self._require_only(guidance, "guidance_schedule", "constant", "there is no gradient")
        self._require_only(guidance, "max_guidance_norm", None, "there is no gradient")
        self._require_only(guidance, "targets", "uniform", "there are no labels to aim at")

    def check(self, upstream: Mapping[str, Stage]) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        rule = "another one for a model whose base is not known"
        remedy = "set dpm.base, or fuse a LoRA with dpm.adapter, or choose dpm=finetuned"
        require(dpm.has_base, "extract.surrogate", rule, self.name, remedy)

    def build(self, material: Material) -> nn.Module:
        dpm, precision = material.inputs["dpm"], material.precision
        return load_denoiser(dpm, precision, by_class=True, part=BASE)
