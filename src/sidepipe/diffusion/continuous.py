"""Networks of continuous time, as samplers use all others: variance preserving, at T levels.

Such a network is given x = a x_0 + s eps. x_t = x / sqrt(a^2 + s^2) is variance preserving, with
alphas_cumprod = a^2 / (a^2 + s^2) and the same x_0 and eps. DDIM on x_t is then Euler's method in
s / a for EDM and VE, and in time for flow.

| family           | a     | s     | the network predicts                                  |
|------------------|-------|-------|-------------------------------------------------------|
| rectified flow   | 1 - t | t     | eps - x_0, at time t                                  |
| EDM              | 1     | sigma | x_0 up to known terms (Karras et al., 2022, eq. 7)    |
| VE (NCSN++)      | 1     | sigma | the score of (x + 1) / 2, images in [0, 1], at sigma/2|
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sidepipe.diffusion.schedule import LEAST_SIGNAL, at


@dataclass(frozen=True, kw_only=True)
class Levels:
    """How a network is called at each of T levels, and what follows from its output.

    prediction = skip * x_t + out * network(scale * x_t + shift, time), of `prediction_type`: "v" as
    of variance preserving models, or eps. All tensors are (T,), from least to most noise.
    """

    prediction_type: str
    alphas_cumprod: Float[Tensor, "T"]
    time: Float[Tensor, "T"]
    scale: Float[Tensor, "T"]
    skip: Float[Tensor, "T"]
    out: Float[Tensor, "T"]
    shift: float = 0.0


class Prediction(NamedTuple):
    """The output of a network, under the name that diffusers has for it."""

    sample: Float[Tensor, "n *shape"]


class Preconditioned(nn.Module):
    """A network of continuous time, called and answering as one with T timesteps."""

    scale: Tensor
    time: Tensor
    skip: Tensor
    out: Tensor

    def __init__(self, network: Any, levels: Levels) -> None:
        super().__init__()
        self.network, self.shift = network, levels.shift
        for name in ("time", "scale", "skip", "out"):
            self.register_buffer(name, getattr(levels, name).float(), persistent=False)

    def forward(
        self, x_t: Float[Tensor, "n *shape"], t: Int64[Tensor, "n"], **conditions: Any
    ) -> Prediction:
        x = at(self.scale, t, x_t) * x_t + self.shift
        found = self.network(x, self.time[t], **conditions).sample
        return Prediction(at(self.skip, t, x_t) * x_t + at(self.out, t, x_t) * found)


def level_grid(highest: float = math.inf) -> Float[Tensor, "T"]:
    """alphas_cumprod of DDPM's linear schedule up to s / a = `highest`, from least noise on.

    So t means the same noise in each family, from s / a = 0.01 (one gray level of 255) to 157. The
    last level is `highest` itself: 0 where that is infinite, in place of DDPM's last.
    """
    linear = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    if math.isinf(highest):
        return torch.cat([linear[:-1], linear.new_zeros(1)])
    below = linear[noise_ratio(linear) < highest]
    if len(below) == len(linear):
        return linear
    return torch.cat([below, below.new_tensor([1 / (1 + highest**2)])])


def noise_ratio(alphas_cumprod: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """s / a, in float64: sigma of a variance exploding model; infinite for no signal."""
    alpha_bar = alphas_cumprod.double()
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def nearest_levels(alphas_cumprod: Float[Tensor, "T"], ratios: Sequence[float]) -> list[int]:
    """The levels nearest to these s / a in log s / a, each once, from most to least noise.

    ratios: at most T, decreasing. Levels that two of them share are moved apart.
    """
    log_ratio = noise_ratio(alphas_cumprod.clamp_min(LEAST_SIGNAL)).log()
    least, most = log_ratio[0].exp(), log_ratio[-1].exp()
    wanted = torch.tensor(ratios, dtype=torch.float64).clamp(least, most).log()
    found = (wanted[:, None] - log_ratio).abs().argmin(1).tolist()
    for i in reversed(range(len(found) - 1)):
        found[i] = max(found[i], found[i + 1] + 1)
    last = len(alphas_cumprod)
    for i, t in enumerate(found):
        last = found[i] = min(t, last - 1)
    return found


def flow_levels(time_unit: float = 1000.0) -> Levels:
    """The levels of a rectified flow network.

    time_unit: the time that it is given at pure noise.
    """
    alphas_cumprod = level_grid()
    signal, noise = alphas_cumprod.double().sqrt(), (1 - alphas_cumprod.double()).sqrt()
    time = noise / (signal + noise)
    size = 1 / (signal + noise)  # sqrt(a^2 + s^2)
    return Levels(
        prediction_type="v_prediction",
        alphas_cumprod=alphas_cumprod,
        time=time_unit * time,
        scale=size,
        skip=1 - 2 * time,
        out=size,
    )


def edm_levels(sigma_data: float, sigma_max: float, predicts_v: bool = False) -> Levels:
    """The levels of a network with EDM's preconditioning (table 1, last column).

    predicts_v: the sign of its output, which diffusers turns with prediction_type=v_prediction.
    """
    alphas_cumprod = level_grid(sigma_max)
    sigma = noise_ratio(alphas_cumprod)
    total = (sigma**2 + sigma_data**2).sqrt()
    size = (1 + sigma**2).sqrt()
    out = -sigma_data * size / total
    return Levels(
        prediction_type="v_prediction",
        alphas_cumprod=alphas_cumprod,
        time=sigma.log() / 4,
        scale=size / total,
        skip=sigma * (1 - sigma_data**2) / total**2,
        out=-out if predicts_v else out,
    )


def ve_levels(sigma_max: float) -> Levels:
    """The levels of a network of the score of images in [0, 1].

    sigma_max: of images in [-1, 1].
    """
    alphas_cumprod = level_grid(sigma_max)
    sigma = noise_ratio(alphas_cumprod)
    return Levels(
        prediction_type="epsilon",
        alphas_cumprod=alphas_cumprod,
        time=sigma / 2,
        scale=(1 + sigma**2).sqrt() / 2,
        skip=torch.zeros_like(sigma),
        out=-sigma / 2,
        shift=0.5,
    )
