"""The report's section on mitigation: the effect of each method, its cost, its robustness."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sidepipe.engine.artifacts import Artifact
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.mitigate.stage import load, load_generated, load_prompts_asked
from sidepipe.stages.report import words
from sidepipe.stages.report.figures import HELDOUT, TRAIN, drawn, legend
from sidepipe.stages.report.files import flat
from sidepipe.stages.report.gallery import sides
from sidepipe.stages.report.pictures import thumbnail_uri
from sidepipe.stages.report.section import Rows, Section, rows_of
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.terminal import aligned, wrapped
from sidepipe.stages.report.words import DASH, NBSP, count

GALLERY_PROMPTS, GALLERY_IMAGES = 12, 2
PREFIX = "mitigate "


@dataclass(frozen=True)
class Mitigation:
    """The results of one mitigate artifact. name: of its row."""

    name: str
    artifact: Artifact
    results: dict[str, Any]
    prompts: Rows

    @property
    def dpm(self) -> str:
        """The key of the model, which methods in training change."""
        return self.artifact.inputs["dpm"].key

    @property
    def memorized(self) -> dict[str, Any] | None:
        """The count of prompts that are still memorized; None without training images."""
        found = self.results["memorized"]
        return None if found is None else found["memorized"]["prompts"]

    def by_use(self) -> list[dict[str, Any]]:
        """The counts for prompts that the method used, and for others; [] without such prompts."""
        found = self.results["memorized"] or {}
        parts = ("memorized_used", "memorized_heldout")
        return [found[part]["prompts"] for part in parts if part in found]

    def recovered(self, group: str) -> dict[str, Any] | None:
        """The count of prompts of `group` whose target image the adversary's embedding recovers."""
        found = self.results["adversary"]
        return None if found is None else found[group]["after"]["prompts"]

    def shots(self, number: int) -> list[str]:
        """Thumbnails of the first images of the prompt of this number."""
        place = [row["number"] for row in self.prompts].index(number)
        return [
            thumbnail_uri(i) for i in load_generated(self.artifact.folder)[place][:GALLERY_IMAGES]
        ]

    def training_image(self, row: Mapping[str, Any]) -> str | None:
        """A thumbnail of the training image that the prompt replays without mitigation."""
        if row["nearest"] < 0:
            return None
        data = self.artifact.inputs["data"]
        return thumbnail_uri(load_images(data.folder)[row["nearest"]])


def section(inputs: Mapping[str, Path]) -> Section:
    """The report's section on mitigation. inputs: mitigate artifacts by row."""
    methods = [read(name, folder) for name, folder in inputs.items()]
    draw = {"mitigations": drawn(partial(mitigations_figure, methods))}
    return Section(
        tables=[left_table(methods), price_table(methods), *benchmark_tables(methods)],
        drawings=draw if methods[0].memorized is not None else {},
        content={"mitigation": _content(methods)},
        numbers={"mitigations": [_numbers(method) for method in methods]},
        text=_text(methods),
        summary={method.name: _headline(method) for method in methods},
    )


def read(name: str, folder: Path) -> Mitigation:
    """One row; FileNotFoundError if its artifact is not finished."""
    prompts = rows_of(load_prompts_asked(folder))
    return Mitigation(name.removeprefix(PREFIX), Artifact(folder), load(folder), prompts)


def baseline(methods: Sequence[Mitigation]) -> Mitigation | None:
    """The row without a method, on the model that detect examined; None if there is none."""
    found_on = methods[0].artifact.inputs["detect"].inputs["dpm"].key
    for method in methods:
        if method.results["method"] == "none" and method.dpm == found_on:
            return method
    return None


def left_table(methods: Sequence[Mitigation]) -> Table:
    """Prompts still memorized with each method, and those that an adversary recovers."""
    groups = [("prompts still memorized", 3), ("recovered by an adversary, %", 2)]
    columns = ["number", "share, % (95 % interval)", "relative to no method"]
    columns += ["images of memorized prompts", "images never trained on"]
    before = baseline(methods)
    rows = [(method.name, _left_row(method, before)) for method in methods]
    if any(method.by_use() for method in methods):
        groups.append(("still memorized, % (95 % interval)", 2))
        columns += ["prompts that the method used", "other memorized prompts"]
        for method, (_, cells) in zip(methods, rows, strict=True):
            cells += [words.share(of) for of in method.by_use()] or [DASH] * 2
    return Table(
        "mitigations_left", "Memorization left by each method", groups, columns, rows, "method"
    )


