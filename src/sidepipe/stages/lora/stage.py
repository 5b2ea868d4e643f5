"""Stage `lora`: adapts the model itself to the surrogate labels (SIDE, for large models)."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from sidepipe.base.files import write_json
from sidepipe.base.settings import Precision, require
from sidepipe.base.weights import load_exactly
from sidepipe.engine.stage import Job, Stage
from sidepipe.engine.trained import Training
from sidepipe.models.rows import rows_of
from sidepipe.stages.dpm.pretrained_text import PretrainedTextDPM
from sidepipe.stages.dpm.text import TrainTextDPM, load_text_model
from sidepipe.stages.generate.stage import load_denoiser
from sidepipe.stages.label.stage import load as load_labels
from sidepipe.stages.label.stage import load_images

if TYPE_CHECKING:
    from sidepipe.stages.lora.adapters import LabeledDenoiser
    from sidepipe.stages.lora.module import LabeledDenoisingModule

log = logging.getLogger(__name__)

# The cost of a training step, forward and backward, per image and in forwards.
TRAINING_COST = 3


@dataclass(frozen=True, kw_only=True)
class Lora(Training):
    """The frozen model with LoRA and a condition per label, trained on labeled synthetic images.

    rank: of LoRA; SIDE has 512, and low ranks find more different images. target_modules: ends of
    the names of layers with LoRA. validation_fraction: share of the images for validation, which
    compares the loss with right and wrong labels. condition: a learned vector per label; or trigger
    strings, which a model with captions encodes as prompts. Images without a label are left out.
    """

    name: ClassVar[str] = "lora"
    needed_by: ClassVar[str] = "extract.surrogate=lora"
    checkpoints: ClassVar[str] = "adapter.safetensors"
    rank: int
    target_modules: list
    validation_fraction: float
    validate_every_steps: int
    condition: Literal["vector", "trigger"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rank >= 1, "lora.rank", ">= 1", self.rank)
        names = self.target_modules
        require(len(names) >= 1, "lora.target_modules", "names of layers", names)
        share, every = self.validation_fraction, self.validate_every_steps
        require(0 < share <= 0.5, "lora.validation_fraction", "in (0, 0.5]", share)
        rule = "in [1, max_steps]"
        require(1 <= every <= self.max_steps, "lora.validate_every_steps", rule, every)

    def inputs(self) -> tuple[str, ...]:
        return ("dpm", "generate", "label")

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        # Older artifacts have vectors, and no condition.
        used = super().key_settings(settings)
        return {n: v for n, v in used.items() if n != "condition" or v != "vector"}

    def check_read(self, dpm: Stage) -> None:
        """Raises ImportError where peft is not installed, ValueError for triggers without captions.

        Not in `check`: a config has the stage whether or not an attack reads it.
        """
        if find_spec("peft") is None:
            raise ImportError("lora needs peft; remedy: pip install 'sidepipe[text]'")
        takes = self.condition == "vector" or isinstance(dpm, TrainTextDPM | PretrainedTextDPM)
        rule = f"vector for a model without captions ({type(dpm).__name__})"
        require(takes, "lora.condition", rule, self.condition)

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L
        from safetensors.torch import save_file

        from sidepipe.engine.training import fit, validation_batches, weights
        from sidepipe.models.lora import trained_weights

        labels, device = load_labels(job.inputs["label"]), job.runtime.torch_device()
        rows = self._rows(job.inputs, device)
        num_labels = int(labels.max()) + 1
        described = self._described(job.inputs["dpm"], num_labels)
        write_json(job.folder / "adapter.json", described)
        L.seed_everything(self.seed, verbose=False)
        denoiser = _adapted(described, job.inputs["dpm"], "32-true")
        train, validation = _split(labels, self.validation_fraction, self.seed)
        log.info(
            "training %.2f M parameters on %d images of %d labels, %d for validation",
            sum(w.numel() for w in trained_weights(denoiser).values()) / 1e6,
            *(len(train), num_labels, len(validation)),
        )
        module = self._module(denoiser, num_labels)
        judged = [rows[validation], labels[validation]]
        none = np.full_like(judged[1], -1) if self.condition == "trigger" else judged[1]
        without = _loss_without_labels(module, [judged[0], none], device)
        metrics = fit(
            self,
            module,
            [rows[train], labels[train]],
            validation_batches(judged),
            job,
            validate_every_steps=self.validate_every_steps,
        )
        module.load_state_dict(weights(job.folder), strict=False)
        save_file(trained_weights(denoiser.network), job.folder / "adapter.safetensors")
        return {**described, "loss_without_labels": without, **metrics}

    def _described(self, dpm: Path, num_labels: int) -> dict[str, Any]:
        """The content of adapter.json."""
        from sidepipe.stages.lora.adapters import triggers_of

        described: dict[str, Any] = {
            "num_labels": num_labels,
            "rank": self.rank,
            "target_modules": self.target_modules,
            "training_evaluations": TRAINING_COST * self.max_steps * self.batch_size,
        }
        if self.condition == "trigger":
            model = load_text_model(dpm)
            assert model is not None
            described["triggers"] = triggers_of(model, num_labels, self.seed)
        return described

    def _module(self, denoiser: LabeledDenoiser, num_labels: int) -> LabeledDenoisingModule:
        from sidepipe.stages.lora.module import LabeledDenoisingModule

        return LabeledDenoisingModule(
            denoiser,
            num_labels,
            lr=self.lr,
            weight_decay=self.weight_decay,
            lr_warmup_steps=self.lr_warmup_steps,
            seed=self.seed,
        )

    def _rows(self, inputs: Mapping[str, Path], device: str) -> np.ndarray:
        """The labeled data in the model's space: images, or latents of images."""
        images = load_images(inputs["label"], inputs["generate"])
        return rows_of(load_denoiser(inputs["dpm"], "32-true"), images, device)


