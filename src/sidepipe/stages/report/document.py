"""A report as files: one page for a person, tables and figures for a paper, text for a terminal.

There are no dates: the same content gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidepipe.stages.report.tables import Table

PAGE, TABLE = "report.html", "table.txt"


def write(
    folder: Path,
    template: str,
    tables: Sequence[Table],
    drawings: Mapping[str, dict[str, bytes]],
    numbers: Mapping[str, Sequence[Mapping[str, Any]]],
    text: str,
    content: Mapping[str, Any],
) -> None:
    """Writes report.html, table.txt, tables/ and figures/ into `folder`.

    drawings: SVG and PDF of each figure. numbers: rows of each tables/<name>.csv, unrounded. text:
    for a terminal. content: the values that the template uses in addition to `tables` and
    `figures`.
    """
    from sidepipe.stages.report import figures, files
    from sidepipe.stages.report.pictures import data_uri

    for name in ("tables", "figures"):
        (folder / name).mkdir(exist_ok=True)
    for name, rows in numbers.items():
        files.write_numbers(folder / "tables" / f"{name}.csv", rows)
    for table in tables:
        files.write_table(folder / "tables", table)
    for name, drawing in drawings.items():
        figures.save(folder / "figures", name, drawing)
    (folder / TABLE).write_text(text, encoding="utf-8")
    shown = {name: data_uri(drawing["svg"], "svg+xml") for name, drawing in drawings.items()}
    named = {table.name: table for table in tables}
    page = template_of(template).render(tables=named, figures=shown, **content)
    (folder / PAGE).write_text(page, encoding="utf-8")


def template_of(name: str) -> Any:
    """The template with the filters that it uses."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from sidepipe.stages.report import words

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    known = (words.count, words.percent, words.rate, words.rate_interval, words.parameters)
    known += (words.finding, words.share, words.decimals, words.with_interval, words.reproduced)
    known += (words.epochs, words.excess_interval, words.excess_images, words.threshold_rule)
    known += (words.evaluations, words.average, words.signed_excess, words.heldout_sets)
    environment.filters |= {function.__name__: function for function in known}
    return environment.get_template(name)


def load_table(folder: Path) -> str:
    """The report in plain text, for a terminal."""
    return (folder / TABLE).read_text(encoding="utf-8").rstrip()


def page_path(folder: Path) -> Path:
    """The path of the page."""
    return folder / PAGE
