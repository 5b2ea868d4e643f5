"""The arguments of refinement, checked."""

from sidepipe.api.naming import require_numbers, require_whole
from sidepipe.base.settings import require
from sidepipe.diffusion.cycles import Cycle


def checked_cycle(
    *,
    num_train_timesteps: int,
    t: int,
    noise: float,
    denoising_steps: int,
    eta: float,
    relaxation: float,
) -> Cycle:
    """One step of `Model.refine`; raises ValueError for an argument out of its range."""
    require_whole(t=t, denoising_steps=denoising_steps)
    require_numbers(noise=noise, eta=eta, relaxation=relaxation)
    rule = f"in [0, {num_train_timesteps}), the timesteps of the model"
    require(0 <= t < num_train_timesteps, "t", rule, t)
    require(0 <= noise <= 1, "noise", "in [0, 1]", noise)
    most, rule = max(1, t), f"in [1, t = {t}], a timestep each"
    require(1 <= denoising_steps <= most, "denoising_steps", rule, denoising_steps)
    require(0 <= eta <= 1, "eta", "in [0, 1]", eta)
    fits = relaxation == 1 or (1 < relaxation < 2 and noise == 0 and denoising_steps == 1)
    rule = "in [1, 2), and 1 with noise > 0 or denoising_steps > 1"
    require(fits, "relaxation", rule, relaxation)
    return Cycle(t, noise, denoising_steps, eta, relaxation)
