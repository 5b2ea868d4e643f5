"""Stage `evaluate`: scores an attack's images against the training subset and a held-out set.

The only stage that looks at the training images; nothing upstream of it may be tuned on its output.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from sidepipe.artifacts import read_manifest, write_json
from sidepipe.data.stage import load as load_images
from sidepipe.data.stage import load_ids
from sidepipe.dpm.stage import PretrainedDPM, TrainDPM, load_subset
from sidepipe.evaluate import memorization as m
from sidepipe.evaluate.reference import Reference, encode, references
from sidepipe.extract.stage import load as load_extracted
from sidepipe.extract.stage import load_targets
from sidepipe.features.encoders import Encoder
from sidepipe.features.search import Metric, covered, nearest
from sidepipe.settings import build, require
from sidepipe.stage import Runtime, Stage

log = logging.getLogger(__name__)

NO_HELDOUT = (
    "evaluate needs held-out images, and the model is trained on all of data; remedy: lower "
    "dpm.num_train_images, or bring images outside the training set and set "
    "dpm.train_partitions=[train]"
)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Stage):
    """Memorisation metrics of one attack.

    features: an encoder; it decides what gamma is. bands: name -> [low, high) of gamma, null for no
    end, the one named `high` defining a hit. curve: start, stop and number of thresholds.
    false_positive_rates: of real held-out images, for calibrated thresholds. gallery_pairs: how
    many pairs are kept for the report, each of a different training image.
    """

    name: ClassVar[str] = "evaluate"
    features: dict[str, Any]
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
        for rate in self.false_positive_rates:
            require(0 < rate < 1, "evaluate.false_positive_rates", "in (0, 1)", rate)
        require(self.gallery_pairs >= 0, "evaluate.gallery_pairs", ">= 0", self.gallery_pairs)

    def bands_of_gamma(self) -> dict[str, m.Band]:
        """The bands with their open ends at infinity."""
        return {
            name: (-np.inf if low is None else low, np.inf if high is None else high)
            for name, (low, high) in self.bands.items()
        }

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm", "extract")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, TrainDPM | PretrainedDPM)
        if dpm.num_train_images is None and dpm.train_partitions is None:
            raise ValueError(NO_HELDOUT)
        encoder = build(self.features)
        encoder.check()
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
        data, generated = load_images(inputs["data"]), load_extracted(inputs["extract"])
        train_rows, unseen_rows = load_subset(inputs["dpm"])
        if len(unseen_rows) == 0:
            raise ValueError(NO_HELDOUT)
        encoder, device = build(self.features), runtime.torch_device()
        queries = encoder.encode(generated, device=device)
        train = encode(encoder, data, train_rows, device)
        unseen = encode(encoder, data, unseen_rows, device)
        found = references(queries, train, unseen, encoder.metric)
        unseen_gamma = nearest(unseen.features, train.features, encoder.metric)[0][:, 0]
        results = self._results(queries, found, unseen_gamma, encoder)
        results["cost"] = _cost(inputs["extract"])
        write_json(folder / "results.json", results)
        ids, targets = load_ids(inputs["data"]), load_targets(inputs["extract"])
        hit = m.in_band(found["train"].gamma, self.bands_of_gamma()["high"])
        table = _table(found["train"], found["heldout"], ids, targets, hit)
        table.to_csv(folder / "nearest.csv", index=False, float_format="%.6f")
        self._save_gallery(folder, table, generated, data, encoder.metric)
        return _headline(results)

    def _results(
        self,
        queries: np.ndarray,
        references: Mapping[str, Reference],
        unseen_gamma: np.ndarray,
        encoder: Encoder,
    ) -> dict[str, Any]:
        thresholds = np.linspace(self.curve[0], self.curve[1], int(self.curve[2])).round(6).tolist()
        return {
            "metric": encoder.metric,
            "transform": encoder.transform,
            "num_images": len(queries),
            "num_reference": {name: len(r.rows) for name, r in references.items()},
            "bands": self._bands(queries, references, encoder.metric),
            "tail_percentile": {
                name: m.tail_percentile(r.gamma, encoder.metric) for name, r in references.items()
            },
            "curve": {"thresholds": thresholds}
            | {
                name: {
                    "ams": m.cumulative_ams(r.gamma, thresholds, encoder.metric),
                    "ums": m.cumulative_ums(
                        r.reverse_gamma, len(queries), thresholds, encoder.metric
                    ),
                }
                for name, r in references.items()
            },
            "excess": self._excess(references),
            "calibrated": self._calibrated(references, unseen_gamma, encoder.metric),
        }

    def _bands(
        self, queries: np.ndarray, references: Mapping[str, Reference], metric: Metric
    ) -> dict[str, Any]:
        bands = self.bands_of_gamma()
        found: dict[str, Any] = {name: {"band": list(self.bands[name])} for name in bands}
        for which, reference in references.items():
            masks = covered(queries, reference.features, metric, list(bands.values()))
            for (name, band), mask in zip(bands.items(), masks, strict=True):
                found[name][which] = {
                    "count": int(m.in_band(reference.gamma, band).sum()),
                    "ams": m.ams(reference.gamma, band),
                    "ums": float(mask.sum() / len(queries)),
                    "ums_nearest": m.ums_nearest(reference.gamma, reference.index, band),
                }
        return found

    def _excess(self, references: Mapping[str, Reference]) -> dict[str, Any]:
        """Share of training hits less that on as many held-out images, with its interval."""
        train, heldout = references.get("train_equal", references["train"]), references["heldout"]
        high = self.bands_of_gamma()["high"]
        hits, control = m.in_band(train.gamma, high), m.in_band(heldout.gamma, high)
        return {
            "share": float(hits.mean() - control.mean()),
            "interval": list(m.excess_interval(hits, control, train.index)),
        }

    def _calibrated(
        self, references: Mapping[str, Reference], unseen_gamma: np.ndarray, metric: Metric
    ) -> list[dict[str, Any]]:
        """Rates at thresholds that few real held-out images reach."""
        rows: list[dict[str, Any]] = []
        for rate in self.false_positive_rates:
            try:
                threshold = m.threshold_at_false_positive_rate(unseen_gamma, rate, metric)
            except ValueError as error:
                log.warning("%s", error)
                continue
            row: dict[str, Any] = {
                "false_positive_rate": rate,
                "threshold": threshold,
                "num_real": len(unseen_gamma),
            }
            for which, reference in references.items():
                hits = m.closer(reference.gamma, threshold, metric)
                row[which] = {
                    "count": int(hits.sum()),
                    "ams": float(hits.mean()),
                    "unique": len(np.unique(reference.index[hits])),
                }
            rows.append(row)
        return rows

    def _save_gallery(
        self,
        folder: Path,
        table: pd.DataFrame,
        generated: np.ndarray,
        data: np.ndarray,
        metric: Metric,
    ) -> None:
        """The closest pairs, one of each training image, with the nearest held-out image."""
        best = table.sort_values("train_gamma", ascending=metric == "l2", kind="stable")
        best = best.drop_duplicates("train_index").head(self.gallery_pairs)
        sources = ((generated, "index"), (data, "train_index"), (data, "heldout_index"))
        triples = np.stack([images[best[column].to_numpy()] for images, column in sources], axis=1)
        np.save(folder / "gallery.npy", triples)
        best.to_csv(folder / "gallery.csv", index=False, float_format="%.6f")


def _cost(extract: Path) -> dict[str, int]:
    """What the attack's images cost, in evaluations."""
    manifest = read_manifest(extract)
    assert manifest is not None  # an input is finished
    return {name: manifest["summary"][name] for name in ("unet_forwards", "surrogate_gradients")}


