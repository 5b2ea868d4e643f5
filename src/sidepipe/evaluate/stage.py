"""Stage `evaluate`: scores an attack's images against the training subset and a held-out set.

The only stage that looks at the training images; nothing upstream of it may be tuned on its output.
With `truth: none` it does not look either, and ranks the images as an attacker would.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from sidepipe.artifacts import read_manifest, write_json
from sidepipe.data.stage import load as load_images
from sidepipe.data.stage import load_ids
from sidepipe.descriptor.stage import load_rows
from sidepipe.dpm.stage import DPM, load_subset
from sidepipe.evaluate import memorization as m
from sidepipe.evaluate import results as r
from sidepipe.evaluate import tables
from sidepipe.evaluate.blind import Candidates, candidates, ranking_quality
from sidepipe.evaluate.calibration import require_enough
from sidepipe.evaluate.reference import Comparison, compare, encode
from sidepipe.extract.stage import Extract, load_cohesion, load_targets, load_trials
from sidepipe.extract.stage import load as load_extracted
from sidepipe.features.copydet import CopyDet
from sidepipe.features.encoders import Encoder
from sidepipe.features.search import Metric
from sidepipe.generate.stage import load as load_synthetic
from sidepipe.original.stage import load_rows as load_original_rows
from sidepipe.settings import build, require
from sidepipe.stage import Runtime, Stage

log = logging.getLogger(__name__)

NO_HELDOUT = (
    "evaluate needs held-out images, and the model is trained on all of data; remedy: lower "
    "dpm.num_train_images, or bring images outside the training set and set "
    "dpm.train_partitions=[train], or evaluate.truth=none for a blind ranking alone"
)
MIN_IMAGES = 20  # of an attack: the 5th and 95th percentiles need them
# A search among the images themselves: more would take hours, and the best bets are among these.
BLIND_IMAGES = 50_000


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Memorisation metrics of one attack.

    features: an encoder; it decides what gamma is. truth: "train", or "none" for a blind ranking
    alone. bands: name -> [low, high) of gamma, null for no end, `high` the closest; its edge is
    also what makes two generated images near duplicates. curve: start, stop and number of
    thresholds. false_positive_rates: shares of real held-out images that calibrated thresholds let
    pass, the first of which defines a hit. gallery_pairs: how many pairs and candidates are kept
    for the report.
    """

    name: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 3
    features: dict[str, Any]
    truth: Literal["train", "none"]
    bands: dict[str, Any]
    curve: list
    false_positive_rates: list
    gallery_pairs: int

    def __post_init__(self) -> None:
        require(
            "high" in self.bands, "evaluate.bands", "named with `high` among them", list(self.bands)
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
        require(len(rates) > 0, "evaluate.false_positive_rates", "one rate at least", rates)
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

    @property
    def _needs_descriptor(self) -> bool:
        return isinstance(self._encoder, CopyDet) and self._encoder.path is None

    def inputs(self) -> tuple[str, ...]:
        descriptor = ("descriptor",) if self._needs_descriptor else ()
        if self.truth == "none":
            return (*descriptor, "extract")
        return ("data", "dpm", "generate", *descriptor, "extract")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        extract = upstream["extract"]
        assert isinstance(extract, Extract)
        rule = f">= {MIN_IMAGES}, or evaluate has no percentiles"
        require(extract.num_images >= MIN_IMAGES, "extract.num_images", rule, extract.num_images)
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        needs_heldout = self.truth == "train" or self._needs_descriptor
        if needs_heldout and dpm.num_train_images is None and dpm.train_partitions is None:
            raise ValueError(NO_HELDOUT)
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
            "a band that exact copies lie in",
            self.bands["high"],
            f"set its {'second' if similar else 'first'} end to null",
        )

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        encoder, device = self._encoder_of(inputs), runtime.torch_device()
        # Before anything is encoded: too few unseen images are an error.
        rows = self._rows(inputs) if self.truth == "train" else None
        generated = load_extracted(inputs["extract"])
        queries = encoder.encode(generated, device=device)
        ranking = self._rank(queries, encoder)
        results = self._about(encoder, len(queries), ranking, inputs["extract"])
        if rows is None:
            tables.save_candidates(folder, ranking, generated, self.gallery_pairs, None)
            self._save_labels(folder, inputs["extract"], None)
            write_json(folder / "results.json", results)
            return {"candidates": len(ranking.index), **results["blind"]}
        data = load_images(inputs["data"])
        train, unseen = (encode(encoder, data, some, device) for some in rows)
        synthetic = encoder.encode(load_synthetic(inputs["generate"]), device=device)
        original = _behind(inputs["extract"], "label", "original")
        own = None if original is None else load_original_rows(original)
        c = compare(queries, synthetic, train, unseen, encoder.metric, own)
        measured, hit, new = self._measured(c)
        results |= {**measured, "num_synthetic": len(synthetic)}
        threshold = measured["calibrated"][0]["threshold"]
        results["trials"] = [
            {**row, **r.trial(c, encoder.encode(images, device=device), threshold)}
            for row, images in load_trials(inputs["extract"])
        ]
        results["blind"] |= ranking_quality(hit[ranking.index])
        ids, targets = load_ids(inputs["data"]), load_targets(inputs["extract"])
        table = tables.nearest_table(c, ids, targets, hit, new)
        tables.save(folder / "nearest.csv", table)
        tables.save_gallery(folder, table, generated, data, self.gallery_pairs, c.metric)
        tables.save_candidates(folder, ranking, generated, self.gallery_pairs, table)
        self._save_labels(folder, inputs["extract"], table)
        write_json(folder / "results.json", results)
        return _headline(results)

    def _encoder_of(self, inputs: Mapping[str, Path]) -> Encoder:
        """The encoder; a copy descriptor of this pipeline is loaded from its artifact."""
        if self._needs_descriptor:
            return build(self.features, path=str(inputs["descriptor"]))
        return self._encoder

    def _rows(self, inputs: Mapping[str, Path]) -> tuple[np.ndarray, np.ndarray]:
        """Training images, and unseen ones that nothing was trained on; the best control first."""
        train, unseen = load_subset(inputs["dpm"])
        if "descriptor" in inputs:
            unseen = unseen[~np.isin(unseen, load_rows(inputs["descriptor"]))]
        if len(unseen) == 0:
            raise ValueError(NO_HELDOUT)
        for rate in self.false_positive_rates:
            require_enough(len(unseen), rate)
        return train, unseen

    def _about(
        self, encoder: Encoder, num_images: int, ranking: Candidates, extract: Path
    ) -> dict[str, Any]:
        """What is known without truth."""
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
            "num_images": num_images,
            "num_synthetic": 0,
            "cost": _cost(extract),
            "blind": blind,
        }

    def _measured(self, c: Comparison) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
        """Everything that needs truth; which images are hits, and which of these are new."""
        start, stop, count = self.curve
        thresholds = np.linspace(start, stop, int(count)).round(6).tolist()
        calibrated = r.calibrated(c, self.false_positive_rates)
        threshold = calibrated[0]["threshold"]
        hit = m.closer(c.train.gamma, threshold, c.metric)
        novelty, new = r.new_hits(c, hit, threshold)
        measured = {
            "num_reference": {name: len(some.rows) for name, some in c.references.items()},
            "calibrated": calibrated,
            "bands": r.bands(c, self.bands_of_gamma()),
            "curve": r.curve(c, thresholds),
            "tail_percentile": {
                name: m.tail_percentile(some.gamma, c.metric) for name, some in c.references.items()
            },
            "rules": r.rules(c, threshold),
            "distance_gap": r.distance_gap(c),
            "quality": r.quality(c),
            "divergence": r.divergence(c),
            "rarefaction": r.extractable(c, hit),
            "novelty": novelty,
        }
        for name, band in measured["bands"].items():
            band["band"] = list(self.bands[name])
        return measured, hit, new

    def _save_labels(self, folder: Path, extract: Path, table: pd.DataFrame | None) -> None:
        label = _behind(extract, "label")
        if label is not None:
            cohesion = load_cohesion(extract, label)
            tables.save_labels(folder, load_targets(extract), cohesion, table)

    def _duplicate_threshold(self, metric: Metric) -> float:
        """gamma of two generated images that are near duplicates: the edge of the closest band.

        Nothing calibrated on real images: who ranks blindly has none.
        """
        low, high = self.bands_of_gamma()["high"]
        return float(low if metric == "cosine" else high)

    def _rank(self, queries: np.ndarray, encoder: Encoder) -> Candidates:
        if len(queries) > BLIND_IMAGES:
            log.info("ranked blindly are the first %d of %d images", BLIND_IMAGES, len(queries))
        threshold = self._duplicate_threshold(encoder.metric)
        return candidates(queries[:BLIND_IMAGES], encoder.metric, threshold)


