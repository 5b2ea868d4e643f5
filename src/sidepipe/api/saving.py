"""The files of a comparison, and its numbers as a table in plain text."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
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
    write_json(folder / "result.json", described(result) | dict(arguments))
    return folder


def described(result: Result) -> dict[str, Any]:
    """The numbers of result.json."""
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
    near = attack.results["near_duplicates"]["generated"]
    lines = [*head(attack), row("  of them near duplicates of others", (words.count(near), "", ""))]
    return "\n".join([*lines, "", *foot(attack, result.warnings)])


def head(attack: Attack) -> list[str]:
    """The finding and the lines of the table."""
    return [words.finding(attack), "", row("", ("count", "share", "95 % interval")), *_rows(attack)]


def foot(attack: Attack, warnings: Sequence[str]) -> list[str]:
    """The lines that explain a hit, and the warnings."""
    legend = (
        f"A hit has {words.hit_rule(attack)} ({attack.transform}) to its nearest training "
        f"{attack.item}; {words.rate(attack.headline['false_positive_rate'])} of the held-out "
        f"{attack.unit}s reach it."
    )
    return [*wrapped(legend), *(f"warning: {text}" for text in warnings)]


def _rows(attack: Attack) -> list[str]:
    sizes, n = attack.results["num_reference"], attack.num_images
    shares = {
        f"hits on {words.count(sizes['train'])} training {attack.item}s": (attack.hits(), "train"),
        "held-out hits": (attack.heldout_hits, "heldout"),
    }
    rows = [
        row(title, (words.average(number), _percent(number / n, n), _interval(attack, which)))
        for title, (number, which) in shares.items()
    ]
    shown = (f"{words.excess_share(attack)} %", f"{words.excess_interval(attack)} %")
    excess = (words.COLLAPSED, "", "") if attack.collapse else (words.signed_excess(attack), *shown)
    return [
        row("excess of hits over held-out hits", excess),
        *rows,
        row(f"different training {attack.unit}s", (words.count(attack.unique), "", "")),
        row(f"generated {attack.item}s", (words.count(n), "", "")),
    ]


def _percent(share: float, num_images: int) -> str:
    return f"{words.percent(share, num_images)} %"


def _interval(attack: Attack, which: str) -> str:
    low, high = (
        words.percent(end, attack.num_images) for end in attack.headline[which]["interval"]
    )
    return f"{low} to {high} %"


def row(title: str, cells: tuple[str, str, str]) -> str:
    """A line of the table: count, share and interval."""
    count, share, interval = cells
    return f"{title:<36}{count:>8}{share:>9}  {interval}".rstrip()
