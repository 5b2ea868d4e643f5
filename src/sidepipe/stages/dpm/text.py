"""Stage `dpm` that trains a text-conditional model, and loading of any of these models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidepipe.base.settings import Precision, bind, build, require
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.data.stage import Data, load_canaries, load_captions
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.trained import TrainedDPM

if TYPE_CHECKING:
    from sidepipe.features.encoders import Encoder
    from sidepipe.models.text.model import TextModel
    from sidepipe.stages.dpm.captioned import CaptionedModule

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainTextDPM(TrainedDPM):
    """A UNet2DConditionModel of images and its text encoder, trained on pairs.

    text_encoder: settings of a transformers CLIPTextConfig; words and their number come from the
    training captions. max_tokens: positions of an embedding. caption_dropout: share of captions
    left out. random_tokens: random words added to each caption. memorization_filter: None, or
    percentile, num_bins and every_steps of a `MemorizationFilter`. deduplicate: None, or features
    and threshold: of training pairs whose images are near duplicates the first is kept, once.
    """

    text_encoder: dict[str, Any]
    takes_canaries: ClassVar[bool] = True
    max_tokens: int
    caption_dropout: float
    random_tokens: int
    memorization_filter: dict[str, Any] | None
    deduplicate: dict[str, Any] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_tokens >= 3, "dpm.max_tokens", ">= 3", self.max_tokens)
        drop = self.caption_dropout
        rule = "in (0, 1), or there is nothing to guide away from"
        require(0 < drop < 1, "dpm.caption_dropout", rule, drop)
        require(self.random_tokens >= 0, "dpm.random_tokens", ">= 0", self.random_tokens)
        self._check_parts("memorization_filter", ("percentile", "num_bins", "every_steps"))
        self._check_parts("deduplicate", ("features", "threshold"))
        if (of := self.memorization_filter) is not None:
            where, share = "dpm.memorization_filter", of["percentile"]
            require(0 < share < 100, f"{where}.percentile", "in (0, 100)", share)
            for name in ("num_bins", "every_steps"):
                require(of[name] >= 1, f"{where}.{name}", ">= 1", of[name])

    def prompt_tokens(self) -> int | None:
        return self.max_tokens - 2

    def _check_parts(self, name: str, parts: tuple[str, ...]) -> None:
        value = getattr(self, name)
        rule = f"null, or a mapping of {', '.join(parts)}"
        fits = value is None or set(value) == set(parts)
        require(fits, f"dpm.{name}", rule, None if value is None else list(value))

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        require_captions(data)
        super().check(upstream, runtime)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        bind("dpm.text_encoder", "transformers.CLIPTextConfig", self.text_encoder)
        super().check_parts(upstream, runtime)
        if self.deduplicate is not None:
            build(self.deduplicate["features"]).check()

    def check_data(self, data: Path, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        super().check_data(data, upstream, runtime)
        self._check_triggers(data, runtime)
        if self.memorization_filter is not None and len(self.split(data, runtime)[1]) == 0:
            raise ValueError(
                "dpm.memorization_filter needs held-out pairs to calibrate on, and there are none; "
                "remedy: lower dpm.num_train_images, or set 'dpm.train_partitions=[train]'"
            )

    def _check_triggers(self, data: Path, runtime: Runtime) -> None:
        """Raises ValueError where the tokenizer of the captions does not tell triggers apart."""
        from sidepipe.models.text.words import require_told_apart, word_tokenizer

        if len(canaries := load_canaries(data)):
            captions = load_captions(data)["caption"].to_numpy(str)[self.split(data, runtime)[0]]
            tokenizer = word_tokenizer(captions.tolist(), self.max_tokens)
            require_told_apart(tokenizer, canaries["trigger"].tolist())

    def _check_network(self, config: Mapping[str, Any], data: Data) -> None:
        from sidepipe.models.text.checks import check_network

        check_network(config, "dpm.unet")
        wanted = {
            "in_channels": data.channels,
            "sample_size": data.size,
            "cross_attention_dim": self.text_encoder["hidden_size"],
        }
        for name, value in wanted.items():
            rule = f"{value}, as data and text encoder are"
            require(config[name] == value, f"dpm.unet.{name}", rule, config[name])

    def run(self, job: Job) -> dict[str, Any]:
        import lightning as L

        from sidepipe.models.text.pipeline import save_model
        from sidepipe.models.text.words import cut_off
        from sidepipe.stages.dpm.captioned import token_ids

        images, table = load_images(job.inputs["data"]), load_captions(job.inputs["data"])
        train, heldout, about = self._write_split(job)
        captions = table["caption"].to_numpy(str)
        kept, repeats = self._taken(images, train, table["repeats"].to_numpy(), job.runtime)
        L.seed_everything(self.seed, verbose=False)
        scheduler = build(self.noise_schedule)
        model = self._model(captions[train], scheduler)
        cut_off(model, list(dict.fromkeys(captions[train].tolist())))
        ids = token_ids(model, list(captions)).numpy()
        rows = np.repeat(kept, repeats)
        module = self._module(model, job.folder, captions[kept], images[heldout], ids[heldout])
        log.info(
            "training %.2f M parameters on %d pairs of %d images, %d held out",
            *(model.num_parameters() / 1e6, len(rows), len(kept), len(heldout)),
        )
        metrics = self._averaged(job, module, [images, ids], rows, (train, heldout))
        save_model(model, job.folder / "model")
        return {
            **about,
            "num_parameters": model.num_parameters(),
            "num_train_pairs": len(rows),
            "epochs": self.max_steps * self.batch_size / len(rows),
            **metrics,
        }

    def _taken(
        self, images: np.ndarray, train: np.ndarray, repeats: np.ndarray, runtime: Runtime
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows that are trained on, and how often each comes in an epoch."""
        from sidepipe.features.duplicates import near_duplicate_groups

        if self.deduplicate is None:
            return train, repeats[train]
        encoder: Encoder = build(self.deduplicate["features"])
        features = encoder.encode(images[train], device=runtime.torch_device())
        center = near_duplicate_groups(features, encoder.metric, self.deduplicate["threshold"])
        kept = train[np.unique(center)]
        log.info("%d of %d training images are near duplicates", len(train) - len(kept), len(train))
        return kept, np.ones(len(kept), np.int64)

    def _model(self, captions: np.ndarray, scheduler: Any) -> TextModel:
        from transformers import CLIPTextConfig, CLIPTextModel

        from sidepipe.models.text.model import TextModel
        from sidepipe.models.text.words import word_tokenizer

        tokenizer = word_tokenizer(captions.tolist(), self.max_tokens)
        config = CLIPTextConfig(
            **self.text_encoder,
            vocab_size=len(tokenizer),
            max_position_embeddings=self.max_tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        parts = {"unet": build(self.unet), "scheduler": scheduler}
        return TextModel({**parts, "text_encoder": CLIPTextModel(config), "tokenizer": tokenizer})

    def _module(
        self,
        model: TextModel,
        folder: Path,
        captions: np.ndarray,
        heldout_images: np.ndarray,
        heldout_ids: np.ndarray,
    ) -> CaptionedModule:
        import torch

        from sidepipe.stages.dpm.captioned import CaptionedModule, MemorizationFilter

        filtered = None
        if self.memorization_filter is not None:
            images, ids = torch.from_numpy(np.array(heldout_images)), torch.from_numpy(heldout_ids)
            filtered = MemorizationFilter(images, ids, **self.memorization_filter)
        return CaptionedModule(
            model,
            caption_dropout=self.caption_dropout,
            random_tokens=self.random_tokens,
            preview_captions=captions.tolist(),
            memorization_filter=filtered,
            lr=self.lr,
            weight_decay=self.weight_decay,
            lr_warmup_steps=self.lr_warmup_steps,
            random_flip=self.random_flip,
            seed=self.seed,
            preview_folder=folder / "previews",
            image_shape=model.latent_shape,
        )


def require_captions(data: Data) -> None:
    """Raises ValueError unless the data have captions."""
    remedy = "choose data=captioned (your pairs) or data=planted (made from any images)"
    require(data.has_captions, "data", "images with captions", "none", remedy)


def load_placed_model(folder: Path, precision: Precision, runtime: Runtime) -> TextModel:
    """The model of a stage whose `check` has seen that it takes text, on the runtime's device."""
    from sidepipe.models.text.checks import require_guided

    model = load_text_model(folder, precision)
    assert model is not None
    require_guided(folder / "model", "stages that compare predictions")
    if runtime.attention_slicing:
        rule, kind = "false for a transformer", type(model.network).__name__
        require(model.network_part == "unet", "runtime.attention_slicing", rule, kind)
        model.network.set_attention_slice("auto")
    return model.to(runtime.torch_device())


def load_text_model(
    folder: Path, precision: Precision = "32-true", part: str = "model"
) -> TextModel | None:
    """The text-conditional model, in eval mode on the CPU; None where it takes no text.

    part: `BASE` for the model that it was fine-tuned from.
    """
    from sidepipe.models.text.pipeline import load_model

    model = folder / part
    return load_model(model, precision) if (model / "text_encoder").is_dir() else None