def _cost(extract: Path) -> dict[str, Any]:
    """What the attack's images cost, in evaluations of the network, and N_syn before them.

    Plain sampling needs no synthetic images, nor does who has labelled images.
    """
    manifest = read_manifest(extract)
    assert manifest is not None  # an input is finished
    names = ("unet_forwards", "surrogate_gradients", "gradient_cost", "network_evaluations")
    cost = {name: manifest["summary"][name] for name in names}
    if "training_evaluations" in manifest["summary"]:  # of a model adapted to the labels
        cost["training_evaluations"] = manifest["summary"]["training_evaluations"]
    generate = _behind(extract, "generate")
    if generate is None or _behind(extract, "label", "original"):
        return {**cost, "synthetic_evaluations": 0}
    synthetic = read_manifest(generate)
    assert synthetic is not None
    return {**cost, "synthetic_evaluations": synthetic["summary"]["unet_forwards"]}


def _behind(artifact: Path, *stages: str) -> Path | None:
    """The artifact that one was made from, input by input; None where there is none."""
    for stage in stages:
        inputs = (read_manifest(artifact) or {"inputs": {}})["inputs"]
        if stage not in inputs:
            return None
        artifact = artifact.parents[1] / stage / inputs[stage]
    return artifact


def _headline(results: Mapping[str, Any]) -> dict[str, Any]:
    at, sizes, count = results["calibrated"][0], results["num_reference"], results["num_images"]
    for name in sizes:
        log.info(
            "%s: %d of %d images hit one of %d images, %d different ones",
            *(name, at[name]["count"], count, sizes[name], at[name]["unique"]),
        )
    low, high = (count * share for share in at["excess"]["interval"])
    log.info(
        "excess at %g %% held-out false positives: %.0f of %d images (95 %% interval %.0f to %.0f)",
        *(100 * at["false_positive_rate"], count * at["excess"]["share"], count, low, high),
    )
    return {
        "hits": at["train"]["count"],
        "heldout_hits": at["heldout"]["count"],
        "unique": at["train"]["unique"],
        "excess": at["excess"]["share"],
        "excess_low": at["excess"]["interval"][0],
        "excess_high": at["excess"]["interval"][1],
        "threshold": at["threshold"],
        "ams_high": results["bands"]["high"]["train"]["ams"],
        "ums_high": results["bands"]["high"]["train"]["ums"],
    }


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_nearest(folder: Path) -> pd.DataFrame:
    """A row per generated image: its target, nearest images, and whether it is a hit, and new."""
    return tables.read(folder / "nearest.csv")


def load_gallery(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """uint8 (n, 3, h, w, c): generated, nearest training, nearest held-out; and their rows."""
    rows: Any = tables.read(folder / "gallery.csv").to_dict("records")
    return np.load(folder / "gallery.npy"), rows


def load_candidates(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """uint8 (n, h, w, c): the best bets of the blind ranking, best first; and their rows."""
    rows: Any = tables.read(folder / "candidates.csv").to_dict("records")
    return np.load(folder / "candidates.npy"), rows


def load_labels(folder: Path) -> list[dict[str, Any]]:
    """What each target label gave; none for an attack without targets."""
    path = folder / "labels.csv"
    rows: Any = tables.read(path).to_dict("records") if path.exists() else []
    return rows
