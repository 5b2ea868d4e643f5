"""Writes the numbers of `make demo` into README.md and docs/results/demo.md: `make docs`.

The numbers are kept in docs/results/demo.json; the table that both pages show between two marks is
made from that file alone, which a test checks.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from sidepipe.cli.main import CONF
from sidepipe.engine.artifacts import Artifact, read_manifest
from sidepipe.engine.plan import plan
from sidepipe.stages.report.comparison import read_attacks
from sidepipe.stages.report.rows import described

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = ROOT / "docs" / "results" / "demo.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results" / "demo.md")
BEGIN, END = "<!-- begin: written by make docs -->\n", "<!-- end: written by make docs -->"


def collected(report: Path, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """The numbers of a finished report of the demo, with where and when it was made.

    inputs: the evaluate artifact of each row, in the order of the rows.
    """
    manifest = read_manifest(report)
    assert manifest is not None
    attacks = read_attacks(inputs)
    made = {read for folder in inputs.values() for read in Artifact(folder).lineage()}
    rows = [
        {
            "row": attack.name,
            "how": described(attack),
            "images": attack.num_images,
            "hits": attack.hits(),
            "heldout_hits": attack.heldout_hits,
            "excess": attack.excess_share,
            "excess_interval": list(attack.excess_interval),
            "different": attack.unique,
            "new": attack.new_unique,
            "evaluations": attack.network_evaluations,
        }
        for attack in attacks
    ]
    first = attacks[0]
    return {
        "rows": rows,
        "false_positive_rate": first.headline["false_positive_rate"],
        "num_train": first.results["num_reference"]["train"],
        "seed": first.settings["seed"],
        "commit": (manifest["git"] or {}).get("commit", "unknown")[:10],
        "finished": manifest["finished"][:10],
        "seconds": round(sum(read.manifest["seconds"] for read in made)),
        "torch": manifest["packages"]["torch"],
        "cpus": manifest["machine"]["cpus"],
        "device": manifest["device"],
    }


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown, and the line that says where the numbers come from."""
    heads = ["row", "hits", "held-out hits", "excess (95 % interval)", "different training images"]
    lines = [[*heads, "evaluations per image"], ["---"] * (1 + len(heads))]
    for row in found["rows"]:
        low, high = (f"{100 * end:.1f}" for end in row["excess_interval"])
        excess = f"{100 * row['excess']:.1f} % ({low} to {high})"
        images = f"{row['different']:,.0f} of {found['num_train']:,}"
        cost = f"{row['evaluations'] / row['images']:.0f}"
        hits = [f"{row['hits']:,.0f}", f"{row['heldout_hits']:,.3g}"]
        lines.append([f"`{row['row']}`: {row['how']}", *hits, excess, images, cost])
    images = sorted({row["images"] for row in found["rows"]})
    made = " or ".join(f"{number:,}" for number in images)
    said = (
        f"\nEach row makes {made} images; a hit is as close to a training image as "
        f"{100 * found['false_positive_rate']:g} % of real unseen images are.\n"
        f"Seed {found['seed']}, commit {found['commit']}, {found['finished']}, torch "
        f"{found['torch']}, {found['device']} of {found['cpus']} processors; the stages took "
        f"{found['seconds']:,} s together.\n"
    )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + said


def placed(page: str, text: str) -> str:
    """The page with `text` between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}{text}{END}{rest.split(END)[1]}"


def main() -> None:
    """Reads the report that `make demo` made and writes file, pages and picture."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        the_plan = plan(compose("config", ["experiment=demo"]))
    (goal,) = the_plan.goals("report")
    report = goal.folder(the_plan.runtime)
    inputs = {name: node.folder(the_plan.runtime) for name, node in goal.inputs.items()}
    NUMBERS.write_text(json.dumps(collected(report, inputs), indent=2) + "\n")
    shutil.copyfile(report / "figures" / "pairs.png", NUMBERS.with_suffix(".png"))
    for page in PAGES:
        text = table(json.loads(NUMBERS.read_text()))
        page.write_text(placed(page.read_text(), text))


if __name__ == "__main__":
    main()
