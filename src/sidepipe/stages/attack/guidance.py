"""Settings of guidance: how strongly, at which timesteps and toward which labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sidepipe.base.settings import require
from sidepipe.diffusion.timesteps import Guidance
from sidepipe.stages.attack.schedule import Schedule, check_points, factors_between


@dataclass(frozen=True, kw_only=True)
class AttackGuidance:
    """How a surrogate guides an attack; the settings are the same for every surrogate.

    guidance_scale: lambda; for the LoRA surrogate s in eps + s (eps_label - eps), where 1 means the
    label alone and eps need not be evaluated; for the base model w in eps + w (eps - eps_base).
    t_min, t_max: timesteps that are guided, both
    included; t_max None for no upper end.
    guidance_schedule: the factor of lambda at t: "constant", 1; "classifier_quality",
    max(0, 1 - CE(t) / H(labels)); or points [t, factor] with ascending t, linear between them and
    constant beyond. max_guidance_norm: longest change of eps by guidance, in lengths of eps; None
    for no limit. targets: "uniform" over the labels, "top_cohesion", the target_fraction most
    cohesive of them, or "weighted", by cohesion rank and cluster size.
    """

    guidance_scale: float = 1.0
    t_min: int = 0
    t_max: int | None = None
    guidance_schedule: Schedule = "constant"
    max_guidance_norm: float | None = None
    targets: Literal["uniform", "top_cohesion", "weighted"] = "uniform"
    target_fraction: float = 0.1

    def __post_init__(self) -> None:
        where, norm, share = "extract.guidance", self.max_guidance_norm, self.target_fraction
        require(self.guidance_scale >= 0, f"{where}.guidance_scale", ">= 0", self.guidance_scale)
        require(self.t_min >= 0, f"{where}.t_min", ">= 0", self.t_min)
        if self.t_max is not None:
            rule, remedy = f">= {where}.t_min = {self.t_min}", "swap or widen them"
            require(self.t_max >= self.t_min, f"{where}.t_max", rule, self.t_max, remedy)
        require(norm is None or norm > 0, f"{where}.max_guidance_norm", "> 0 or null", norm)
        require(0 < share <= 1, f"{where}.target_fraction", "in (0, 1]", share)
        check_points(self.guidance_schedule)

    def between(self, first: int, last: int | None) -> Guidance:
        """The strength and the guided timesteps, as a sampler takes them."""
        return Guidance(guidance_scale=self.guidance_scale, t_min=first, t_max=last)

    def within(self, timesteps: list[int]) -> list[int]:
        """Those of `timesteps` that are guided."""
        return self.between(self.t_min, self.t_max).within(timesteps)

    def check_guides_somewhere(self, timesteps: list[int], num_train_timesteps: int) -> None:
        """Raises ValueError unless some of the `timesteps` that are evaluated are guided."""
        rule = f"< diffusion.num_train_timesteps = {num_train_timesteps}, or nothing is guided"
        require(self.t_min < num_train_timesteps, "extract.guidance.t_min", rule, self.t_min)
        within = self.within(timesteps)
        require(
            len(within) > 0,
            "[extract.guidance.t_min, extract.guidance.t_max]",
            f"an interval with one of the {len(timesteps)} timesteps from {timesteps[-1]} to "
            f"{timesteps[0]} that are evaluated, or nothing is guided",
            [self.t_min, self.t_max],
        )
        if isinstance(self.guidance_schedule, list):
            factors = factors_between(self.guidance_schedule, num_train_timesteps)
            rule = f"above 0 at one of the guided timesteps, {within[-1]} to {within[0]}"
            above = any(factors[t] > 0 for t in within)
            require(above, "extract.guidance.guidance_schedule", rule, self.guidance_schedule)
