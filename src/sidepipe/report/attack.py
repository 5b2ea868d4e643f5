"""A row of the comparison: what one evaluate artifact and its lineage say, without any formatting.

Everything the report shows of an attack is asked of `Attack`.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidepipe import artifacts
from sidepipe.evaluate.stage import load as load_results
from sidepipe.settings import require

# Of an encoder's transform, by how it begins: gamma in words.
_GAMMA = {
    "pixels-rms": "RMS pixel difference",
    "pixels-centred": "correlation of pixels",
    "sscd": "SSCD similarity",
    "dinov2": "DINOv2 similarity",
    "clip": "CLIP similarity",
}


@dataclass(frozen=True)
class Attack:
    """One attack. manifests: of every artifact it was made from, by stage."""

    name: str
    folder: Path
    results: dict[str, Any]
    manifests: dict[str, dict[str, Any]]

    @property
    def metric(self) -> str:
        return self.results["metric"]

    @property
    def num_images(self) -> int:
        return self.results["num_images"]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the extract stage."""
        return self.manifests["extract"]["settings"]

    @property
    def guided(self) -> bool:
        return self.settings["surrogate"] != "none"

    @property
    def gamma_in_words(self) -> str:
        transform = self.results["transform"]
        known = [words for prefix, words in _GAMMA.items() if transform.startswith(prefix)]
        kind = "similarity" if self.metric == "cosine" else "distance"
        return known[0] if known else f"{kind} of {transform}"

    @property
    def band_names(self) -> list[str]:
        """The bands, the closest first."""
        ends = {name: band["band"] for name, band in self.results["bands"].items()}
        if self.metric == "cosine":
            return sorted(ends, key=lambda name: -_low(ends[name]))
        return sorted(ends, key=lambda name: _low(ends[name]))

    @property
    def hit_threshold(self) -> float | None:
        """The end of the band `high` that gamma must reach for a hit."""
        low, high = self.results["bands"]["high"]["band"]
        return low if self.metric == "cosine" else high

    @property
    def references(self) -> list[str]:
        """The sets that the images were compared with, training images first."""
        return [
            n for n in ("train", "train_equal", "heldout") if n in self.results["num_reference"]
        ]

    @property
    def compared(self) -> str:
        """The training images that the held-out ones are compared with: an equal number of them."""
        return self.references[-2]

    def hits(self, which: str = "train") -> int:
        """Generated images whose nearest image of `which` lies in the band `high`."""
        return self.results["bands"]["high"][which]["count"]

    @property
    def excess(self) -> int:
        """Hits on training images above those on an equal number of held-out images."""
        return self.hits(self.compared) - self.hits("heldout")

    @property
    def excess_share(self) -> float:
        """The excess as a share of the generated images."""
        return self.excess / self.num_images

    @property
    def excess_interval(self) -> tuple[float, float]:
        """The excess share's 95 % bootstrap interval over groups of copies of one image."""
        low, high = self.results["excess"]["interval"]
        return low, high

    @property
    def unique(self) -> int:
        """Different training images among the hits' nearest."""
        return round(self.results["bands"]["high"]["train"]["ums_nearest"] * self.num_images)

    @property
    def unet_forwards(self) -> int:
        return self.results["cost"]["unet_forwards"]

    def calibrated(self, rate: float) -> dict[str, Any] | None:
        """Hits at the threshold that `rate` of real held-out images reach, None where unknown."""
        rows = self.results["calibrated"]
        return next((row for row in rows if row["false_positive_rate"] == rate), None)

    def summary(self, stage: str) -> dict[str, Any]:
        return self.manifests[stage]["summary"]

    def artifact(self, stage: str) -> Path:
        """The folder of the artifact of `stage` that this attack was made from."""
        return self.folder.parents[1] / stage / self.manifests[stage]["key"]


def _low(band: Sequence[float | None]) -> float:
    return float("-inf") if band[0] is None else band[0]


def read_attacks(inputs: Mapping[str, Path]) -> list[Attack]:
    """The attacks of evaluate artifacts, in order; ValueError unless of one model and measure."""
    attacks = [
        Attack(name, folder, load_results(folder), artifacts.lineage(folder))
        for name, folder in inputs.items()
    ]
    require(len(attacks) > 0, "attacks", "at least one row", 0, "attacks=compare")
    measures = {attack.name: _measure(attack) for attack in attacks}
    require(
        len(set(measures.values())) == 1,
        "the model and measure of all attacks",
        "one and the same",
        measures,
        "compare attacks on one model, evaluated with the same settings",
    )
    return attacks


def _measure(attack: Attack) -> str:
    bands = {name: band["band"] for name, band in sorted(attack.results["bands"].items())}
    model, metric = attack.manifests["dpm"]["key"], attack.metric
    return f"dpm {model}, {metric} of {attack.results['transform']}, bands {bands}"


def distinct(attacks: Sequence[Attack], stage: str) -> list[tuple[Attack, list[str]]]:
    """An attack for every different artifact of `stage`, with the names of all that share it."""
    found: dict[str, tuple[Attack, list[str]]] = {}
    for attack in attacks:
        if stage in attack.manifests:
            first = found.setdefault(attack.manifests[stage]["key"], (attack, []))
            first[1].append(attack.name)
    return list(found.values())


def classifier_quality(attack: Attack) -> list[dict[str, float]]:
    """Cross-entropy and accuracy by noise level, with those of chance."""
    with (attack.artifact("classifier") / "quality.csv").open(newline="") as file:
        return [{name: float(v) for name, v in row.items()} for row in csv.DictReader(file)]
