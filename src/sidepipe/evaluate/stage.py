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
from sidepipe.data.stage import Data, load_ids
from sidepipe.data.stage import load as load_images
from sidepipe.dpm.stage import load_subset
from sidepipe.evaluate import memorization as m
from sidepipe.extract.stage import load as load_extracted
from sidepipe.extract.stage import load_targets
from sidepipe.features.search import covered, nearest
from sidepipe.settings import build, require
from sidepipe.stage import Runtime, Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """Images that the attack's images are compared with, and the comparison.

    gamma, index: each generated image's nearest reference image. reverse_gamma: each reference
    image's nearest generated one. rows: places in the data's array.
    """

    rows: np.ndarray
    features: np.ndarray
    gamma: np.ndarray
    index: np.ndarray
    reverse_gamma: np.ndarray


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
        for name, (low, high) in self.bands_of_gamma().items():
            require(
                low < high, f"evaluate.bands.{name}", "[low, high) with low < high", [low, high]
            )
        start, stop, count = self.curve
        require(
            start < stop and count >= 2, "evaluate.curve", "[start, stop, count >= 2]", self.curve
        )
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
        assert isinstance(upstream["data"], Data)
        encoder = build(self.features)
        encoder.check()
        high, rest = self.bands_of_gamma()["high"], self.bands_of_gamma()
        edge = max if encoder.metric == "cosine" else min
        closest = edge(rest.values(), key=lambda band: band[0])
        require(
            high == closest,
            "evaluate.bands.high",
            f"the closest band of {encoder.transform} ({encoder.metric})",
            self.bands,
            "evaluate=l2 for pixels_l2, evaluate=cosine for the others",
        )

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        data, generated = load_images(inputs["data"]), load_extracted(inputs["extract"])
        train_rows, rest_rows = load_subset(inputs["dpm"])
        if len(rest_rows) == 0:
            raise ValueError(
                "evaluate needs held-out images, and the model was trained on all of data; remedy: "
                "lower dpm.num_train_images, or bring images outside the training set and set "
                "dpm.train_partitions=[train]"
            )
        encoder = build(self.features)

        def encode(images: np.ndarray) -> np.ndarray:
            return encoder.encode(images, device=runtime.torch_device())

        queries = encode(generated)
        train = _compare(
            queries, encode(data[np.sort(train_rows)]), np.sort(train_rows), encoder.metric
        )
        control_rows = np.sort(rest_rows[: len(train_rows)])
        heldout = _compare(queries, encode(data[control_rows]), control_rows, encoder.metric)
        references = {"train": train, "heldout": heldout}
        if len(control_rows) < len(train_rows):
            # A larger set is nearer to anything: the control is then a training set of its size.
            rows = np.sort(train_rows[: len(control_rows)])
            references["train_equal"] = _compare(queries, encode(data[rows]), rows, encoder.metric)
        rest = nearest(encode(data[np.sort(rest_rows)]), train.features, encoder.metric)[0][:, 0]
        results = self._results(queries, references, rest, encoder)
        manifest = read_manifest(inputs["extract"]) or {}
        results["cost"] = {
            name: manifest["summary"][name] for name in ("unet_forwards", "surrogate_gradients")
        }
        write_json(folder / "results.json", results)
        hit = m.in_band(train.gamma, self.bands_of_gamma()["high"])
        table = _table(
            train, heldout, load_ids(inputs["data"]), load_targets(inputs["extract"]), hit
        )
        table.to_csv(folder / "nearest.csv", index=False, float_format="%.6f")
        self._save_gallery(folder, table, generated, data, encoder.metric)
        return self._headline(results)

    def _results(
        self,
        queries: np.ndarray,
        references: Mapping[str, Reference],
        rest: np.ndarray,
        encoder: Any,
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
            "calibrated": self._calibrated(references, rest, encoder.metric),
        }

    def _bands(
        self, queries: np.ndarray, references: Mapping[str, Reference], metric: str
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

    def _calibrated(
        self, references: Mapping[str, Reference], rest: np.ndarray, metric: str
    ) -> list[dict[str, Any]]:
        """Rates at thresholds that few real held-out images reach."""
        rows: list[dict[str, Any]] = []
        for rate in self.false_positive_rates:
            try:
                threshold = m.threshold_at_false_positive_rate(rest, rate, metric)
            except ValueError as error:
                log.warning("%s", error)
                continue
            row: dict[str, Any] = {
                "false_positive_rate": rate,
                "threshold": threshold,
                "num_real": len(rest),
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
        metric: str,
    ) -> None:
        """The closest pairs, one of each training image, with the nearest held-out image."""
        best = table.sort_values("train_gamma", ascending=metric == "l2", kind="stable")
        best = best.drop_duplicates("train_index").head(self.gallery_pairs)
        sources = ((generated, "index"), (data, "train_index"), (data, "heldout_index"))
        triples = np.stack([images[best[column].to_numpy()] for images, column in sources], axis=1)
        np.save(folder / "gallery.npy", triples)
        best.to_csv(folder / "gallery.csv", index=False, float_format="%.6f")

    def _headline(self, results: Mapping[str, Any]) -> dict[str, Any]:
        high = results["bands"]["high"]
        equal = high.get("train_equal", high["train"])
        log.info(
            "%d of %d images hit a training image, %d an equally large held-out set; %d different",
            *(equal["count"], results["num_images"], high["heldout"]["count"]),
            round(high["train"]["ums_nearest"] * results["num_images"]),
        )
        return {
            "hits": high["train"]["count"],
            "heldout_hits": high["heldout"]["count"],
            "ams_high": high["train"]["ams"],
            "ums_high": high["train"]["ums"],
        }


def _compare(queries: np.ndarray, features: np.ndarray, rows: np.ndarray, metric: str) -> Reference:
    gamma, index = nearest(queries, features, metric)
    reverse_gamma, _ = nearest(features, queries, metric)
    return Reference(rows, features, gamma[:, 0], index[:, 0], reverse_gamma[:, 0])


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


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_gallery(folder: Path) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """uint8 (n, 3, h, w, c): generated, nearest training, nearest held-out; and their rows."""
    rows: Any = pd.read_csv(folder / "gallery.csv", dtype={"train_id": str, "heldout_id": str})
    return np.load(folder / "gallery.npy"), rows.to_dict("records")
