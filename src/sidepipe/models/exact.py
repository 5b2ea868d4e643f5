"""The family of models in closed form: the optimal denoiser of a Gaussian mixture, untrained.

A checkpoint is a folder like those of diffusers: `mixture/` has the network's buffers, `scheduler/`
the schedule. It goes through every stage, and what they should find is known exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int64
from torch import Tensor

from sidepipe.base.pretrained import read_object, weight_files
from sidepipe.base.settings import require
from sidepipe.base.weights import built, check_weights, read_network
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.mixtures import Mixture
from sidepipe.diffusion.schedule import LEAST_SIGNAL, signal_and_noise, training_target
from sidepipe.models.pixels import check_size, schedule_of
from sidepipe.models.schedules import schedule_from

if TYPE_CHECKING:
    from collections.abc import Sequence

PART = "mixture"  # of the pipeline, in place of a unet


class MixtureModel(ModelMixin, ConfigMixin):
    """The optimal prediction for a mixture, called as a diffusers network.

    num_means: n. sample_size, channels: of images, d = channels * sample_size**2 values. has_basis:
    whether variances are along a basis of their own. num_train_timesteps: T. prediction_type: as in
    the schedule.
    """

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        num_means: int,
        sample_size: int,
        channels: int,
        has_basis: bool,
        num_train_timesteps: int,
        prediction_type: str,
    ) -> None:
        super().__init__()
        d = channels * sample_size**2
        self.register_buffer("means", torch.zeros(num_means, d))
        self.register_buffer("variances", torch.zeros(d))
        basis = torch.eye(d) if has_basis else None
        self.register_buffer("basis", basis)
        alphas = torch.full((num_train_timesteps,), 0.5)
        self.register_buffer("alphas_cumprod", alphas)

    @property
    def mixture(self) -> Mixture:
        """The mixture of x_0, in float64 where the device has it."""
        dtype = torch.float32 if self.means.device.type == "mps" else torch.float64
        basis = None if self.basis is None else self.basis.to(dtype)
        return Mixture(self.means.to(dtype), self.variances.to(dtype), basis)

    def forward(self, x_t: Float[Tensor, "m c h w"], t: Int64[Tensor, "m"]) -> SimpleNamespace:
        """`.sample` has the prediction, of the shape of x_t."""
        mixture = self.mixture
        x, alphas = x_t.flatten(1).to(mixture.means.dtype), self.alphas_cumprod
        eps = mixture.eps(x, alphas[t].to(x.dtype).clamp_min(LEAST_SIGNAL))
        signal, noise = signal_and_noise(alphas, t, x)
        x_0 = (x - noise * eps) / signal
        found = training_target(self.config["prediction_type"], x_0, eps, t, alphas)
        return SimpleNamespace(sample=found.reshape(x_t.shape).float())


def exact_parts(mixture: Mixture, shape: Sequence[int], scheduler: Any) -> dict[str, Any]:
    """The parts of the model of a mixture of images.

    shape: (h, w, c). scheduler: as of `read_schedule`.
    """
    schedule, based = schedule_from(scheduler), mixture.basis is not None
    network = MixtureModel(
        num_means=len(mixture.means),
        sample_size=shape[0],
        channels=shape[2],
        has_basis=based,
        num_train_timesteps=len(schedule.alphas_cumprod),
        prediction_type=schedule.prediction_type,
    )
    network.means.copy_(mixture.means)
    network.variances.copy_(mixture.variances)
    if mixture.basis is not None:
        network.basis.copy_(mixture.basis)
    network.alphas_cumprod.copy_(schedule.alphas_cumprod)
    return {PART: network.eval(), "scheduler": scheduler}


def check(folder: Path, variant: str | None, size: int | None, channels: int | None) -> None:
    """Raises unless `folder` has a model of images of this shape, None for any."""
    inside = folder / PART
    path = inside / "config.json"
    network = built(MixtureModel, read_object(path), str(path))
    if size is not None:
        check_size(network.config, str(path), size)
    found = network.config["channels"]
    require(channels in (None, found), "data.channels", f"{found}, as of {path}", channels)
    check_weights(network, weight_files(inside))
    schedule_of(folder)


def read(folder: Path, variant: str | None) -> dict[str, Any]:
    """Network and schedule of a folder that was checked, on the CPU."""
    inside = folder / PART
    network = read_network(MixtureModel, inside, weight_files(inside))
    return {PART: network, "scheduler": schedule_of(folder)}


def denoiser_of(parts: Mapping[str, Any]) -> Denoiser:
    """The model as a Denoiser, on the CPU."""
    network, schedule = parts[PART], schedule_from(parts["scheduler"])
    side, channels = network.config["sample_size"], network.config["channels"]
    kind, shape = schedule.prediction_type, (channels, side, side)
    denoiser = Denoiser(network, schedule.alphas_cumprod, kind, shape)
    denoiser.clip_range, denoiser.step_rule = schedule.clip_range, schedule.step_rule
    return denoiser
