"""Stage `report`: the comparison of attacks as one page, a table for the terminal, and files.

Everything is computed from the artifacts of evaluate and what they were made from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sidepipe.evaluate.stage import load_gallery
from sidepipe.report import content
from sidepipe.report.attack import Attack
from sidepipe.report.comparison import read_attacks
from sidepipe.report.document import load_table as load_table
from sidepipe.report.document import page_path as page_path
from sidepipe.report.document import write
from sidepipe.report.files import numbers
from sidepipe.report.pictures import pairs_png
from sidepipe.report.terminal import terminal_table
from sidepipe.stage import Runtime, Stage


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
        write(
            folder,
            "page.html.j2",
            tables=content.tables(attacks),
            drawings=content.drawings(attacks),
            numbers=list(map(numbers, attacks)),
            text=terminal_table(attacks),
            content={"title": self.title, **content.sections(attacks)},
        )
        if attacks[0].has_truth:
            pairs = pairs_png([(a.name, load_gallery(a.folder)[0]) for a in attacks])
            (folder / "figures" / "pairs.png").write_bytes(pairs)
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
        "new_unique": attack.new_unique,
        "network_evaluations": attack.network_evaluations,
    }
