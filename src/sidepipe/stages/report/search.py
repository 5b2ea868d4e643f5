"""The report's section on searches: the training images that prompts of a search replay."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sidepipe.stages.report.figures import drawn, handle, legend
from sidepipe.stages.report.section import Section, rows_of
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.terminal import wrapped
from sidepipe.stages.report.words import DASH, count
from sidepipe.stages.search.stage import load, load_found

NAMES = {
    "search": "found by the search",
    "random_prompts": "random prompts",
    "training_captions": "training captions",
}
SHOWN = 20


def section(folder: Path) -> Section:
    """The report's section on a search."""
    results, found = load(folder), rows_of(load_found(folder))
    sources = {name: results["sources"][name] for name in NAMES if name in results["sources"]}
    known = sources["search"]["different"] is not None
    best = sorted(found, key=lambda row: -row["score"])[:SHOWN]
    content = {"method": results["search_method"], "sources": sources, "known": known, "best": best}
    return Section(
        tables=[sources_table(sources)],
        drawings={"recall": drawn(partial(recall_figure, sources))} if known else {},
        content={"search": content},
        numbers={"found_prompts": found},
        text=_text(sources),
        summary={name: of["different"] for name, of in sources.items()},
    )


def sources_table(sources: Mapping[str, Mapping[str, Any]]) -> Table:
    """The images that each source of prompts replays, and its cost."""
    groups = [("prompts", 2), ("training images", 2), ("cost", 1)]
    columns = ["number", "memorized", "different", "share of known ones, %", "evaluations"]
    rows = []
    for name, of in sources.items():
        cells = [count(of["prompts"]), *[DASH] * 3, count(of["evaluations"])]
        if of["different"] is not None:
            cells[1:3] = count(of["memorized"]), count(of["different"])
        if of.get("recall") is not None:
            cells[3] = f"{100 * of['recall']:.0f}"
        rows.append((NAMES[name], cells))
    return Table("search", "Images that prompts replay", groups, columns, rows, head="source")


def recall_figure(sources: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The number of different training images by network evaluations."""
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axis, handles = figure.subplots(), []
    for number, (name, of) in enumerate(sources.items()):
        shown = handle(NAMES[name], number, marker="none")
        line = {"color": shown.get_color(), "linestyle": shown.get_linestyle()}
        evaluations, images, _ = zip(*of["curve"], strict=True)
        axis.step(evaluations, images, where="post", **line)
        handles.append(shown)
    axis.set_xlabel("network evaluations")
    axis.set_ylabel("different training images")
    axis.set_ylim(bottom=0)
    legend(figure, handles, loc="outside right upper")
    return figure


def _text(sources: Mapping[str, Mapping[str, Any]]) -> str:
    of = sources["search"]
    if of["different"] is None:
        return "Search: no training images are available to compare with.\n"
    others = ", ".join(
        f"{NAMES[name]}: {other['different']} ({count(other['evaluations'])} evaluations)"
        for name, other in sources.items()
        if name != "search"
    )
    text = (
        f"Search: {of['prompts']} prompts replay {of['different']} different training images "
        f"({count(of['evaluations'])} evaluations); {others}."
    )
    return "\n".join(wrapped(text)) + "\n"
