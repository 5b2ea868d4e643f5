"""At which timesteps the network is evaluated, from most to least noise, and which are guided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

SPACINGS = ("leading", "trailing", "linspace")


def sampling_timesteps(
    num_train_timesteps: int, num_inference_steps: int, spacing: str, steps_offset: int = 0
) -> list[int]:
    """Timesteps from most to least noise, spaced as in diffusers.

    spacing: "leading" (0, s, 2s, ...: diffusers' default) or "trailing" (T-1, T-1-s, ...: starts at
    the noisiest step; Lin et al., "Common Diffusion Noise Schedules", table 2) or "linspace" (equal
    distances from T-1 to 0, rounded). steps_offset: added to leading timesteps, up to T - 1.
    Raises ValueError unless 1 <= num_inference_steps <= num_train_timesteps.
    """
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ValueError(
            f"num_inference_steps must be in [1, {num_train_timesteps}], got {num_inference_steps}"
        )
    if spacing == "leading":
        step = num_train_timesteps // num_inference_steps
        leading = (i * step + steps_offset for i in reversed(range(num_inference_steps)))
        return [min(t, num_train_timesteps - 1) for t in leading]
    if spacing == "trailing":
        step = num_train_timesteps / num_inference_steps
        return [round(num_train_timesteps - i * step) - 1 for i in range(num_inference_steps)]
    if spacing == "linspace":
        step = (num_train_timesteps - 1) / max(num_inference_steps - 1, 1)
        return [round(i * step) for i in reversed(range(num_inference_steps))]
    raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}")


@dataclass(frozen=True, kw_only=True)
class StepRule:
    """How the scheduler of a checkpoint chooses timesteps, and where its last step ends.

    spacing, steps_offset: as in `sampling_timesteps`. last_alpha_bar: ab after the last step, 1 for
    no noise; diffusers' `set_alpha_to_one=False` leaves that of t = 0.
    """

    spacing: str = "leading"
    steps_offset: int = 0
    last_alpha_bar: float = 1.0

    def timesteps(
        self, num_train_timesteps: int, num_inference_steps: int, spacing: str | None = None
    ) -> list[int]:
        """Timesteps from most to least noise; spacing None for the checkpoint's own."""
        return sampling_timesteps(
            num_train_timesteps, num_inference_steps, spacing or self.spacing, self.steps_offset
        )


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Where a surrogate steers: lambda, and the timesteps t_min <= t <= t_max.

    guidance_scale: negative to lead away from a surrogate that is a model.
    """

    guidance_scale: float
    t_min: int
    t_max: int | None

    def within(self, timesteps: Sequence[int]) -> list[int]:
        """Those of `timesteps` that are guided."""
        t_max = math.inf if self.t_max is None else self.t_max
        return [t for t in timesteps if self.t_min <= t <= t_max and self.guidance_scale != 0]
