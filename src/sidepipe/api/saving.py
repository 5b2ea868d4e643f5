"""The files of a comparison, and its numbers as a table in plain text."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.base.files import require_free, whole_file, write_json
from sidepipe.engine.artifacts import provenance
from sidepipe.features.image_duplicates import SEED
from sidepipe.stages.report import words
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.terminal import wrapped

if TYPE_CHECKING:
    from sidepipe.api.result import Result

CLOSENESS = {"l2": "distance", "cosine": "similarity"}


def save(result: Result, folder: Path, arguments: Mapping[str, object]) -> Path:
    """Writes report.html, pairs.csv and result.json."""
    require_free("folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    result.report(folder / "report.html")
    columns = ["hit_on", "generated", "nearest", CLOSENESS[result.metric], "threshold"]
    columns += ["group"] if result._counts["num_groups"] else []
    path = folder / "pairs.csv"
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *result._hits])
    write_json(folder / "result.json", _described(result) | dict(arguments))
    return folder


def _described(result: Result) -> dict[str, Any]:
    made, excess = provenance(), result.excess
    return {
        "num_images": result.num_images,
        "hits": result.hits,
        "heldout_hits": result.heldout_hits,
        "excess": excess and {"share": excess.share, "interval": list(excess.interval)},
        "unique": result.unique,
        "threshold": result.threshold,
        "false_positive_rate": result.false_positive_rate,
        "true_rate_interval": list(result.true_rate_interval),
        "metric": result.metric,
        "features": result.features,
        "warnings": list(result.warnings),
        "counts": dict(result._counts),
        "inputs": dict(result._inputs),
        "seed": SEED,
        **{name: made[name] for name in ("git", "python", "packages", "finished")},
    }


def table(result: Result) -> str:
    """The finding, excess, hits, held-out hits, different images, and what a hit is."""
    attack = result._attack("generated")
    lines = [words.finding(attack), "", _row("", ("count", "share", "95 % interval"))]
    lines += _rows(attack)
    legend = (
        f"A hit has {words.hit_rule(attack)} ({attack.transform}) to its nearest training image; "
        f"{words.rate(result.false_positive_rate)} of the held-out {attack.unit}s reach it."
    )
    warnings = [f"warning: {text}" for text in result.warnings]
    return "\n".join([*lines, "", *wrapped(legend), *warnings])


def _rows(attack: Attack) -> list[str]:
    sizes, near = attack.results["num_reference"], attack.results["near_duplicates"]
    n = attack.num_images
    shares = {
        f"hits on {words.count(sizes['train'])} training images": (attack.hits(), "train"),
        "held-out hits": (attack.heldout_hits, "heldout"),
    }
    rows = [
        _row(title, (words.average(number), _percent(number / n, n), _interval(attack, which)))
        for title, (number, which) in shares.items()
    ]
    shown = (f"{words.excess_share(attack)} %", f"{words.excess_interval(attack)} %")
    excess = (words.COLLAPSED, "", "") if attack.collapse else (words.signed_excess(attack), *shown)
    return [
        _row("excess of hits over held-out hits", excess),
        *rows,
        _row(f"different training {attack.unit}s", (words.count(attack.unique), "", "")),
        _row("generated images", (words.count(n), "", "")),
        _row("  of them near duplicates of others", (words.count(near["generated"]), "", "")),
    ]


def _percent(share: float, num_images: int) -> str:
    return f"{words.percent(share, num_images)} %"


def _interval(attack: Attack, which: str) -> str:
    low, high = (
        words.percent(end, attack.num_images) for end in attack.headline[which]["interval"]
    )
    return f"{low} to {high} %"


def _row(title: str, cells: tuple[str, str, str]) -> str:
    count, share, interval = cells
    return f"{title:<36}{count:>8}{share:>9}  {interval}".rstrip()