def _table(
    train: Reference, heldout: Reference, ids: np.ndarray, targets: np.ndarray, hit: np.ndarray
) -> pd.DataFrame:
    """A row per generated image; indices are places in the data's array."""
    columns: dict[str, Any] = {
        "index": np.arange(len(targets)),
        "target": targets,
        "hit": hit.astype(int),
    }
    for name, reference in (("train", train), ("heldout", heldout)):
        rows = reference.rows[reference.index]
        columns |= {
            f"{name}_index": rows,
            f"{name}_id": ids[rows],
            f"{name}_gamma": reference.gamma,
        }
    return pd.DataFrame(columns)


def _headline(results: Mapping[str, Any]) -> dict[str, Any]:
    high, sizes = results["bands"]["high"], results["num_reference"]
    for name in sizes:
        log.info(
            "%s: %d of %d images hit one of %d images, %d different ones",
            *(name, high[name]["count"], results["num_images"], sizes[name]),
            round(high[name]["ums_nearest"] * results["num_images"]),
        )
    return {
        "hits": high["train"]["count"],
        "heldout_hits": high["heldout"]["count"],
        "ams_high": high["train"]["ams"],
        "ums_high": high["train"]["ums"],
    }


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_gallery(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """uint8 (n, 3, h, w, c): generated, nearest training, nearest held-out; and their rows."""
    ids: Any = {"train_id": str, "heldout_id": str}
    # An image may be called "NA".
    rows: Any = pd.read_csv(folder / "gallery.csv", dtype=ids, keep_default_na=False)
    return np.load(folder / "gallery.npy"), rows.to_dict("records")
