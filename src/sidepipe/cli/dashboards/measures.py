"""What the run of an artifact says: its config, and once it is finished its numbers and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidepipe.base.images import grid
from sidepipe.cli.dashboards import keys as k
from sidepipe.stages.classifier.stage import load_quality
from sidepipe.stages.evaluate.stage import load as load_results
from sidepipe.stages.evaluate.stage import load_gallery
from sidepipe.tracking import Content

# Next to the settings in every artifact's folder: the keys of its lineage.
LINEAGE = "lineage.json"
# The files of learned weights of each trained stage.
CHECKPOINTS = {
    "dpm": "model/**/*",
    "classifier": "model.safetensors",
    "lora": "adapter.safetensors",
    "descriptor": "model.safetensors",
}
PICTURES = {
    "dpm": "previews/*.png",
    "generate": "preview.png",
    "label": "clusters.png",
    "tune": "trials/*/preview.png",
    "extract": "preview.png",
}


def run_config(
    content: Mapping[str, Any],
    attacks: Sequence[str],
    lineage: Mapping[str, Mapping[str, Any]],
    settings: Sequence[tuple[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """A run's config: what its artifact is, and by stage the settings of all it was made from.

    attacks: those that need it. lineage, settings: of everything upstream, itself last. A stage
    that comes twice, as a report's do, has no one setting and is left out. Inputs are named as
    their runs' W&B artifacts.
    """
    stages = [stage for stage, _ in settings]
    alone = {stage: dict(chosen) for stage, chosen in settings if stages.count(stage) == 1}
    return {
        **{name: content[name] for name in ("stage", "version", "key")},
        "inputs": {
            name: f"{lineage[key]['stage']}-{key}" for name, key in content["inputs"].items()
        },
        **({"attack": ", ".join(attacks)} if "extract" in alone else {}),
        **alone,
    }


def measured(stage: str, folder: Path, summary: Mapping[str, Any], images: bool) -> Content:
    """What the finished artifact in `folder` says; images: with its pictures."""
    curves: dict[str, list[dict[str, float]]] = {}
    if stage == "classifier":
        curves = _classifier(folder)
    if stage == "evaluate":
        results = load_results(folder)
        curves = _evaluate(results) if results["truth"] == "train" else {}
    named = ["settings.json", LINEAGE, CHECKPOINTS.get(stage, "")]
    paths = [p for name in named if name for p in sorted(folder.glob(name)) if p.is_file()]
    return Content(
        summary={f"{stage}/{name}": value for name, value in _flat(summary)},
        curves=curves,
        pictures=_pictures(stage, folder) if images else {},
        files={str(path.relative_to(folder)): path for path in paths},
    )


def _flat(summary: Mapping[str, Any]) -> list[tuple[str, float | str]]:
    """Single values of a summary, names of nested ones joined by slashes; lists are left out."""
    flat: list[tuple[str, float | str]] = []
    for name, value in summary.items():
        if isinstance(value, Mapping):
            flat += [(f"{name}/{inner}", v) for inner, v in _flat(value)]
        elif isinstance(value, int | float | str):
            flat.append((name, value))
    return flat


def _classifier(folder: Path) -> dict[str, list[dict[str, float]]]:
    rows = [
        {
            k.NOISE_LEVEL: (row["t_from"] + row["t_to"]) / 2,
            k.QUALITY_CROSS_ENTROPY: row["cross_entropy"],
            k.QUALITY_ACCURACY: row["accuracy"],
            k.LABEL_ENTROPY: row["label_entropy"],
        }
        for row in load_quality(folder)
    ]
    return {k.NOISE_LEVEL: rows}


def _evaluate(results: Mapping[str, Any]) -> dict[str, list[dict[str, float]]]:
    found, curve = results["rarefaction"], results["curve"]
    return {
        k.TRAIN_IMAGES: [_headline(results)],
        k.RAREFACTION_IMAGES: _rows(
            {
                k.RAREFACTION_IMAGES: found["num_images"],
                k.RAREFACTION_UNIQUE: found["unique"],
                k.RAREFACTION_LOW: found["low"],
                k.RAREFACTION_HIGH: found["high"],
            }
        ),
        k.THRESHOLD: _rows(
            {
                k.THRESHOLD: curve["thresholds"],
                k.CURVE_AMS_TRAIN: curve["train"]["ams"],
                k.CURVE_AMS_HELDOUT: curve["heldout"]["ams"],
                k.CURVE_EXCESS: curve["excess"]["share"],
            }
        ),
    }


def _headline(results: Mapping[str, Any]) -> dict[str, float]:
    """One point: hits at the first false positive rate, the bands, the bound and the cost."""
    at, found, cost = results["calibrated"][0], results["rarefaction"], results["cost"]
    low, high = at["excess"]["interval"]
    return {
        k.TRAIN_IMAGES: results["num_reference"]["train"],
        k.HITS: at["train"]["count"],
        k.HIT_RATE: at["train"]["ams"],
        k.HELDOUT_HITS: at["heldout"]["count"],
        k.UNIQUE: at["train"]["unique"],
        k.EXCESS: at["excess"]["share"],
        k.EXCESS_LOW: low,
        k.EXCESS_HIGH: high,
        **{
            k.band_key(name, score): band["train"][score]
            for name, band in results["bands"].items()
            for score in ("ams", "ums")
        },
        k.AT_LEAST: found["at_least"],
        k.COVERAGE: found["coverage"],
        k.EVALUATIONS: cost["network_evaluations"],
        k.SYNTHETIC_EVALUATIONS: cost["synthetic_evaluations"],
    }


def _rows(columns: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _pictures(stage: str, folder: Path) -> dict[str, list[Any]]:
    """Sample grids; of an attack with truth each kept pair: generated, training, held-out image."""
    if stage == "evaluate" and (folder / "gallery.npy").exists():
        triples, _ = load_gallery(folder)
        return {"evaluate/pairs": [grid(triple, columns=3) for triple in triples]}
    files = sorted(folder.glob(PICTURES[stage])) if stage in PICTURES else []
    return {f"{stage}/pictures": files} if files else {}
