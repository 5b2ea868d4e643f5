"""Training of a text-conditional model: caption dropout, and measures against memorization."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from sidepipe.diffusion.schedule import eps_from_prediction
from sidepipe.engine.training import Noised, noised, step_generator
from sidepipe.models.text.guidance import norms
from sidepipe.models.text.model import TextModel
from sidepipe.models.text.trajectory import prompt_noise, sample
from sidepipe.stages.dpm.module import PREVIEW_IMAGES, PREVIEW_STEPS, DenoisingModule

PREVIEW_SCALE = 3.0  # guidance scale of previews
# The number of held-out pairs, each with new noise, for one calibration of the filter.
CALIBRATED_ON, CALIBRATED_AT_ONCE = 1024, 256

Ids = Int64[Tensor, "n l"]


class MemorizationFilter:
    """Thresholds of || D_t || by noise level: a percentile of held-out pairs.

    They are those of Wen et al. (2024, section 5.2), for the dimension of these images. images,
    ids: the held-out pairs. percentile: in (0, 100). num_bins: of t. every_steps: between
    calibrations.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n h w c"],
        ids: Ids,
        percentile: float,
        num_bins: int,
        every_steps: int,
    ) -> None:
        self.images, self.ids = images, ids
        self.percentile, self.num_bins, self.every_steps = percentile, num_bins, every_steps


