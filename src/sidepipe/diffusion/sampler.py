"""Sampling of any `eps_fn(x_t, t)`; samplers are independent of guidance and clipping.

DDIM with eta = 1 over every timestep is DDPM's ancestral sampler (DDIM, section 4.1), so the two
are one function. DPM-Solver++ and Heun's method are of second order, for fewer steps.
"""

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from sidepipe.diffusion.schedule import LEAST_SIGNAL, EpsFn
from sidepipe.diffusion.timesteps import sampling_timesteps as sampling_timesteps

# ab_T of zero terminal SNR where its logarithm is needed, as in diffusers' multistep solvers.
ZERO_SNR = 2.0**-24


def require_x_0(
    prediction_type: str, alphas_cumprod: Float[Tensor, "T"], timesteps: Sequence[int]
) -> None:
    """Raises ValueError if eps is predicted for an x_t that contains nothing of x_0.

    That is at alphas_cumprod[t] = 0, with zero terminal SNR; diffusers divides by 0 there.
    """
    without = [t for t in timesteps if alphas_cumprod[t] == 0]
    if prediction_type == "epsilon" and without:
        raise ValueError(
            "prediction_type must be 'v_prediction' or 'sample' where alphas_cumprod is 0 (zero "
            f"terminal SNR), got 'epsilon' at t = {without[0]}, and x_0 does not follow from eps; "
            "remedy: timestep_spacing=leading with fewer steps, which leaves this t out"
        )


def ddim(
    eps_fn: EpsFn,
    x_T: Float[Tensor, "n *shape"],
    timesteps: Sequence[int],
    alphas_cumprod: Float[Tensor, "T"],
    eta: float = 0.0,
    noise_fn: Callable[[], Float[Tensor, "n *shape"]] | None = None,
    last_alpha_bar: float = 1.0,
) -> Float[Tensor, "n *shape"]:
    """x_0 sampled from `x_T ~ N(0, I)` (DDIM, eq. 12).

    timesteps: decreasing, from `sampling_timesteps`. eta: 0 deterministic, 1 ancestral.
    noise_fn: fresh standard normal noise of x_T's shape at every call; needed when eta > 0.
    last_alpha_bar: ab after the last step, 1 for no noise.

    | DDIM     | here             |
    |----------|------------------|
    | alpha_t  | alphas_cumprod[t]|
    | sigma_t  | sigma            |
    | z        | noise_fn()       |
    """
    if eta > 0 and noise_fn is None:
        raise ValueError(f"noise_fn is needed when eta > 0, got eta = {eta}")
    x_t, alpha_bars = x_T, _alpha_bars(alphas_cumprod, timesteps, last_alpha_bar)
    for t, alpha_bar, alpha_bar_prev in zip(
        timesteps, alpha_bars[:-1], alpha_bars[1:], strict=True
    ):
        eps = eps_fn(x_t, t)
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        sigma = eta * max(variance, 0.0) ** 0.5
        # eps may be float64
        x_t = _ddim_step(x_t, eps, alpha_bar, alpha_bar_prev, sigma).to(x_T.dtype)
        if sigma > 0 and noise_fn is not None:
            x_t = x_t + sigma * noise_fn()
    return x_t


def _ddim_step(
    x_t: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_prev: float, sigma: float = 0.0
) -> Tensor:
    """x at the end of a step, without its noise of standard deviation sigma (DDIM, eq. 12)."""
    pred_x_0 = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    direction = max(1 - alpha_bar_prev - sigma**2, 0.0) ** 0.5 * eps
    return alpha_bar_prev**0.5 * pred_x_0 + direction


def _alpha_bars(
    alphas_cumprod: Float[Tensor, "T"], timesteps: Sequence[int], last_alpha_bar: float
) -> list[float]:
    """ab_t of each timestep as `signal_and_noise` has it, and the one after the last step."""
    found = alphas_cumprod[list(timesteps)].tolist()  # one wait for the device
    return [*(max(alpha_bar, LEAST_SIGNAL) for alpha_bar in found), last_alpha_bar]