def _loss_without_labels(
    module: LabeledDenoisingModule, rows: list[np.ndarray], device: str
) -> float:
    """The loss of the unadapted model, at the noise of the validation.

    rows: with labels of zero effect, -1 where a label is a trigger.
    """
    from sidepipe.engine.training import validation_batches

    module.to(device)
    batches = list(validation_batches(rows))
    total = sum(
        module.losses([part.to(device) for part in batch], i)["loss"].item() * len(batch[0])
        for i, batch in enumerate(batches)
    )
    module.cpu()  # not on a device: it may be sent to other processes
    return total / sum(len(batch[0]) for batch in batches)


def _split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of labeled images for training and for validation."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(labels >= 0))
    count = max(1, round(len(order) * fraction))
    return order[count:], order[:count]


def _adapted(described: Mapping[str, Any], dpm: Path, precision: Precision) -> LabeledDenoiser:
    from sidepipe.stages.lora.adapters import LabeledDenoiser

    names = ("num_labels", "rank", "target_modules", "triggers")
    return LabeledDenoiser(
        load_denoiser(dpm, precision),
        **{name: described[name] for name in names if name in described},
    )


def load(folder: Path, dpm: Path, precision: Precision = "32-true") -> LabeledDenoiser:
    """The adapted model, whose conditions are labels, on the CPU; dpm: the model it adapts.

    Its `network` takes (x_t, t, y).
    """
    from sidepipe.models.lora import merge_lora, trained_weights

    described = json.loads((folder / "adapter.json").read_text())
    denoiser = _adapted(described, dpm, precision)
    network = denoiser.network
    load_exactly(network, [folder / "adapter.safetensors"], only=trained_weights(network))
    merge_lora(network)
    return denoiser.requires_grad_(False)


def load_training_evaluations(folder: Path) -> int:
    """The cost of its training, in forwards of the network for one image."""
    return json.loads((folder / "adapter.json").read_text())["training_evaluations"]
