"""A row of the comparison: the facts of one evaluate artifact and its lineage, unformatted.

The report reads every fact about an attack from `Attack`. Without the truth (`has_truth` false) an
attack has candidates and cost; its properties about hits raise.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sidepipe.engine.artifacts import Artifact
from sidepipe.stages.attack.attack import refine_of
from sidepipe.stages.evaluate.tables import load_nearest

# A model with this share of copies among its images has memorized a lot.
LARGE_EXCESS = 0.05
# Gamma in words, by the prefix of an encoder's transform.
_GAMMA = {
    "pixels-rms": "RMS pixel difference",
    "pixels-centered": "correlation of pixels",
    "sscd": "SSCD similarity",
    "copydet": "copy-descriptor similarity",
    "dinov2": "DINOv2 similarity",
    "clip": "CLIP similarity",
    "rows": "distance of rows",
}


@dataclass(frozen=True)
class Attack:
    """One attack. manifests: those of every artifact behind it, by stage."""

    name: str
    folder: Path
    results: dict[str, Any]
    manifests: dict[str, dict[str, Any]]

    @property
    def has_truth(self) -> bool:
        """Whether the images were compared with the training images."""
        return self.results["truth"] == "train"

    @property
    def metric(self) -> str:
        return self.results["metric"]

    @property
    def transform(self) -> str:
        return self.results["transform"]

    @property
    def num_images(self) -> int:
        return self.results["num_images"]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the extract stage in one mapping, those chosen by trials included.

        `surrogate` is the surrogate's name; the mapping has the surrogate's settings too. `refine`
        is a mapping with the strategy's name and settings.
        """
        manifest = self.manifests["extract"]
        settings = dict(manifest["settings"])
        surrogate, guidance = dict(settings.pop("surrogate")), settings.pop("guidance")
        own = {"surrogate": surrogate.pop("name"), **surrogate}
        summary, tuned = manifest["summary"], manifest["summary"].get("tuned", {})
        refine = refine_of(settings, summary)
        return {**settings, **own, **guidance, **tuned, "refine": refine}

    @property
    def trials(self) -> list[dict[str, Any]]:
        """Trials of a tuned attack: the settings, the blind score and the true hits."""
        return self.results.get("trials", [])

    @property
    def guided(self) -> bool:
        return self.sampled and self.settings["surrogate"] != "none"

    @property
    def sampled(self) -> bool:
        """Whether the model made the images; another tool made those of a folder."""
        return self.settings["surrogate"] != "images"

    @property
    def gamma_in_words(self) -> str:
        known = [words for prefix, words in _GAMMA.items() if self.transform.startswith(prefix)]
        kind = "similarity" if self.metric == "cosine" else "distance"
        return known[0] if known else f"{kind} of {self.transform}"

    @property
    def band_names(self) -> list[str]:
        """Names of the bands, the closest first."""
        ends = {name: band["band"] for name, band in self.results["bands"].items()}
        if self.metric == "cosine":
            return sorted(ends, key=lambda name: -_low(ends[name]))
        return sorted(ends, key=lambda name: _low(ends[name]))

    @property
    def scale(self) -> float:
        """Number of training images divided by the size of a held-out set; >= 1."""
        return self.results["control"]["scale"]

    @property
    def num_sets(self) -> int:
        """Number of disjoint held-out sets."""
        return self.results["control"]["num_sets"]

    @property
    def collapse(self) -> str | None:
        """A description of how nearly all images are alike; None where they are not."""
        found = self.results["collapse"]
        return found["said"] if found else None

    @property
    def exact(self) -> dict[str, int] | None:
        """Exact copies, where training images alone have more of them than held-out images have."""
        from sidepipe.memorization.collapse import are_finding

        copies = self.results.get("exact_copies") or {}
        return copies if are_finding(copies) else None

    @property
    def headline(self) -> dict[str, Any]:
        """Results at the first calibrated threshold, which defines a hit."""
        return self.results["calibrated"][0]

    @property
    def threshold(self) -> float:
        """The gamma of the threshold of a hit."""
        return self.headline["threshold"]

    def hits(self) -> int:
        """Images whose nearest training image is at least as close as the threshold."""
        return self.headline["train"]["count"]

    @property
    def heldout_hits(self) -> float:
        """Hits on held-out images: a mean over sets, scaled up where the sets are smaller."""
        return self.headline["heldout"]["scaled"]

    def share(self, which: str = "train") -> float:
        """Hits on `train` or `heldout` images as a share of the generated images."""
        hits = self.hits() if which == "train" else self.heldout_hits
        return hits / self.num_images

    def share_interval(self, which: str = "train") -> tuple[float, float]:
        """The 95 % interval of the share in the limit of many images."""
        low, high = self.headline[which]["interval"]
        return low, high

    @property
    def item(self) -> str:
        """The word for a generated thing: image, or row of a table."""
        return "row" if self.transform.startswith("rows") else "image"

    @property
    def unit(self) -> str:
        """The unit of different images and of false positive rates: image, row, or their group."""
        return "group" if self.results.get("num_groups") else self.item

    def num_units(self, which: str) -> int:
        """Number of images, or of their groups, of `train` or `heldout`."""
        return (self.results.get("num_groups") or self.results["num_reference"])[which]

    @property
    def unique(self) -> int:
        """Number of different training images hit."""
        return self.headline["train"]["unique"]

    @property
    def num_different(self) -> int:
        """Number of training images, where near duplicates count once."""
        return self.results["num_different"]

    @property
    def unique_interval(self) -> tuple[float, float]:
        """The 95 % interval of `unique` for other samples of the same size."""
        found = self.results["rarefaction"]
        at = found["num_images"].index(self.num_images)
        return found["low"][at], found["high"][at]

    @property
    def new_unique(self) -> int | None:
        """Number of different training images that no synthetic image hits; None without these."""
        return self.results["novelty"]["new"]["unique"] if self.results["num_synthetic"] else None

    @property
    def excess(self) -> float:
        """Hits on training images minus hits on as many held-out images."""
        return self.num_images * self.excess_share

    @property
    def excess_share(self) -> float:
        """The excess as a share of the generated images."""
        return self.headline["excess"]["share"]

    @property
    def excess_interval(self) -> tuple[float, float]:
        """The 95 % interval of the excess share, for independent images."""
        low, high = self.headline["excess"]["interval"]
        return low, high

    @property
    def inconclusive(self) -> bool:
        """Whether neither no excess nor a large one can be ruled out."""
        low, high = self.excess_interval
        return low <= 0 and high > LARGE_EXCESS

    @cached_property
    def hit_images(self) -> frozenset[int]:
        """Positions of the different training images that were hit."""
        table = load_nearest(self.folder)
        return frozenset(table.loc[table["hit"] == 1, "train_group"].tolist())

    @property
    def cost(self) -> dict[str, Any]:
        """`network_evaluations`: forwards, and gradients by their counted operations.

        All are None for images of another tool.
        """
        return self.results["cost"]

    @property
    def network_evaluations(self) -> int | None:
        return self.cost["network_evaluations"]

    def summary(self, stage: str) -> dict[str, Any]:
        return self.manifests[stage]["summary"]

    def artifact(self, stage: str) -> Path:
        """The folder of this attack's artifact of `stage`."""
        found = Artifact(self.folder).ancestor(stage)
        assert found is not None
        return found.folder

    def classifier_quality(self) -> list[dict[str, float]]:
        """Cross-entropy and accuracy by noise level, with those of chance."""
        with (self.artifact("classifier") / "quality.csv").open(newline="") as file:
            return [{name: float(v) for name, v in row.items()} for row in csv.DictReader(file)]


def _low(band: Sequence[float | None]) -> float:
    return float("-inf") if band[0] is None else band[0]