def dpm_solver_pp(
    eps_fn: EpsFn,
    x_T: Float[Tensor, "n *shape"],
    timesteps: Sequence[int],
    alphas_cumprod: Float[Tensor, "T"],
    eta: float = 0.0,
    noise_fn: Callable[[], Float[Tensor, "n *shape"]] | None = None,
    last_alpha_bar: float = 1.0,
) -> Float[Tensor, "n *shape"]:
    """x_0 by DPM-Solver++(2M) (Lu et al., 2022, algorithm 2); as `ddim`, for eta = 0 alone.

    | DPM-Solver++ | here                                     |
    |--------------|------------------------------------------|
    | lambda_t     | half_log_snr                             |
    | h, r         | step, last_step / step                   |
    | D            | direction: pred_x_0, led on by its trend |
    """
    if eta != 0:
        raise ValueError(f"eta must be 0 for dpm_solver_pp, got {eta}; remedy: sampler=ddim")
    x_t, last_pred_x_0, last_step = x_T, x_T, 0.0
    alpha_bars = _alpha_bars(alphas_cumprod, timesteps, last_alpha_bar)
    signal = [ZERO_SNR if alpha_bar == LEAST_SIGNAL else alpha_bar for alpha_bar in alpha_bars]
    half_log_snr = [math.log(s / max(1 - s, 1e-24)) / 2 for s in signal]
    for i, t in enumerate(timesteps):
        alpha_bar, alpha_bar_prev = alpha_bars[i : i + 2]
        pred_x_0 = x_t - (1 - alpha_bar) ** 0.5 * eps_fn(x_t, t)
        direction = pred_x_0 = pred_x_0 / alpha_bar**0.5
        step = half_log_snr[i + 1] - half_log_snr[i]
        if 0 < i < len(timesteps) - 1:  # the last step, to no noise at all, is of first order
            direction = pred_x_0 + (pred_x_0 - last_pred_x_0) * step / (2 * last_step)
        shrunk = ((1 - alpha_bar_prev) / (1 - alpha_bar)) ** 0.5
        x_t = shrunk * x_t + (alpha_bar_prev**0.5 - shrunk * alpha_bar**0.5) * direction
        x_t = x_t.to(x_T.dtype)
        last_pred_x_0, last_step = pred_x_0, step
    return x_t


def heun(
    eps_fn: EpsFn,
    x_T: Float[Tensor, "n *shape"],
    timesteps: Sequence[int],
    alphas_cumprod: Float[Tensor, "T"],
    eta: float = 0.0,
    noise_fn: Callable[[], Float[Tensor, "n *shape"]] | None = None,
    last_alpha_bar: float = 1.0,
) -> Float[Tensor, "n *shape"]:
    """x_0 by Heun's method (EDM: Karras et al., 2022, algorithm 1); as `ddim`, for eta = 0 alone.

    A step is DDIM's with the mean of the eps at both of its ends.

    | EDM        | here                                |
    |------------|-------------------------------------|
    | t_i        | sqrt((1 - alpha_bar) / alpha_bar)   |
    | x_i        | x_t / sqrt(alpha_bar)               |
    | d_i, d'_i  | eps, eps_fn at the end of the step  |
    """
    if eta != 0:
        raise ValueError(f"eta must be 0 for heun, got {eta}; remedy: sampler=ddim")
    x_t, alpha_bars = x_T, _alpha_bars(alphas_cumprod, timesteps, last_alpha_bar)
    corrected = _corrected(alpha_bars)
    for i, t in enumerate(timesteps):
        eps = eps_fn(x_t, t)
        end = _ddim_step(x_t, eps, alpha_bars[i], alpha_bars[i + 1]).to(x_T.dtype)
        if corrected[i]:
            eps = (eps + eps_fn(end, timesteps[i + 1])) / 2
            end = _ddim_step(x_t, eps, alpha_bars[i], alpha_bars[i + 1]).to(x_T.dtype)
        x_t = end
    return x_t


def _corrected(alpha_bars: Sequence[float]) -> list[bool]:
    """Which steps of `heun` evaluate eps at their end too; alpha_bars: of `_alpha_bars`.

    The last does not, as it ends without a timestep; nor does one from noise alone, whose length
    in sigma is infinite.
    """
    steps = len(alpha_bars) - 1
    return [alpha_bars[i] > LEAST_SIGNAL and i < steps - 1 for i in range(steps)]


def evaluated(
    sampler: str, timesteps: Sequence[int], alphas_cumprod: Float[Tensor, "T"]
) -> list[int]:
    """The timesteps at which a sampler of SAMPLERS evaluates eps_fn, each as often as it does."""
    if sampler != "heun":
        return list(timesteps)
    twice = _corrected(_alpha_bars(alphas_cumprod, timesteps, 1.0))
    ends = [t for t, again in zip(timesteps[1:], twice[:-1], strict=True) if again]
    return sorted([*timesteps, *ends], reverse=True)


SAMPLERS = {"ddim": ddim, "dpm_solver_pp": dpm_solver_pp, "heun": heun}
