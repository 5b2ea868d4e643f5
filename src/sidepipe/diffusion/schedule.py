"""Adding noise, and turning what a network predicts into eps.

Broadcasting over images happens here and nowhere else.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# (x_t, t) -> eps, as samplers call it: all images share their t. A number, not a tensor, since
# what depends on it (is this step guided?) would else wait for the device at every step.
EpsFn = Callable[[Float[Tensor, "n *shape"], int], Float[Tensor, "n *shape"]]

# With zero terminal SNR (Lin et al., 2024) x_T is noise alone, and eps would not contain x_0. The
# least ab_t that is used: pred_x_0 is then recovered from a float64 eps, off by 2**-16 of x_T.
LEAST_SIGNAL = 2.0**-32


def at(values: Float[Tensor, "T"], t: Int64[Tensor, "n"] | int, like: Tensor) -> Tensor:
    """`values[t]`, shaped (n, 1, ..., 1), or of one t (1, 1, ..., 1), to multiply with `like`."""
    return values[t].to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def signal_and_noise(
    alphas_cumprod: Float[Tensor, "T"], t: Int64[Tensor, "n"] | int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """sqrt(ab_t) and sqrt(1 - ab_t), shaped as by `at`, to convert between eps and x_0.

    In float64, where the device has it: near the end of a cosine schedule float32 leaves errors of
    a gray level in pred_x_0. ab_t is at least LEAST_SIGNAL.
    """
    dtype = torch.float32 if like.device.type == "mps" else torch.float64
    alpha_bar = alphas_cumprod[t].to(dtype).clamp_min(LEAST_SIGNAL)
    alpha_bar = alpha_bar.reshape(-1, *[1] * (like.ndim - 1))
    return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()


def add_noise(
    x_0: Float[Tensor, "n *shape"],
    eps: Float[Tensor, "n *shape"],
    t: Int64[Tensor, "n"],
    alphas_cumprod: Float[Tensor, "T"],
) -> Float[Tensor, "n *shape"]:
    """x_t (DDPM, eq. 4)."""
    alpha_bar = at(alphas_cumprod, t, x_0)
    return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps


def training_target(
    prediction_type: str,
    x_0: Float[Tensor, "n *shape"],
    eps: Float[Tensor, "n *shape"],
    t: Int64[Tensor, "n"],
    alphas_cumprod: Float[Tensor, "T"],
) -> Float[Tensor, "n *shape"]:
    """The target of the network's prediction: eps, v (Salimans & Ho, 2022, app. D) or x_0."""
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "sample":
        return x_0
    _require_v(prediction_type)
    alpha_bar = at(alphas_cumprod, t, x_0)
    return alpha_bar.sqrt() * eps - (1 - alpha_bar).sqrt() * x_0


def eps_from_prediction(
    prediction_type: str,
    prediction: Float[Tensor, "n *shape"],
    x_t: Float[Tensor, "n *shape"],
    t: Int64[Tensor, "n"] | int,
    alphas_cumprod: Float[Tensor, "T"],
) -> Float[Tensor, "n *shape"]:
    """eps, whatever the network predicts; in float64 where it is derived from v or x_0.

    Samplers recover the network's x_0 from it, also where alphas_cumprod[t] is 0.
    """
    if prediction_type == "epsilon":
        return prediction
    signal, noise = signal_and_noise(alphas_cumprod, t, x_t)
    if prediction_type == "sample":
        return (x_t - signal * prediction) / noise
    _require_v(prediction_type)
    return signal * prediction + noise * x_t


def eps_of(
    network: Callable[..., Any],
    prediction_type: str,
    alphas_cumprod: Float[Tensor, "T"],
    **conditions: Tensor,
) -> EpsFn:
    """The eps of a diffusers network; no gradient is ever needed through it."""

    def eps_fn(x_t: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            found = network(x_t, for_each(t, x_t), **conditions).sample.float()
        # With a learned variance (Nichol & Dhariwal, 2021) the mean is the first half of channels.
        prediction = found[:, : x_t.shape[1]]
        return eps_from_prediction(prediction_type, prediction, x_t, t, alphas_cumprod)

    return eps_fn


def for_each(t: int, x_t: Tensor) -> Int64[Tensor, "n"]:
    """t once for every image, as networks and surrogates take it; the device is not waited for."""
    return torch.full((len(x_t),), t, dtype=torch.int64, device=x_t.device)


def _require_v(prediction_type: str) -> None:
    if prediction_type != "v_prediction":
        raise ValueError(
            "prediction_type must be 'epsilon', 'v_prediction' or 'sample', "
            f"got {prediction_type!r}"
        )


def clip_x_0(
    eps_fn: EpsFn, alphas_cumprod: Float[Tensor, "T"], clip_range: float | None = 1.0
) -> EpsFn:
    """`eps_fn` with pred_x_0 clipped to [-clip_range, clip_range] and eps derived from it again.

    diffusers' `clip_sample` with `use_clipped_model_output=True`. Wraps guidance, so that a
    guided step cannot leave the range of images either. clip_range None: `eps_fn` as it is. eps is
    in float64, as from `eps_from_prediction`.
    """

    if clip_range is None:
        return eps_fn

    def clipped(x_t: Tensor, t: int) -> Tensor:
        signal, noise = signal_and_noise(alphas_cumprod, t, x_t)
        pred_x_0 = (x_t - noise * eps_fn(x_t, t)) / signal
        return (x_t - signal * pred_x_0.clamp(-clip_range, clip_range)) / noise

    return clipped
