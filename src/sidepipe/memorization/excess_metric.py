"""The headline number as a torchmetrics metric, for a loop over batches or processes."""

import hashlib
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from sidepipe.base.settings import require
from sidepipe.features.search import Metric, nearest
from sidepipe.memorization import scores as m
from sidepipe.memorization.excess import HeldoutHits, excess
from sidepipe.memorization.metric_base import Features, MemorizationMetric, checked
from sidepipe.memorization.real import control_sets
from sidepipe.memorization.thresholds import threshold_at_false_positive_rate, usable_rates


class Excess(MemorizationMetric):
    """Hits on training images beyond hits on held-out images, with a 95 % interval.

    A generated image is a hit where its nearest training image is at least as close as a threshold
    that a share ``false_positive_rate`` of the held-out images reach. The held-out hits are counted
    on disjoint sets of as many held-out images as there are training images.

    Args:
        training_features: float ``(m, d)``; unit vectors for ``"cosine"``.
        heldout_features: float ``(u, d)``, of images that the model never saw; at least 20.
        metric: ``"cosine"``, where larger is closer, or ``"l2"``, where smaller is closer.
        false_positive_rate: in ``(0, 1)``; with too few held-out images, ``1 / u``.

    Returns:
        From ``compute``, float64 scalars: ``hits``, ``heldout_hits``, ``excess``, ``excess_low``
        and ``excess_high`` (shares of the generated images), and ``threshold``.

    Raises:
        ValueError: for features that are not finite or do not fit, too few held-out images, and
            where no image could be a hit.

    Source:
        The interval: Newcombe, "Improved confidence intervals for the difference between binomial
        proportions based on paired data", Statistics in Medicine 17, 2635, 1998, method 10.

    Example:
        >>> import torch
        >>> from sidepipe.memorization.metrics import Excess
        >>> generator = torch.Generator().manual_seed(0)
        >>> train, heldout, other = torch.randn(3, 50, 8, generator=generator)
        >>> excess = Excess(train, heldout, "l2")
        >>> excess.update(torch.cat([train[:5], other[:15]]))  # five of twenty are copies
        >>> found = excess.compute()
        >>> int(found["hits"]), float(found["heldout_hits"]), float(found["excess"])
        (5, 0.0, 0.25)
    """

    counts: Tensor
    heldout_counts: Tensor

    def __init__(
        self,
        training_features: Features,
        heldout_features: Features,
        metric: Metric,
        false_positive_rate: float = 0.001,
        **kwargs: Any,
    ) -> None:
        rate = false_positive_rate
        require(0 < rate < 1, "false_positive_rate", "in (0, 1)", rate)
        heldout = checked("heldout_features", heldout_features, metric)
        digest = hashlib.sha256(heldout.tobytes()).hexdigest()
        super().__init__(training_features, metric, rate, digest, **kwargs)
        used = usable_rates([rate], len(heldout))[0]
        gamma, _ = self._nearest(heldout)
        self.threshold = threshold_at_false_positive_rate(gamma, used, metric)
        parts = control_sets(len(self.training_features), len(heldout))
        self.controls = [heldout[part] for part in parts]
        # Images by whether they hit a training image and by how many held-out sets they hit.
        self.add_state("counts", torch.zeros(2, len(parts) + 1, dtype=torch.int64), "sum")
        nothing = torch.zeros(sum(map(len, self.controls)), dtype=torch.int64)
        self.add_state("heldout_counts", nothing, "sum")

    def _take(self, features: Float32[np.ndarray, "n d"]) -> None:
        hit = m.closer(self._nearest(features)[0], self.threshold, self.metric)
        sets, hits = np.zeros(len(features), np.int64), []
        for control in self.controls:
            gamma, index = (x[:, 0] for x in nearest(features, control, self.metric))
            reached = m.closer(gamma, self.threshold, self.metric)
            hits.append(np.bincount(index[reached], minlength=len(control)))
            sets += reached
        counts = np.zeros((2, len(self.controls) + 1), np.int64)
        np.add.at(counts, (hit.astype(int), sets), 1)
        self.counts = self.counts + self._state(counts)
        self.heldout_counts = self.heldout_counts + self._state(np.concatenate(hits))

    def compute(self) -> dict[str, Float64[Tensor, ""]]:
        self._require_images()
        counts, repeats = self.counts.cpu().numpy(), self.heldout_counts.cpu().numpy()
        hit, sets = (
            np.repeat(values, counts.ravel()) for values in np.indices(counts.shape).reshape(2, -1)
        )
        heldout = HeldoutHits(
            share=sets / len(self.controls),
            repeats=int((repeats * (repeats - 1)).sum()),
            num_sets=len(self.controls),
            scale=len(self.training_features) / len(self.controls[0]),
        )
        share, (low, high) = excess(hit == 1, heldout)
        found = {"hits": hit.sum(), "heldout_hits": len(hit) * heldout.scaled}
        found |= {"excess": share, "excess_low": low, "excess_high": high}
        found |= {"threshold": self.threshold}
        return {k: torch.tensor(float(v), dtype=torch.float64) for k, v in found.items()}
