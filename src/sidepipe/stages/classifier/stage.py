"""Stage `classifier`: trains p(y | x_t, t) on labeled synthetic images; quality by noise level."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sidepipe.base.files import write_json, write_table
from sidepipe.base.settings import build, require, tried
from sidepipe.base.weights import load_exactly
from sidepipe.engine.kinds import check_kind
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.engine.trained import Training
from sidepipe.models.rows import channels_first, rows_of
from sidepipe.stages.classifier import charts
from sidepipe.stages.generate.stage import load_denoiser
from sidepipe.stages.label.stage import load as load_labels
from sidepipe.stages.label.stage import load_images

if TYPE_CHECKING:
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from torch import nn

    from sidepipe.diffusion.guidance import Posterior

log = logging.getLogger(__name__)

BEST = "best.ckpt"
OF_ROWS = "TimeMLP"  # a network of rows of a table


@dataclass(frozen=True, kw_only=True)
class Classifier(Training):
    """A time-conditioned classifier of surrogate labels.

    network: a partial config; `in_channels` and `num_classes` are added. noised: train on noised
    images, as in SIDE, or on clean ones at t = 0, as in Carlini et al. labels: the target at x_t,
    "hard" for the label of the noised image, as in SIDE, or "posterior" for the probabilities of
    the closed form over all labeled images, whose cost at sampling then does not grow with their
    number. validation_fraction: share of the images for validation. The weights with the lowest
    validation cross-entropy are kept.
    """

    name: ClassVar[str] = "classifier"
    needed_by: ClassVar[str] = "extract.surrogate=classifier"
    checkpoints: ClassVar[str] = "model.safetensors"
    network: dict[str, Any]
    noised: bool
    labels: Literal["hard", "posterior"]
    random_flip: bool
    validation_fraction: float
    validate_every_steps: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            0 < self.validation_fraction <= 0.5,
            "classifier.validation_fraction",
            "in (0, 0.5]",
            self.validation_fraction,
        )
        every = self.validate_every_steps
        require(
            1 <= every <= self.max_steps,
            "classifier.validate_every_steps",
            "in [1, max_steps]",
            every,
        )
        require(
            self.noised or self.labels == "hard",
            "classifier.labels",
            "'hard' where classifier.noised is false",
            self.labels,
            "the closed form is of noised images",
        )

    def inputs(self) -> tuple[str, ...]:
        return ("dpm", "generate", "label")

    def check_needed(self, upstream: Mapping[str, Stage]) -> None:
        if self.network["_target_"].endswith(OF_ROWS):
            check_kind(upstream, f"classifier.network {OF_ROWS}", of_rows=True)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        import torch

        # On "meta", without memory or weights: a refused network fails before any stage runs.
        with torch.device("meta"):
            sizes = {"in_channels": 1, "num_classes": 2}
            tried("classifier.network", {**self.network, "_partial_": False, **sizes})

    def run(self, job: Job) -> dict[str, Any]:
        import torch
        from safetensors.torch import save_file

        from sidepipe.engine.training import as_x_0
        from sidepipe.stages.classifier.module import quality_by_noise_level

        denoiser = load_denoiser(job.inputs["dpm"], "32-true")
        alphas_cumprod, device = denoiser.alphas_cumprod, job.runtime.torch_device()
        require(
            denoiser.has_range or not self.random_flip,
            "classifier.random_flip",
            "false for a latent model",
            True,
            "codes of mirrored images are not mirrored codes",
        )
        images = rows_of(denoiser, load_images(job.inputs["label"], job.inputs["generate"]), device)
        labels = load_labels(job.inputs["label"])
        train, validation = _split(labels, self.validation_fraction, self.seed)
        network = self._new_network(job.folder, denoiser.shape[0], int(labels.max()) + 1)
        log.info(
            "training %.2f M parameters on %d images of %d labels, %d for validation",
            sum(p.numel() for p in network.parameters()) / 1e6,
            *(len(train), labels.max() + 1, len(validation)),
        )
        teacher = self._teacher(images, labels, alphas_cumprod)
        seen, unseen = ([images[rows], labels[rows]] for rows in (train, validation))
        self._train(network, alphas_cumprod, seen, unseen, teacher, job)
        save_file(network.state_dict(), job.folder / "model.safetensors")
        judged = as_x_0(torch.from_numpy(images[validation])).to(device)
        their = torch.from_numpy(labels[validation]).to(device)
        network = load(job.folder).to(device)
        if teacher is not None:
            teacher.to(device)
        rows = quality_by_noise_level(
            network, judged, their, alphas_cumprod.to(device), self.seed, teacher=teacher
        )
        summary = _judge(job.folder, rows, labels[labels >= 0])
        return summary if self.noised else {**summary, "clean": _clean(network, judged, their)}

    def _teacher(
        self, images: np.ndarray, labels: np.ndarray, alphas_cumprod: torch.Tensor
    ) -> Posterior | None:
        """The closed form that the network learns, None where it learns from labels."""
        import torch

        from sidepipe.diffusion.guidance import Posterior

        if self.labels == "hard":
            return None
        return Posterior(channels_first(images), torch.from_numpy(labels), alphas_cumprod)

    def _new_network(self, folder: Path, in_channels: int, num_classes: int) -> nn.Module:
        """A network with seeded weights, described in the folder for `load`."""
        import lightning as L

        L.seed_everything(self.seed, verbose=False)
        arguments = {"in_channels": in_channels, "num_classes": num_classes}
        described = {"network": self.network, "arguments": arguments, "noised": self.noised}
        write_json(folder / "network.json", described)
        return build(self.network)(**arguments)

    def _train(
        self,
        network: nn.Module,
        alphas_cumprod: torch.Tensor,
        seen: list[np.ndarray],
        unseen: list[np.ndarray],
        teacher: Posterior | None,
        job: Job,
    ) -> None:
        """Leaves the best weights in `network`. seen, unseen: images and labels."""
        from sidepipe.engine.training import fit, validation_batches, weights
        from sidepipe.stages.classifier.module import NoisyClassifierModule

        module = NoisyClassifierModule(
            network,
            alphas_cumprod,
            lr=self.lr,
            weight_decay=self.weight_decay,
            lr_warmup_steps=self.lr_warmup_steps,
            random_flip=self.random_flip,
            seed=self.seed,
            noised=self.noised,
            teacher=teacher,
        )
        fit(
            self,
            module,
            seen,
            validation_batches(unseen),
            job,
            validate_every_steps=self.validate_every_steps,
            callbacks=[_keep_best(job.folder)],
        )
        module.load_state_dict(weights(job.folder, BEST))

    @classmethod
    def curves(cls, folder: Path) -> dict[str, list[dict[str, float]]]:
        return charts.curves(load_quality(folder))


def _judge(folder: Path, rows: list[dict[str, int | float]], labels: np.ndarray) -> dict[str, Any]:
    """Writes quality.csv with chance levels; warns where the classifier is no better than chance.

    Chance is ln K', an equal probability for every label, and the accuracy of the most frequent
    label. The entropy of the labels is the cross-entropy of their frequencies alone, without the
    image: guidance by a classifier above it misleads.
    """
    import pandas as pd

    counts = np.unique(labels, return_counts=True)[1]
    shares = counts / len(labels)
    chance = {
        "chance_cross_entropy": math.log(len(shares)),
        "chance_accuracy": float(shares.max()),
        "label_entropy": float(-(shares * np.log(shares)).sum()),
    }
    rows = [{**row, **chance} for row in rows]
    write_table(folder / "quality.csv", pd.DataFrame(rows))
    for row in rows:
        log.info(
            "t in [%(t_from)d, %(t_to)d): cross-entropy %(cross_entropy).3f (chance "
            "%(chance_cross_entropy).3f), accuracy %(accuracy).3f (chance %(chance_accuracy).3f)",
            row,
        )
    useless = [row for row in rows if row["cross_entropy"] >= row["label_entropy"]]
    if useless:
        log.warning(
            "the classifier is no better than chance (%.3f nats by label frequencies; "
            "ln K' = %.3f) at t in %s: guidance there cannot help and may harm the attack; remedy: "
            "more synthetic images, fewer clusters, extract.guidance.t_min, extract.guidance.t_max",
            *(chance["label_entropy"], chance["chance_cross_entropy"]),
            ", ".join(
                f"[{r['t_from']}, {r['t_to']}) ({r['cross_entropy']:.3f} nats)" for r in useless
            ),
        )
    return {"num_labels": len(shares), "quality": rows}


def _clean(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    from sidepipe.stages.classifier.module import quality_on_clean_images

    quality = quality_on_clean_images(network, images, labels)
    log.info("clean: cross-entropy %(cross_entropy).3f, accuracy %(accuracy).3f", quality)
    return quality


def _keep_best(folder: Path) -> ModelCheckpoint:
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(
        dirpath=folder,
        filename=Path(BEST).stem,
        monitor="val/cross_entropy",
        mode="min",
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )


def _split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of labeled images for training and for validation."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(labels >= 0))
    count = max(1, round(len(order) * fraction))
    return order[count:], order[:count]


def load(folder: Path) -> nn.Module:
    """The trained network (x_t, t) -> logits, in eval mode, batch norms folded into convolutions.

    A network trained on clean images ignores t.
    """
    from sidepipe.stages.classifier.module import IgnoresTime
    from sidepipe.stages.classifier.resnet import fold_batch_norms

    described = json.loads((folder / "network.json").read_text())
    network = build(described["network"])(**described["arguments"])
    load_exactly(network, [folder / "model.safetensors"])
    network = fold_batch_norms(network.eval())
    return (network if described["noised"] else IgnoresTime(network)).eval()


def load_quality(folder: Path) -> list[dict[str, int | float]]:
    """The rows of quality.csv: equal bins of t, least noise first."""
    import pandas as pd

    rows: Any = pd.read_csv(folder / "quality.csv").to_dict("records")
    return rows