def _left_row(method: Mitigation, before: Mitigation | None) -> list[str]:
    found, cells = method.memorized, [DASH] * 3
    if found is not None:
        cells = [f"{count(found['count'])} of {count(found['of'])}", words.share(found)]
        cells.append(_relative(method, before, lambda m: (m.memorized or {}).get("share")))
    recovered = [method.recovered(group) for group in ("memorized", "other")]
    return [*cells, *(DASH if of is None else words.share(of) for of in recovered)]


def price_table(methods: Sequence[Mitigation]) -> Table:
    """The cost of each method: alignment, the model's quality and network evaluations."""
    groups = [("alignment (95 % interval)", 3), ("quality (95 % interval)", 1), ("cost", 1)]
    columns = ["memorized prompts", "relative to no method", "prompts never trained on"]
    columns += ["held-out denoising loss", "evaluations per image"]
    before = baseline(methods)
    rows = [(method.name, _price_row(method, before)) for method in methods]
    return Table("mitigations_price", "The cost of each method", groups, columns, rows, "method")


def _price_row(method: Mitigation, before: Mitigation | None) -> list[str]:
    ours, theirs = (method.results["alignment"][group] for group in ("memorized", "other"))
    cells = [words.with_interval(ours["mean"], ours["interval"], 3)]
    cells.append(_relative(method, before, lambda m: m.results["alignment"]["memorized"]["mean"]))
    cells.append(words.with_interval(theirs["mean"], theirs["interval"], 3))
    loss = method.results["heldout_loss"] or {"mean": None, "interval": None}
    cells.append(words.with_interval(loss["mean"], loss["interval"], 4))
    return [*cells, f"{method.results['evaluations_per_image']:,.1f}"]


def benchmark_tables(methods: Sequence[Mitigation]) -> list[Table]:
    """All measures of each method, as means over images; none without training images."""
    if methods[0].results["by_image"] is None:
        return []
    groups = [("images that prompts replayed", 4), ("prompts never trained on", 2), ("model", 2)]
    columns = ["still memorized, %", "recovered by an adversary, %", "gamma", "alignment"]
    columns += ["alignment", "KID", "held-out loss", "evaluations per image"]
    rows = [(method.name, _benchmark_row(method)) for method in methods]
    caption = "Benchmark: means over images (95 % interval, clusters are images)"
    return [Table("mitigations_benchmark", caption, groups, columns, rows, "method")]


def _benchmark_row(method: Mitigation) -> list[str]:
    ours, theirs = (method.results["by_image"][group] for group in ("memorized", "other"))
    cells = []
    for name in ("still", "recovered"):
        of = ours.get(name, {"mean": None, "interval": None})
        cells.append(words.percent_interval(of["mean"], of["interval"]))
    measures = [(ours["gamma"], 3), (ours["alignment"], 3), (theirs["alignment"], 3)]
    cells += [words.with_interval(of["mean"], of["interval"], places) for of, places in measures]
    loss = method.results["heldout_loss"] or {"mean": None, "interval": None}
    quality = method.results["quality"]
    cells.append(DASH if quality is None else f"{quality:.4f}")
    cells.append(words.with_interval(loss["mean"], loss["interval"], 4))
    return [*cells, f"{method.results['evaluations_per_image']:,.1f}"]


def _relative(
    method: Mitigation,
    before: Mitigation | None,
    value: Callable[[Mitigation], float | None],
) -> str:
    """A value relative to the one without a method: `24 %`."""
    was, now = None if before is None else value(before), value(method)
    if method is before or not was or now is None:
        return DASH
    return f"{100 * now / was:.0f}{NBSP}%"


def _numbers(method: Mitigation) -> dict[str, Any]:
    return {"row": method.name, "key": method.artifact.key, **flat(method.results)}