class CaptionedModule(DenoisingModule):
    """Minimizes |target - network(x_t, t, e)|^2, with e_0 in the place of some captions' e.

    model: with `unet` and `text_encoder`, both trained. caption_dropout: share of captions replaced
    by the empty one, for classifier-free guidance (Ho & Salimans, 2022). random_tokens: the number
    of random words added to every caption at random places (Somepalli et al., 2023).
    preview_captions: of the previews' images. memorization_filter: skips examples whose || D_t ||
    is that of memorized ones, at the cost of one more forward; None for no filter.
    """

    model: TextModel
    thresholds: Tensor
    empty: Tensor

    def __init__(
        self,
        model: TextModel,
        *,
        caption_dropout: float,
        random_tokens: int,
        preview_captions: Sequence[str],
        memorization_filter: MemorizationFilter | None,
        **settings: Any,
    ) -> None:
        super().__init__(model, model.alphas_cumprod, model.prediction_type, **settings)
        self.model = model
        self.caption_dropout, self.random_tokens = caption_dropout, random_tokens
        self.preview_captions = list(preview_captions)[:PREVIEW_IMAGES]
        self.filter = memorization_filter
        bins = 1 if memorization_filter is None else memorization_filter.num_bins
        # In the checkpoint: a resumed run filters as before.
        self.register_buffer("thresholds", torch.full((bins,), torch.inf))
        self.register_buffer("empty", token_ids(model, [""]), persistent=False)

    def loss(
        self,
        images: UInt8[Tensor, "n h w c"],
        ids: Ids,
        generator: torch.Generator,
        share: tuple[int, int] = (0, 1),
    ) -> Float[Tensor, "k"]:
        """The squared error of each image that the filter keeps; share: as in DenoisingModule."""
        x = self.noised(images, generator, share)
        if not self.training:
            return self.squared_error(x, self.predict(x, ids))
        for _ in range(self.random_tokens):
            ids = with_random_token(ids, self.empty, len(self.model.tokenizer), generator)
        without = self._without_caption(len(ids), generator, share)[:, None]
        prediction = self.predict(x, torch.where(without, self.empty, ids))
        error = self.squared_error(x, prediction)
        if self.filter is None:
            return error
        with torch.no_grad():
            # The prediction with the caption, where dropout removed it above.
            other = self.predict(x, torch.where(without, ids, self.empty))
            kept = norms(self._eps(x, prediction) - self._eps(x, other)) < self._threshold(x.t)
        self.log("kept", kept.float().mean())
        return error[kept] if kept.any() else 0 * error

    def predict(self, x: Noised, ids: Ids) -> Tensor:
        """The network's prediction at x_t with the captions' embeddings."""
        e = self.model.text_encoder(ids)[0]
        return self.model.unet(x.x_t, x.t, encoder_hidden_states=e).sample

    def _without_caption(
        self, count: int, generator: torch.Generator, share: tuple[int, int]
    ) -> Bool[Tensor, "n"]:
        rank, world = share
        drawn = torch.rand(count * world, generator=generator, device=self.device)
        return drawn[rank * count : (rank + 1) * count] < self.caption_dropout

    def _eps(self, x: Noised, prediction: Tensor) -> Tensor:
        kind = self.prediction_type
        return eps_from_prediction(kind, prediction.float(), x.x_t, x.t, self.alphas_cumprod)

    def _threshold(self, t: Int64[Tensor, "n"]) -> Float[Tensor, "n"]:
        return self.thresholds[t * len(self.thresholds) // len(self.alphas_cumprod)]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.filter is not None and self.global_step % self.filter.every_steps == 0:
            self.calibrate(self.filter)

    @torch.no_grad()
    def calibrate(self, of: MemorizationFilter) -> None:
        """Sets the threshold per noise level to the percentile of held-out pairs' || D_t ||."""
        # A stream of its own: the seed plus one would be another run's training noise.
        generator = step_generator(self.seed + 2**32, self.global_step, self.device)
        found, levels = [], []
        with self.trainer.precision_plugin.train_step_context():
            for _ in range(0, CALIBRATED_ON, CALIBRATED_AT_ONCE):
                rows = torch.randint(
                    len(of.images), (CALIBRATED_AT_ONCE,), generator=generator, device=self.device
                ).cpu()
                images, ids = of.images[rows].to(self.device), of.ids[rows].to(self.device)
                x = noised(images, self.alphas_cumprod, generator)
                with_caption, without = (
                    self.predict(x, ids),
                    self.predict(x, self.empty.expand_as(ids)),
                )
                found.append(norms(self._eps(x, with_caption) - self._eps(x, without)))
                levels.append(x.t * of.num_bins // len(self.alphas_cumprod))
        values, bins = torch.cat(found), torch.cat(levels)
        for level in range(of.num_bins):
            here = values[bins == level]
            if len(here):
                self.thresholds[level] = torch.quantile(here, of.percentile / 100)

    def preview(self) -> Any:
        """Images of some captions by the current weights, uint8 NHWC."""
        model, prompts = self.model, self.preview_captions
        x_T = prompt_noise(model, self.seed, range(len(prompts)), 1)
        e, e_0 = model.encode(prompts), model.encode([""])
        steps = min(PREVIEW_STEPS, len(self.alphas_cumprod))
        return sample(model, x_T, e, e_0, PREVIEW_SCALE, steps).cpu().numpy()


def token_ids(model: TextModel, captions: Sequence[str]) -> Ids:
    """The captions as ids for the text encoder, padded to its length."""
    return model.tokenizer(
        list(captions),
        padding="max_length",
        max_length=model.max_tokens,
        truncation=True,
        return_tensors="pt",
    )["input_ids"]


def with_random_token(
    ids: Ids, empty: Int64[Tensor, "1 l"], num_tokens: int, generator: torch.Generator
) -> Ids:
    """Each row with one more token, at a random place between the start and the end of its words.

    empty: the row without words. The new token takes the place of padding, or of the last token.
    """
    count, length = ids.shape
    options: dict[str, Any] = {"generator": generator, "device": ids.device}
    special = len(set(empty[0].tolist()))
    token = torch.randint(special + 1, num_tokens, (count, 1), **options)
    words = (ids != empty[0, -1]).sum(1, keepdim=True)  # with start and end, without padding
    place = 1 + (torch.rand(count, 1, **options) * (words - 1)).long()
    at = torch.arange(length, device=ids.device).expand(count, -1)
    shifted = ids.gather(1, (at - (at > place).long()).clamp_min(0))
    return torch.where(at == place, token, shifted)
