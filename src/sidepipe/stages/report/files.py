"""The report's files for papers and pages: its tables, and all numbers unrounded."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.words import DASH, NBSP

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "±": r"$\pm$",
    DASH: "--",
    NBSP: "~",
}


def write_table(folder: Path, table: Table) -> None:
    """Writes `<name>.csv`, `.md` and `.tex` (package booktabs) with the cells of the page.

    In CSV and Markdown a column's name begins with its group's heading, since columns of two
    groups may have one name.
    """
    with (folder / f"{table.name}.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_lines(table))
    (folder / f"{table.name}.md").write_text(markdown(table), encoding="utf-8")
    (folder / f"{table.name}.tex").write_text(latex(table), encoding="utf-8")


def _lines(table: Table) -> list[list[str]]:
    """The table as plain text, its head first."""
    headings = [heading for heading, span in table.groups for _ in range(span)]
    names = [f"{h}: {c}" if h else c for h, c in zip(headings, table.columns, strict=True)]
    lines = [[table.head, *names], *([name, *cells] for name, cells in table.rows)]
    return [[cell.replace(NBSP, " ") for cell in line] for line in lines]


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown."""
    head, *rows = [
        [" ".join(cell.splitlines()).replace("|", r"\|") for cell in line] for line in _lines(table)
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(table: Table) -> str:
    """A `tabular` with rules of booktabs, its caption as a comment."""
    groups, rules, column = [], [], 2
    for heading, span in table.groups:
        groups.append(rf"\multicolumn{{{span}}}{{c}}{{{escaped(heading)}}}")
        rules.append(rf"\cmidrule(lr){{{column}-{column + span - 1}}}" if heading else "")
        column += span
    head = [table.head, *table.columns]
    lines = [f"% {table.caption}", rf"\begin{{tabular}}{{l{'r' * (column - 2)}}}"]
    lines += [r"\toprule", rf" & {' & '.join(groups)} \\", "".join(rules)]
    lines += [" & ".join(map(escaped, head)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(escaped, [name, *cells])) + r" \\" for name, cells in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def escaped(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.splitlines()))


def write_numbers(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes all numbers unrounded, one row per attack; missing values are empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def numbers(attack: Attack) -> dict[str, Any]:
    """The attack's settings and every number of its results, under the same names.

    `calibrated_0.001_train_count` is `train.count` of the row of rate 0.001. The two ends of an
    interval end in `_low` and `_high`, KID's mean and deviation in `_mean` and `_std`. Curves are
    left out: figures show them, results.json has them.
    """
    guidance = ("guidance_scale", "guidance_schedule", "max_guidance_norm", "guide_through")
    guidance += ("t_min", "t_max", "targets", "target_fraction")
    row: dict[str, Any] = {"attack": attack.name, "key": attack.manifests["evaluate"]["key"]}
    row |= {"surrogate": attack.settings["surrogate"]}
    row |= {name: attack.settings.get(name) if attack.guided else None for name in guidance}
    results = dict(attack.results)
    found = results.pop("calibrated", [])
    results["calibrated"] = {f"{row['false_positive_rate']:g}": row for row in found}
    return row | flat(results)


def flat(results: Mapping[str, Any]) -> dict[str, Any]:
    """Every single number of `results` by its path, as `numbers` names them."""
    return dict(_flat("", results))


def _flat(name: str, value: Any) -> list[tuple[str, Any]]:
    """Single values within `value` with their paths; from lists, only intervals and the like."""
    if isinstance(value, Mapping):
        join = f"{name}_" if name else ""
        return [pair for key, inner in value.items() for pair in _flat(f"{join}{key}", inner)]
    if isinstance(value, list):
        return [(f"{name}_{end}", inner) for end, inner in zip(_ends(name), value, strict=False)]
    return [(name, value)]


def _ends(name: str) -> tuple[str, ...]:
    if name.startswith("quality_kid_"):
        return ("mean", "std")
    return ("low", "high") if name.endswith(("interval", "band")) else ()
