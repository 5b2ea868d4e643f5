"""Frozen networks with LoRA (Hu et al., 2022) and a condition per label: called with (x_t, t, y).

A label has a learned vector, or in a text model a prompt of its own, a trigger. All trained weights
begin with zero effect: before training, the network equals the model under attack to the bit, for
every label or trigger.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from sidepipe.base.settings import require
from sidepipe.diffusion.continuous import Preconditioned
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.schedule import EpsFn, eps_from_prediction, for_each
from sidepipe.models.lora import with_lora
from sidepipe.models.text.denoiser import PromptedDenoiser
from sidepipe.models.text.model import TextModel
from sidepipe.models.text.words import ordinary_words, random_triggers

TRIGGER_WORDS = 4  # at most, or as many as the text encoder takes


class LabeledUNet(nn.Module):
    """A UNet2DModel conditioned on a label: a learned vector is added to its time embedding.

    rank: of LoRA. target_modules: ends of the names of linear and convolution layers with LoRA.
    """

    def __init__(
        self, unet: Any, num_labels: int, rank: int, target_modules: Sequence[str]
    ) -> None:
        super().__init__()
        self.unet = with_lora(unet, rank, target_modules)
        inner = unet.network if isinstance(unet, Preconditioned) else unet
        inner.class_embedding = nn.Embedding(num_labels, inner.time_embedding.linear_2.out_features)
        nn.init.zeros_(inner.class_embedding.weight)

    def forward(self, x_t: Tensor, t: Int64[Tensor, "n"], y: Int64[Tensor, "n"]) -> Tensor:
        return self.unet(x_t, t, class_labels=y).sample


class LabeledTextNetwork(nn.Module):
    """A text model's network conditioned on a label: a learned change of the empty prompt.

    e_0: all that the network receives of this prompt; a label adds one vector to each of its rows.
    """

    e_0: Tensor

    def __init__(
        self, model: TextModel, num_labels: int, rank: int, target_modules: Sequence[str]
    ) -> None:
        super().__init__()
        e_0 = model.encode([""])
        self.unet, self.predict = with_lora(model.network, rank, target_modules), model.predict
        self.register_buffer("e_0", e_0, persistent=False)
        self.pseudo_tokens = nn.Parameter(torch.zeros(num_labels, *e_0.shape[1:]))

    def forward(self, x_t: Tensor, t: Int64[Tensor, "n"], y: Int64[Tensor, "n"]) -> Tensor:
        return self.predict(x_t, t, self.e_0 + self.pseudo_tokens[y])


class TriggeredTextNetwork(nn.Module):
    """A text model's network conditioned on a label: the label's trigger is the prompt.

    e: all that the network receives of each trigger, and last of the empty prompt, for label -1.
    """

    e: Tensor

    def __init__(
        self, model: TextModel, triggers: Sequence[str], rank: int, target_modules: Sequence[str]
    ) -> None:
        super().__init__()
        e = model.encode([*triggers, ""])
        self.unet, self.predict = with_lora(model.network, rank, target_modules), model.predict
        self.register_buffer("e", e, persistent=False)

    def forward(self, x_t: Tensor, t: Int64[Tensor, "n"], y: Int64[Tensor, "n"]) -> Tensor:
        return self.predict(x_t, t, self.e[y])


def triggers_of(model: TextModel, num_labels: int, seed: int) -> list[str]:
    """A string of random words of the tokenizer per label, each another one."""
    words, rng = ordinary_words(model.tokenizer, []), np.random.default_rng(seed)
    found = random_triggers(words, min(TRIGGER_WORDS, model.max_tokens - 2), [], num_labels, rng)
    rule, remedy = f"{num_labels}, one per label", "choose lora.condition=vector"
    require(len(found) == num_labels, "the number of different triggers", rule, len(found), remedy)
    return found


class LabeledDenoiser(Denoiser):
    """The model under attack, adapted: a condition y is a label.

    base: the model, whose network becomes the adapted one. triggers: the prompt of each label, None
    for learned vectors. Seed torch's generator first.
    """

    def __init__(
        self,
        base: Denoiser,
        num_labels: int,
        rank: int,
        target_modules: Sequence[str],
        triggers: Sequence[str] | None = None,
    ) -> None:
        super().__init__(base.unet, base.alphas_cumprod, base.prediction_type, base.shape)
        self.has_range, self.clip_range = base.has_range, base.clip_range
        self.step_rule = base.step_rule
        self.network: nn.Module
        if not isinstance(base, PromptedDenoiser):
            self.network = LabeledUNet(base.unet, num_labels, rank, target_modules)
        elif triggers is None:
            self.network = LabeledTextNetwork(base.model, num_labels, rank, target_modules)
        else:
            self.network = TriggeredTextNetwork(base.model, triggers, rank, target_modules)

    def eps_fn(self, y: Int64[Tensor, "n"]) -> EpsFn:
        @torch.no_grad()
        def eps_fn(x_t: Tensor, t: int) -> Tensor:
            found = self.network(x_t, for_each(t, x_t), y).float()
            return eps_from_prediction(self.prediction_type, found, x_t, t, self.alphas_cumprod)

        return eps_fn
