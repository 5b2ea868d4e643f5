"""The quantities that figures of a sweep show: numbers of an attack, most with an interval.

Intervals are those of a single run. Runs that differ in the seed have a mean and a range, never an
averaged interval.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.sweep.points import Spot

Interval = tuple[float, float]


@dataclass(frozen=True)
class Quantity:
    """name: of its figure's files. title: of its axis. caption: its caption. places: decimals
    shown.

    value: the number of one attack. interval: its 95 % interval.
    """

    name: str
    title: str
    caption: str
    places: int
    value: Callable[[Attack], float]
    interval: Callable[[Attack], Interval] | None = None

    def mean(self, spot: Spot) -> float:
        """The mean over the spot's finished runs."""
        return float(np.mean([self.value(attack) for attack in spot.finished]))

    def range(self, spot: Spot) -> Interval:
        """The lowest and the highest of the spot's finished runs."""
        values = [self.value(attack) for attack in spot.finished]
        return min(values), max(values)


def _percent(ends: Interval) -> Interval:
    return 100 * ends[0], 100 * ends[1]


def _per_thousand(attack: Attack, number: float) -> float:
    evaluations = attack.network_evaluations
    return math.nan if evaluations is None else 1000 * number / evaluations


def _per_thousand_interval(attack: Attack) -> Interval:
    low, high = (_per_thousand(attack, s * attack.num_images) for s in attack.share_interval())
    return low, high


EXCESS = Quantity(
    "excess",
    "excess, % of images",
    "Excess: hits on training images minus hits on held-out images",
    2,
    lambda a: 100 * a.excess_share,
    lambda a: _percent(a.excess_interval),
)
HITS = Quantity(
    "hits",
    "hits, % of images",
    "Hits on training images",
    2,
    lambda a: 100 * a.share(),
    lambda a: _percent(a.share_interval()),
)
HELDOUT = Quantity(
    "heldout",
    "held-out hits, % of images",
    "The control: hits on held-out images",
    2,
    lambda a: 100 * a.share("heldout"),
    lambda a: _percent(a.share_interval("heldout")),
)
UNIQUE = Quantity(
    "unique",
    "different training images",
    "Different training images hit",
    0,
    lambda a: a.unique,
    lambda a: a.unique_interval,
)
NEW = Quantity(
    "new",
    "new training images",
    "Different training images hit that no plain sample of N_syn hits",
    0,
    lambda a: math.nan if a.new_unique is None else a.new_unique,
)
COST = Quantity(
    "cost",
    "hits per 1,000 evaluations",
    "Hits on training images per 1,000 network evaluations",
    2,
    lambda a: _per_thousand(a, a.hits()),
    _per_thousand_interval,
)
QUANTITIES = (EXCESS, HITS, HELDOUT, UNIQUE, NEW, COST)