def _headline(method: Mitigation) -> dict[str, Any]:
    found = method.memorized
    return {
        "memorized": None if found is None else found["share"],
        "alignment": method.results["alignment"]["memorized"]["mean"],
        "evaluations_per_image": method.results["evaluations_per_image"],
    }


def mitigations_figure(methods: Sequence[Mitigation]) -> Figure:
    """Prompts still memorized with each method, without and with the adversary, and alignment."""
    figure = Figure(figsize=(7, 0.9 + 0.42 * len(methods)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, gridspec_kw={"wspace": 0.1})
    for place, method in enumerate(methods):
        _point(left, place - 0.14, method.memorized, TRAIN, "o", TRAIN)
        _point(left, place + 0.14, method.recovered("memorized"), HELDOUT, "D", "white")
        aligned = method.results["alignment"]["memorized"]
        if aligned["mean"] is not None:
            low, high = aligned["interval"]
            style = {"color": TRAIN, "linewidth": 1.0}
            right.plot([low, high], [place, place], **style)
            right.plot(aligned["mean"], place, "o", color=TRAIN, markersize=5)
    left.set_yticks(range(len(methods)), [method.name for method in methods])
    for text in left.get_yticklabels():
        text.set_parse_math(False)
    left.invert_yaxis()
    left.set_xlim(-3, 103)
    left.set_xlabel("memorized prompts, %")
    right.set_xlabel("alignment of memorized prompts")
    marks = (("still memorized", TRAIN, "o", TRAIN), ("with the adversary", HELDOUT, "D", "white"))
    handles = [
        Line2D([], [], color=c, marker=m, markerfacecolor=face, markersize=5, label=label)
        for label, c, m, face in marks
    ]
    legend(figure, handles, loc="outside upper left", ncols=2)
    return figure


def _point(
    axis: Any, place: float, found: dict[str, Any] | None, color: str, mark: str, face: str
) -> None:
    """A share in percent with its interval."""
    if found is None or found["share"] is None:
        return
    axis.plot([100 * end for end in found["interval"]], [place] * 2, color=color, linewidth=1.0)
    axis.plot(100 * found["share"], place, mark, color=color, markerfacecolor=face, markersize=5)


def _content(methods: Sequence[Mitigation]) -> dict[str, Any]:
    """The values that the template uses."""
    before = baseline(methods)
    shares = {m.name: m.memorized["share"] for m in methods if m.memorized}
    best = min(methods, key=lambda m: shares.get(m.name, 1.0))
    helps = before is not None and shares.get(best.name, 1.0) < shares.get(before.name, 0.0)
    return {
        "methods": methods,
        "before": before,
        "best": best if helps else None,
        "gallery": _gallery(methods),
        "measure": methods[0].results["alignment"]["measure"],
        "ceiling": methods[0].results["ceiling"],
        "adversary": any(method.results["adversary"] is not None for method in methods),
    }


def _gallery(methods: Sequence[Mitigation]) -> dict[str, Any]:
    """Images of every method from the same noise, for some memorized prompts."""
    first = methods[0]
    asked = set.intersection(*({row["number"] for row in m.prompts} for m in methods))
    some = [r for r in first.prompts if r["group"] == "memorized" and r["number"] in asked]
    rows: Rows = []
    for row in some[:GALLERY_PROMPTS]:
        image = first.training_image(row)
        shots = [method.shots(row["number"]) for method in methods]
        rows.append({**row, "training": image, "shots": shots})
    return {"rows": rows, "sides": sides(load_generated(first.artifact.folder).shape[2])}


def _text(methods: Sequence[Mitigation]) -> str:
    """The terminal's text: one line per method."""
    left, price = left_table(methods), price_table(methods)
    columns = [["still", *(cells[0] for _, cells in left.rows)]]
    columns.append(["% (95 % interval)", *(cells[1] for _, cells in left.rows)])
    columns.append(["alignment", *(cells[0] for _, cells in price.rows)])
    columns.append(["evaluations", *(cells[4] for _, cells in price.rows)])
    lines = aligned(["method", *(method.name for method in methods)], columns)
    text = "Mitigation: prompts memorized without mitigation that are still memorized."
    return "\n".join([*wrapped(text), "", *(line.replace(NBSP, " ") for line in lines)]) + "\n"
