"""The strategies of refinement that a sampling stage can choose, each with its settings.

`sidepipe.diffusion.cycles` has their formulas and sources.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from sidepipe.base.settings import require
from sidepipe.diffusion.cycles import Cycle, annealed, cyclic, fixed_point


@dataclass(frozen=True, kw_only=True)
class Refine:
    """Base of all strategies. A start, which is a finished sample, is refined by each chain."""

    name: str

    @property
    def chains(self) -> list[list[Cycle]]:
        """The cycles of each chain; no chain leaves a sample as it is."""
        raise NotImplementedError

    @property
    def per_chain(self) -> int:
        """How many of the last iterates of each chain are candidates."""
        return getattr(self, "kept", 1)

    @property
    def candidates(self) -> int:
        """Candidates per start; a sample that is not refined is its own."""
        return max(1, self.per_chain * len(self.chains))

    @property
    def evaluations(self) -> int:
        """Evaluations of the network per start."""
        return sum(cycle.denoising_steps for chain in self.chains for cycle in chain)

    @property
    def timesteps(self) -> list[int]:
        """The level of every cycle."""
        return [cycle.t for chain in self.chains for cycle in chain]

    def check(self, where: str) -> None:
        """Raises ValueError for a setting out of its range. where: `extract.refine`."""
        for field in fields(self):
            least, most = _RANGES.get(field.name, (None, None))
            value: Any = getattr(self, field.name)
            if least is not None:
                rule = f">= {least}" if most is None else f"in [{least}, {most}]"
                fits = value >= least and (most is None or value <= most)
                require(fits, f"{where}.{field.name}", rule, value)

    @staticmethod
    def known_settings() -> set[str]:
        """The settings that any strategy has."""
        return {field.name for kind in Refine.__subclasses__() for field in fields(kind)} - {"name"}

    def require_single(self, where: str, why: str) -> None:
        """Raises ValueError for a strategy with several candidates per start."""
        rule, count = f"a strategy with one candidate per sample, as {why}", self.candidates
        remedy = "choose fixed_point, or kept=1"
        require(count == 1, where, rule, f"{self.name} with {count}", remedy)


_RANGES: dict[str, tuple[int | None, int | None]] = {
    "t": (0, None),
    "steps": (1, None),
    "denoising_steps": (1, None),
    "noise": (0, 1),
    "eta": (0, 1),
    "kept": (1, None),
}


@dataclass(frozen=True, kw_only=True)
class NoRefine(Refine):
    """Samples are left as they are."""

    name: Literal["none"] = "none"

    @property
    def chains(self) -> list[list[Cycle]]:
        return []


@dataclass(frozen=True, kw_only=True)
class FixedPoint(Refine):
    """One denoising step from timestep t without noise, `steps` times.

    At higher t similar samples merge. settle: an image leaves, before `steps`, once a step moves it
    by less than this (root mean square, of pixels in [-1, 1]) or by more than an earlier one, with
    the iterate that moved least; None for all steps and the last iterate.
    """

    name: Literal["fixed_point"] = "fixed_point"
    t: int = 60
    steps: int = 8
    settle: float | None = None

    @property
    def chains(self) -> list[list[Cycle]]:
        return [fixed_point(self.t, self.steps)]

    def check(self, where: str) -> None:
        super().check(where)
        settles = self.settle is None or self.settle > 0
        require(settles, f"{where}.settle", "> 0 or null", self.settle)


@dataclass(frozen=True, kw_only=True)
class Cyclic(Refine):
    """Noise of timestep t and `denoising_steps` steps of DDIM, `steps` times.

    noise: the share of this noise. eta: of DDIM, 1 ancestral.
    """

    name: Literal["cyclic"] = "cyclic"
    t: int = 60
    steps: int = 8
    noise: float = 1.0
    denoising_steps: int = 1
    eta: float = 0.0

    @property
    def chains(self) -> list[list[Cycle]]:
        return [cyclic(self.t, self.steps, self.noise, self.denoising_steps, self.eta)]

    def check(self, where: str) -> None:
        super().check(where)
        rule = f"<= {where}.t = {self.t}, a timestep each"
        fits = self.denoising_steps <= max(1, self.t)
        require(fits, f"{where}.denoising_steps", rule, self.denoising_steps)


@dataclass(frozen=True, kw_only=True)
class Relaxed(Refine):
    """Few long steps from timestep t without noise, with the last `kept` results as candidates.

    relaxation: each step starts so many times as far away as the last one led, so that fewer steps
    arrive. On digits it finds more different training images per evaluation than `FixedPoint`, and
    on faces it arrives at averages as well (docs/results/coverage.md).
    """

    name: Literal["relaxed"] = "relaxed"
    t: int = 60
    steps: int = 5
    kept: int = 3
    relaxation: float = 1.5

    @property
    def chains(self) -> list[list[Cycle]]:
        return [fixed_point(self.t, self.steps, self.relaxation)]

    def check(self, where: str) -> None:
        super().check(where)
        _check_kept(where, self.kept, self.steps)
        attracts = 1 <= self.relaxation < 2
        require(attracts, f"{where}.relaxation", "in [1, 2)", self.relaxation)


@dataclass(frozen=True, kw_only=True)
class Annealed(Refine):
    """One denoising step without noise from each of `levels`, timesteps that never rise."""

    name: Literal["annealed"] = "annealed"
    levels: list

    @property
    def chains(self) -> list[list[Cycle]]:
        return [annealed(self.levels)]

    def check(self, where: str) -> None:
        super().check(where)
        _check_levels(f"{where}.levels", self.levels)
        falling = sorted(self.levels, reverse=True) == list(self.levels)
        require(falling, f"{where}.levels", "timesteps that never rise", self.levels)


@dataclass(frozen=True, kw_only=True)
class Union(Refine):
    """Fixed points of several `levels` from each start, with the last `kept` iterates of each.

    Iterates on the way cost no further evaluations, and chains pass by training images.
    """

    name: Literal["union"] = "union"
    levels: list
    steps: int = 8
    kept: int = 5

    @property
    def chains(self) -> list[list[Cycle]]:
        return [fixed_point(t, self.steps) for t in self.levels]

    def check(self, where: str) -> None:
        super().check(where)
        _check_levels(f"{where}.levels", self.levels)
        once = len(set(self.levels)) == len(self.levels)
        require(once, f"{where}.levels", "different timesteps", self.levels)
        _check_kept(where, self.kept, self.steps)


def _check_kept(where: str, kept: int, steps: int) -> None:
    require(kept <= steps, f"{where}.kept", f"<= {where}.steps = {steps}", kept)


def _check_levels(where: str, levels: list[int]) -> None:
    whole = all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in levels)
    require(len(levels) > 0 and whole, where, "one or more timesteps >= 0", levels)
