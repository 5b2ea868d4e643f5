"""Frozen networks with LoRA (Hu et al., 2022) and a vector per label: called with (x_t, t, y).

All trained weights begin with zero effect: before training, the network equals the model under
attack to the bit, for every label.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor, nn

from sidepipe.diffusion.continuous import Preconditioned
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.schedule import EpsFn, eps_from_prediction, for_each
from sidepipe.models.text.denoiser import PromptedDenoiser
from sidepipe.models.text.model import TextModel


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


def with_lora(unet: Any, rank: int, target_modules: Sequence[str]) -> Any:
    """The frozen network, in place; its layers of those names get LoRA of zero effect.

    Raises ValueError naming the ends that no layer has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, module in unet.named_modules() if not list(module.children())]
    missing = [end for end in target_modules if not any(_ends(name, end) for name in names)]
    if missing:
        raise ValueError(
            f"lora.target_modules names {missing}, which no layer of the network ends with; its "
            f"layers end with {sorted({name.split('.')[-1] for name in names})}"
        )
    unet.requires_grad_(False)
    # alpha = rank: the product of LoRA's matrices is added without a factor.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(target_modules))
    return inject_adapter_in_model(config, unet)


def _ends(name: str, end: str) -> bool:
    """The comparison of peft."""
    return name == end or name.endswith(f".{end}")


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """The trained weights by name: LoRA's matrices and the vectors of labels."""
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}


def merged(denoiser: "LabeledDenoiser") -> "LabeledDenoiser":
    """The denoiser with LoRA merged into the weights, in place, so that steps cost no more."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(denoiser.network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            denoiser.network.set_submodule(name, layer.get_base_layer())
    return denoiser


class LabeledDenoiser(Denoiser):
    """The model under attack, adapted: a condition y is a label.

    base: the model, whose network becomes the adapted one. Seed torch's generator first.
    """

    def __init__(
        self, base: Denoiser, num_labels: int, rank: int, target_modules: Sequence[str]
    ) -> None:
        super().__init__(base.unet, base.alphas_cumprod, base.prediction_type, base.shape)
        self.has_range, self.clip_range = base.has_range, base.clip_range
        self.step_rule = base.step_rule
        if isinstance(base, PromptedDenoiser):
            self.network: nn.Module = LabeledTextNetwork(
                base.model, num_labels, rank, target_modules
            )
        else:
            self.network = LabeledUNet(base.unet, num_labels, rank, target_modules)

    def eps_fn(self, y: Int64[Tensor, "n"]) -> EpsFn:
        @torch.no_grad()
        def eps_fn(x_t: Tensor, t: int) -> Tensor:
            found = self.network(x_t, for_each(t, x_t), y).float()
            return eps_from_prediction(self.prediction_type, found, x_t, t, self.alphas_cumprod)

        return eps_fn
