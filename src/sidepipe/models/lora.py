"""LoRA (Hu et al., 2022) of networks that are trained here; `adapters` reads that of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def with_lora(network: Any, rank: int, target_modules: Sequence[str], setting: str = "lora") -> Any:
    """The frozen network, in place; its layers of those names get LoRA of zero effect.

    setting: the stage of `target_modules`, for messages. Raises ValueError naming the ends that no
    layer has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = [name for name, module in network.named_modules() if not list(module.children())]
    missing = [end for end in target_modules if not any(_ends(name, end) for name in names)]
    if missing:
        raise ValueError(
            f"{setting}.target_modules names {missing}, which no layer of the network ends with; "
            f"its layers end with {sorted({name.split('.')[-1] for name in names})}"
        )
    network.requires_grad_(False)
    # alpha = rank: the product of LoRA's matrices is added without a factor.
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(target_modules))
    return inject_adapter_in_model(config, network)


def _ends(name: str, end: str) -> bool:
    """The comparison of peft."""
    return name == end or name.endswith(f".{end}")


def trained_weights(network: nn.Module) -> dict[str, Tensor]:
    """The trained weights by name: LoRA's matrices and the vectors of labels."""
    return {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}


def merge_lora(network: nn.Module) -> None:
    """Merges LoRA into the weights, in place, so that steps cost no more."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(network.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            network.set_submodule(name, layer.get_base_layer())
