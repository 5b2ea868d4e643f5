"""Stage `evaluate`: scores an attack's images against the training subset and a held-out set.

Only this stage compares with training images; no earlier stage may be tuned on its output.
With `truth: none` it does not compare either, and ranks the images as an attacker would.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int64

from sidepipe.base.files import write_json, write_table
from sidepipe.base.images import digests, grid
from sidepipe.base.settings import build, require
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.kinds import check_features
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.features.choice import descriptor_input, is_of_this_run
from sidepipe.memorization.thresholds import warn_of_rates
from sidepipe.stages.attack.strategies import MIN_IMAGES, OtherImages
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.data.stage import load_ids
from sidepipe.stages.descriptor.stage import load_encoder
from sidepipe.stages.dpm.stage import DPM
from sidepipe.stages.evaluate import charts
from sidepipe.stages.evaluate.cost import cost, original_of
from sidepipe.stages.evaluate.headline import headline
from sidepipe.stages.extract.stage import (
    Extract,
    load_cohesion,
    load_names,
    load_per_start,
    load_targets,
)
from sidepipe.stages.extract.stage import load as load_extracted
from sidepipe.stages.generate.stage import load as load_synthetic
from sidepipe.stages.original.stage import load_rows as load_original_rows
from sidepipe.stages.reference.stage import NO_HELDOUT, Reference, load_limits
from sidepipe.stages.reference.stage import load as load_reference
from sidepipe.stages.tune.stage import load_trials

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.features.encoders import Encoder
    from sidepipe.features.search import Metric
    from sidepipe.memorization import scores as m
    from sidepipe.memorization.blind import Candidates
    from sidepipe.memorization.comparison import Comparison
    from sidepipe.memorization.real import RealImages
    from sidepipe.memorization.results import Hits

log = logging.getLogger(__name__)

# More would take hours to search, and the best candidates are among these.
BLIND_IMAGES = 50_000


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Memorization metrics of one attack.

    The artifact of extract leads to the inputs of the attack, which its key includes: the labels'
    cohesion (label), the attacker's own images (original), the trials (tune) and the cost of the
    synthetic images (generate). The inputs here are those to compare with.

    features: an encoder; it defines gamma. truth: "train", or "none" for a blind ranking alone.
    bands: name -> [low, high) of gamma, null for no end, `high` the closest; its edge also makes
    two generated images near duplicates. curve: start, stop and number of thresholds.
    false_positive_rates: shares of real held-out images that pass the calibrated thresholds; the
    first defines a hit. gallery_pairs: the number of pairs and candidates for the report.
    surrogate: that of extract. Images of another tool are not compared with plain samples of the
    model, so that they need no model.
    """

    name: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 7
    needed_by: ClassVar[str] = "attacks=compare"
    reported: ClassVar[bool] = True
    rows: ClassVar[str | None] = "attacks"
    compared: ClassVar[bool] = True
    takes: ClassVar[Mapping[str, str]] = {"surrogate": "extract.surrogate"}
    features: dict[str, Any]
    truth: Literal["train", "none"]
    bands: dict[str, Any]
    curve: list
    false_positive_rates: list
    gallery_pairs: int
    surrogate: Any = None

    def __post_init__(self) -> None:
        require(
            "high" in self.bands,
            "evaluate.bands",
            "bands, one of them named high",
            list(self.bands),
        )
        for name, band in self.bands.items():
            rule = "[low, high) with low < high, null for no end"
            is_pair = isinstance(band, list | tuple) and len(band) == 2
            require(is_pair, f"evaluate.bands.{name}", rule, band)
            low, high = self.bands_of_gamma()[name]
            require(low < high, f"evaluate.bands.{name}", rule, band)
        rule = "[start, stop, count] with start < stop and count >= 2"
        require(len(self.curve) == 3, "evaluate.curve", rule, self.curve)
        start, stop, count = self.curve
        require(start < stop and count >= 2, "evaluate.curve", rule, self.curve)
        rates = self.false_positive_rates
        require(len(rates) > 0, "evaluate.false_positive_rates", "at least one rate", rates)
        for rate in rates:
            require(0 < rate < 1, "evaluate.false_positive_rates", "in (0, 1)", rate)
        require(self.gallery_pairs >= 0, "evaluate.gallery_pairs", ">= 0", self.gallery_pairs)

    def bands_of_gamma(self) -> dict[str, m.Band]:
        """The bands with their open ends at infinity."""
        return {
            name: (-np.inf if low is None else low, np.inf if high is None else high)
            for name, (low, high) in self.bands.items()
        }

    @cached_property
    def _encoder(self) -> Encoder:
        return build(self.features)

    def inputs(self) -> tuple[str, ...]:
        if self.truth == "none":
            return (*descriptor_input(self.features), "extract")
        # In this order: too few unseen images are an error before an attack is sampled.
        generate = () if self._name_of_surrogate() == OtherImages.name else ("generate",)
        return ("data", *generate, *descriptor_input(self.features), "reference", "extract")

    def _name_of_surrogate(self) -> str | None:
        return self.surrogate["name"] if isinstance(self.surrogate, Mapping) else self.surrogate

    def unused(self) -> tuple[str, ...]:
        return ("surrogate",)

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        extract = upstream["extract"]
        assert isinstance(extract, Extract)
        rule, few = f">= {MIN_IMAGES}, or evaluate has no percentiles", extract.num_images
        enough = not extract.surrogate.samples or few >= MIN_IMAGES
        require(enough, "extract.num_images", rule, few)
        check_features(upstream, "evaluate.features", self.features)
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        needs_heldout = self.truth == "train" or is_of_this_run(self.features)
        if needs_heldout and dpm.num_train_images is None and dpm.train_partitions is None:
            raise ValueError(NO_HELDOUT)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        self._encoder.check()
        self._check_high(self._encoder)

    def _check_high(self, encoder: Encoder) -> None:
        bands, similar = self.bands_of_gamma(), encoder.metric == "cosine"
        closest = (max if similar else min)(bands.values(), key=lambda band: band[0])
        require(
            bands["high"] == closest,
            "evaluate.bands.high",
            f"the closest band of {encoder.transform} ({encoder.metric})",
            self.bands,
            "evaluate=l2 for pixels_l2, evaluate=cosine for the others",
        )
        # The cosine of a vector with itself can come out as 1.0000001.
        low, high = bands["high"]
        require(
            high > 1 if similar else low <= 0,
            "evaluate.bands.high",
            "a band with exact copies",
            self.bands["high"],
            f"set its {'second' if similar else 'first'} end to null",
        )

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.memorization import results as r
        from sidepipe.memorization.blind import ranking_quality
        from sidepipe.memorization.collapse import exact_copies, with_copies
        from sidepipe.memorization.comparison import compare
        from sidepipe.stages.evaluate import tables

        # Before anything is encoded: too few unseen images are an error.
        encoder = load_encoder(job.inputs, self._encoder)
        real = load_reference(job.inputs["reference"]) if self.truth == "train" else None
        rates = [] if real is None else self._rates(real, encoder.metric, job.inputs["data"])
        encode = partial(encoder.encode, device=job.runtime.torch_device())
        extract = job.inputs["extract"]
        generated, table, each = load_extracted(extract), None, load_per_start(extract)
        queries = encode(generated)
        ranking = self._rank(queries, encoder, each)
        results = self._about(encoder, generated, ranking, extract)
        if real is not None:
            plain = job.inputs.get("generate")
            synthetic = None if plain is None else encode(load_synthetic(plain))
            rows = _attacker_rows(extract)
            c = compare(queries, synthetic, real, encoder.metric, rows, per_start=each)
            c, results["repeated"] = _with_pictures(c, generated, extract)
            measured, hits = self._measured(c, rates)
            threshold = measured["calibrated"][0]["threshold"]
            measured |= load_limits(job.inputs["reference"], threshold, encoder.metric)
            measured |= tables.of_rows(generated, real, job.inputs["data"])
            trial = partial(r.trial, c, threshold=threshold, group=hits.group)
            results |= {**measured, "trials": _trials(trial, extract, encode)}
            results["blind"] |= ranking_quality(hits.hit[ranking.index])
            ids, data = load_ids(job.inputs["data"]), load_images(job.inputs["data"])
            results |= with_copies(results["collapse"], exact_copies(c, generated, data))
            table = tables.nearest_table(c, ids, np.repeat(load_targets(extract), each), hits)
            write_table(job.folder / "nearest.csv", table)
            closest = r.closest_pairs(c, hits.group, self.gallery_pairs)
            tables.save_gallery(job.folder, table, closest, generated, data)
        tables.save_candidates(job.folder, ranking, generated, self.gallery_pairs, table)
        self._save_labels(job.folder, extract, table)
        write_json(job.folder / "results.json", results)
        return headline(results)

    def _rates(self, real: RealImages, metric: Metric, data: Path) -> list[float]:
        """The false positive rates that the unseen images allow; ValueError where none is."""
        rates = Reference.require_thresholds(real, self.false_positive_rates, metric, data)
        warn_of_rates(self.false_positive_rates, rates, len(real.unseen.rows))
        return rates

    def _about(
        self, encoder: Encoder, generated: np.ndarray, ranking: Candidates, extract: Path
    ) -> dict[str, Any]:
        """Results without truth."""
        from sidepipe.memorization.collapse import collapse

        groups = ranking.size > 1
        blind = {
            "threshold": self._duplicate_threshold(encoder.metric),
            "num_candidates": len(ranking.index),
            "groups": int(groups.sum()),
            "largest": int(ranking.size.max()),
        }
        return {
            "truth": self.truth,
            "metric": encoder.metric,
            "transform": encoder.transform,
            "num_images": len(generated) // load_per_start(extract),
            "per_start": load_per_start(extract),
            "num_synthetic": 0,
            "collapse": collapse(generated, ranking.size),
            "cost": cost(Artifact(extract)),
            "blind": blind,
        }

    def _measured(self, c: Comparison, rates: list[float]) -> tuple[dict[str, Any], Hits]:
        """Results with truth, and the hits."""
        from sidepipe.memorization import results as r

        start, stop, count = self.curve
        thresholds = np.linspace(start, stop, int(count)).round(6).tolist()
        measured, hits = r.measured(c, rates, self.bands_of_gamma(), thresholds)
        measured["asked_false_positive_rates"] = self.false_positive_rates
        for name, band in measured["bands"].items():
            band["band"] = list(self.bands[name])
        return measured, hits

    def _save_labels(self, folder: Path, extract: Path, table: pd.DataFrame | None) -> None:
        from sidepipe.stages.evaluate import tables

        label = Artifact(extract).inputs.get("label")
        if label is not None:
            cohesion = load_cohesion(extract, label.folder)
            targets = np.repeat(load_targets(extract), load_per_start(extract))
            tables.save_labels(folder, targets, cohesion, table)

    def _duplicate_threshold(self, metric: Metric) -> float:
        """gamma of two generated images that are near duplicates: the edge of the closest band.

        It is not calibrated on real images, because a blind ranking has none.
        """
        low, high = self.bands_of_gamma()["high"]
        return float(low if metric == "cosine" else high)

    def _rank(self, queries: np.ndarray, encoder: Encoder, per_start: int) -> Candidates:
        from sidepipe.memorization.blind import candidates

        if len(queries) > BLIND_IMAGES:
            log.info("the blind ranking uses the first %d of %d images", BLIND_IMAGES, len(queries))
        threshold = self._duplicate_threshold(encoder.metric)
        return candidates(queries[:BLIND_IMAGES], encoder.metric, threshold, per_start)

    @classmethod
    def point(cls, folder: Path) -> dict[str, float]:
        results = load(folder)
        return charts.headline(results) if results["truth"] == "train" else {}

    @classmethod
    def curves(cls, folder: Path) -> dict[str, list[dict[str, float]]]:
        results = load(folder)
        return charts.curves(results) if results["truth"] == "train" else {}

    @classmethod
    def shown(cls, folder: Path) -> dict[str, list[Any]]:
        """The generated, the training and the held-out image of each pair in the gallery."""
        if not (folder / "gallery.npy").exists():
            return {}
        from sidepipe.stages.evaluate.tables import load_gallery

        triples, _ = load_gallery(folder)
        return {"evaluate/pairs": [grid(triple, columns=3) for triple in triples]}


def _attacker_rows(extract: Path) -> Int64[np.ndarray, "a"] | None:
    """Indices of the real images that the attack learned from; None for no such images."""
    original = original_of(Artifact(extract))
    return None if original is None else load_original_rows(original.folder)


def _with_pictures(c: Comparison, generated: np.ndarray, extract: Path) -> tuple[Comparison, str]:
    """`with_pictures`; pixels are hashed for images of another tool alone."""
    from sidepipe.memorization.collapse import with_pictures

    names = load_names(extract)
    return with_pictures(c, [] if names is None else digests(generated), names)


def _trials(
    trial: Callable[[np.ndarray], dict[str, int]],
    extract: Path,
    encode: Callable[[np.ndarray], np.ndarray],
) -> list[dict[str, Any]]:
    """The trials of a tuned attack with the true hits of their images; [] for other attacks."""
    tune = Artifact(extract).inputs.get("tune")
    tried = [] if tune is None else load_trials(tune.folder)
    return [{**row, **trial(encode(images))} for row, images in tried]


def load(folder: Path) -> dict[str, Any]:
    """The results in results.json."""
    return json.loads((folder / "results.json").read_text())
