"""The report's section on canaries: how often training must see an image to leak it."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sidepipe.engine.artifacts import Artifact
from sidepipe.memorization.canaries import exposure_by_chance
from sidepipe.stages.canaries.stage import load, load_table
from sidepipe.stages.report import words
from sidepipe.stages.report.figures import HELDOUT, TRAIN, drawn
from sidepipe.stages.report.section import Section, rows_of
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.terminal import wrapped
from sidepipe.stages.report.words import DASH, count
from sidepipe.stages.search.stage import load_found

BY = {"triggers": "by their trigger", "images": "among the synthetic images"}


def section(folder: Path, search: Path | None = None) -> Section:
    """The report's section on canaries. search: the artifact of a search on the same model."""
    results, canaries = load(folder), load_table(folder)
    rows = results["by_repeats"]
    if search is not None and (found := found_rows(search)) is not None:
        for row in rows:
            some = canaries.index[canaries["repeats"] == row["repeats"]]
            row["search"] = {"count": len(found.intersection(some.tolist())), "of": len(some)}
    chance = exposure_by_chance(results["num_candidates"])
    answer = answers(results, chance)
    content = {"results": results, "answer": answer, "chance": chance, "by": BY[results["kind"]]}
    return Section(
        tables=[repeats_table(results)],
        drawings={"canaries": drawn(partial(repeats_figure, rows))},
        content={"canaries": content},
        numbers={"canaries": rows_of(canaries.reset_index())},
        text="\n".join(wrapped("Canaries: " + " ".join(answer))) + "\n",
        summary={"leaks_from": results["leaks_from"]},
    )


def found_rows(search: Path) -> set[int] | None:
    """The training images that the search's prompts replay; None without training images."""
    table, settings = load_found(search), Artifact(search).settings
    if "nearest" not in table:
        return None
    least = np.ceil(round(settings["copied_share"] * settings["num_generations"], 9))
    return set(table.loc[table["copies"] >= least, "nearest"].tolist())


def answers(results: Mapping[str, Any], chance: float) -> list[str]:
    """The findings as sentences."""
    rows, by, fewest = results["by_repeats"], BY[results["kind"]], results["leaks_from"]
    [control] = [row for row in rows if row["repeats"] == 0]
    trained = [row for row in rows if row["repeats"] > 0]
    without = f"{_of(control['extracted'])} controls, which were never trained on"
    if fewest is None:
        most = trained[-1]
        found = (
            f"No tested number of repeats leaks: {_of(most['extracted'])} canaries that training "
            f"repeats {_times(most['repeats'])} per epoch are extracted {by}, and {without}. "
            f"{most['extracted']['of']} canaries cannot exclude a share below "
            f"{100 * most['extracted']['interval'][1]:.0f} %."
        )
    else:
        [first] = [row for row in rows if row["repeats"] == fewest]
        seen, epochs = "", results["epochs"]
        if epochs is not None:
            seen = f" ({count(round(fewest * epochs))} times in all)"
        found = (
            f"An image that training repeats {_times(fewest)} per epoch{seen} leaks: "
            f"{_of(first['extracted'])} canaries are extracted {by}, and {without}."
        )
    exposed = [row["repeats"] for row in trained if row["exposure"]["interval"][0] > chance]
    traces = "No number of repeats shows more exposure than chance."
    if exposed:
        traces = (
            f"The model has traces from {_times(min(exposed))} per epoch: the mean exposure is "
            f"above the {chance:.1f} bits of chance."
        )
    return [found, traces]


def _of(found: Mapping[str, Any]) -> str:
    return f"{count(found['count'])} of {count(found['of'])}"


def _times(repeats: int) -> str:
    return "once" if repeats == 1 else f"{count(repeats)} times"


def repeats_table(results: Mapping[str, Any]) -> Table:
    """Extraction and exposure by repeats."""
    groups = [("canaries", 1), (f"extracted {BY[results['kind']]}", 3), ("exposure, bits", 1)]
    columns = ["seen in all", "number", "share, % (95 % interval)", "copies, % of images"]
    columns.append("mean (95 % interval)")
    searched = any("search" in row for row in results["by_repeats"])
    if searched:
        groups.append(("extracted by the search", 1))
        columns.append("number")
    rows = []
    for row in results["by_repeats"]:
        seen = DASH
        if results["epochs"] is not None:
            seen = count(round(row["repeats"] * results["epochs"]))
        exposure, images = row["exposure"], row["images"]
        cells = [seen, _of(row["extracted"]), words.share(row["extracted"])]
        cells.append(f"{100 * images['mean']:.2g}")
        cells.append(words.with_interval(exposure["mean"], exposure["interval"], 1))
        cells += [_of(row["search"])] if searched else []
        name = f"{count(row['repeats'])} per epoch" if row["repeats"] else "0 (controls)"
        rows.append((name, cells))
    return Table("canaries", "Canaries by repeats", groups, columns, rows, head="repeats")


def repeats_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Extracted canaries and exposure by repeats."""
    figure = Figure(figsize=(6.4, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = range(len(rows))
    for axis, name, scale in ((left, "extracted", 100), (right, "exposure", 1)):
        for place, row in zip(places, rows, strict=True):
            found, color = row[name], TRAIN if row["repeats"] else HELDOUT
            value = found["share"] if name == "extracted" else found["mean"]
            axis.plot([place] * 2, [scale * end for end in found["interval"]], color=color)
            axis.plot(place, scale * value, "o", color=color, markersize=5)
        axis.set_xticks(places, [count(row["repeats"]) for row in rows])
        axis.set_xlabel("repeats per epoch")
    left.set_ylabel("extracted canaries, %")
    left.set_ylim(-3, 103)
    right.set_ylabel("exposure, bits")
    return figure
