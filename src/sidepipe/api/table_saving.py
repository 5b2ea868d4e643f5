"""The files of a comparison of tables, and its numbers in plain text and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.api.result import Estimate
from sidepipe.api.saving import described, foot, head, row
from sidepipe.base.files import require_free, whole_file, write_json, write_table
from sidepipe.stages.report import words
from sidepipe.stages.report.document import template_of
from sidepipe.stages.report.terminal import wrapped

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.api.table_result import TableResult

NUM_PAIRS = 20  # of the page
ALONE = (
    "Exact copies, the share closer to training rows and the published measures need the held-out "
    "column: held-out rows have them as well. Without memorization, 50 % of the generated rows are "
    "closer to training rows than to held-out rows, and the published measures of generated and of "
    "held-out rows are equal."
)


def save(result: TableResult, folder: Path, arguments: Mapping[str, object]) -> Path:
    """Writes report.html, rows.csv and result.json."""
    require_free("folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    result.report(folder / "report.html")
    with whole_file(folder / "rows.csv") as temporary:
        listed = result.rows.astype({"hit": int, "exact": int})
        write_table(temporary, listed)
    write_json(folder / "result.json", described(result) | result._numbers() | dict(arguments))
    return folder


def table(result: TableResult) -> str:
    """The finding, hits, exact copies and published measures with their held-out values."""
    attack = result._attack("generated")
    lines = [*head(attack), *(row(*line) for line in _copies(result)), ""]
    lines.append(f"{'published measures':<36}{'generated':>11}{'held-out':>11}  difference")
    lines += [f"{n:<36}{a:>11}{b:>11}  {c}" for n, a, b, c in _published(result)]
    return "\n".join([*lines, "", *wrapped(ALONE), *foot(attack, result.warnings)])


def page(result: TableResult, title: str) -> str:
    """The page as HTML."""
    attack = result._attack("generated")
    return template_of("rows.html.j2").render(
        title=title,
        finding=words.finding(attack),
        notices=result.warnings,
        numbers="\n".join([*head(attack)[2:], *(row(*line) for line in _copies(result))]),
        published=_published(result),
        about=[" ".join(foot(attack, ())), ALONE],
        columns=list(result._real["train"].columns),
        pairs=_pairs(result),
    )


def _copies(result: TableResult) -> list[tuple[str, tuple[str, str, str]]]:
    n = result.num_images
    held, exact = result.exact_heldout, result.exact_excess
    interval = _interval(exact)
    different = result._counts["num_generated"]
    near, held_near = result.hits - result.exact, max(0.0, result.heldout_hits - held)
    return [
        ("  different ones", (words.count(different), "", "")),
        ("exact copies of training rows", (words.count(result.exact), _share(result.exact, n), "")),
        ("exact copies of held-out rows", (words.average(held), _share(held, n), "")),
        ("  excess of exact copies", ("", f"{100 * exact.share:.2f} %", interval)),
        ("near copies of training rows", (words.count(near), _share(near, n), "")),
        ("near copies of held-out rows", (words.average(held_near), _share(held_near, n), "")),
        ("closer to training than held-out", ("", *_estimate(result.closer))),
    ]


def _published(result: TableResult) -> list[tuple[str, str, str, str]]:
    """Name, generated rows, held-out rows and the difference of each published measure."""
    one, other = result.ratio, result.scaled_ratio
    return [
        ("ratio of distances below 1/3", *_compared(one.generated, one.heldout, one.excess)),
        ("  units: range of each column", *_compared(other.generated, other.heldout, other.excess)),
        ("Mem-AUC", *_compared(one.area, one.heldout_area, one.area_excess)),
        (
            "  units: range of each column",
            *_compared(other.area, other.heldout_area, other.area_excess),
        ),
    ]


def _compared(generated: Estimate, heldout: Estimate, excess: Estimate) -> tuple[str, str, str]:
    shares = (f"{100 * one.share:.1f} %" for one in (generated, heldout))
    difference = f"{100 * excess.share:+.1f} %, 95 % interval {_interval(excess)}"
    return (*shares, difference)  # type: ignore[return-value]


def _estimate(one: Estimate) -> tuple[str, str]:
    return f"{100 * one.share:.1f} %", _interval(one)


def _interval(one: Estimate) -> str:
    low, high = (100 * end for end in one.interval)
    return f"{low:.1f} to {high:.1f} %"


def _share(number: float, of: int) -> str:
    return f"{100 * number / of:.2f} %"


def _pairs(result: TableResult) -> list[dict[str, Any]]:
    """The closest generated rows, each of a different training row, next to that row."""
    listed: Any = result.rows.sort_values(["distance", "row"], kind="stable")
    listed = listed.drop_duplicates("train_row").head(NUM_PAIRS)
    found: list[dict[str, Any]] = listed[["row", "train_row", "distance", "hit"]].to_dict("records")
    for pair in found:
        generated = _texts(result._real["generated"], pair["row"])
        train = _texts(result._real["train"], pair["train_row"])
        pair["cells"] = list(zip(generated, train, strict=True))
    return found


def _texts(rows: pd.DataFrame, number: int) -> list[str]:
    """The values of a row, numbered from 1, as text with all their digits; "" for a missing one."""
    values = rows.iloc[number - 1]
    return ["" if _missing(v) else f"{v:.15g}" if isinstance(v, float) else str(v) for v in values]


def _missing(value: Any) -> bool:
    return value is None or value != value
