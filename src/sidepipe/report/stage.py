"""Stage `report`: the comparison of attacks as one page, a table for the terminal, and files.

Everything is computed from the artifacts of evaluate and what they were made from, and nothing from
a clock: the same artifacts give the same bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sidepipe.evaluate.stage import load_gallery
from sidepipe.report import content, figures, files, words
from sidepipe.report.attack import Attack
from sidepipe.report.comparison import read_attacks
from sidepipe.report.pictures import data_uri, pairs_png
from sidepipe.report.terminal import terminal_table
from sidepipe.stage import Runtime, Stage

PAGE, TABLE = "report.html", "table.txt"


@dataclass(frozen=True, kw_only=True)
class Report(Stage):
    """The comparison. Its inputs are evaluate artifacts by attack; their order is that of the rows.

    title: the page's heading.
    """

    name: ClassVar[str] = "report"
    version: ClassVar[int] = 3
    title: str

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        attacks = read_attacks(inputs)
        for name in ("tables", "figures"):
            (folder / name).mkdir(exist_ok=True)
        files.write_numbers(folder / "tables" / "attacks.csv", attacks)
        tables = content.tables(attacks)
        for table in tables.values():
            files.write_table(folder / "tables", table)
        drawings = content.drawings(attacks)
        for name, drawing in drawings.items():
            figures.save(folder / "figures", name, drawing)
        if attacks[0].has_truth:
            pairs = pairs_png([(a.name, load_gallery(a.folder)[0]) for a in attacks])
            (folder / "figures" / "pairs.png").write_bytes(pairs)
        (folder / TABLE).write_text(terminal_table(attacks), encoding="utf-8")
        pictures = {name: data_uri(found["svg"], "svg+xml") for name, found in drawings.items()}
        page = _template().render(
            title=self.title, tables=tables, figures=pictures, **content.sections(attacks)
        )
        (folder / PAGE).write_text(page, encoding="utf-8")
        return {"attacks": {attack.name: _headline(attack) for attack in attacks}}


def _headline(attack: Attack) -> dict[str, Any]:
    if not attack.has_truth:
        found = attack.results["blind"]
        return {name: found[name] for name in ("num_candidates", "groups", "largest")}
    return {
        "num_images": attack.num_images,
        "false_positive_rate": attack.headline["false_positive_rate"],
        "hits": attack.hits(),
        "heldout_hits": attack.hits("heldout"),
        "excess": attack.excess,
        "excess_interval": list(attack.excess_interval),
        "unique": attack.unique,
        "new_unique": attack.results["novelty"]["new"]["unique"],
        "network_evaluations": attack.network_evaluations,
    }


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    known = (words.count, words.percent, words.rate, words.rate_interval, words.parameters)
    known += (words.epochs, words.excess_interval, words.excess_images, words.threshold_rule)
    environment.filters |= {function.__name__: function for function in known}
    return environment.get_template("page.html.j2")


def load_table(folder: Path) -> str:
    """The comparison in plain text, for a terminal."""
    return (folder / TABLE).read_text(encoding="utf-8").rstrip()


def page_path(folder: Path) -> Path:
    """The page."""
    return folder / PAGE
