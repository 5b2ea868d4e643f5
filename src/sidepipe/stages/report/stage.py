"""Stage `report`: the findings as one page, a table for the terminal, and files.

It reads the artifacts of evaluate, audit, verdict, detect, explain, mitigate, search and canaries,
and those that they were made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sidepipe.base.settings import require
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.stage import Job, Stage
from sidepipe.stages.report.document import load_table as load_table
from sidepipe.stages.report.document import page_path as page_path
from sidepipe.stages.report.document import write
from sidepipe.stages.report.notices import notices
from sidepipe.stages.report.origin import origin

if TYPE_CHECKING:
    from sidepipe.stages.report.section import Section


@dataclass(frozen=True, kw_only=True)
class Report(Stage):
    """A section for each kind of input; their order is that of the rows.

    Inputs: evaluate artifacts by attack, `audit`, verdict artifacts by attack, `detect`, `explain`,
    mitigate artifacts by row, `search` and `canaries`. title: the page's heading.
    """

    name: ClassVar[str] = "report"
    version: ClassVar[int] = 3
    takes_empty: ClassVar[bool] = True
    accelerated: ClassVar[bool] = False
    title: str

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.stages.report.terminal import wrapped

        require(
            bool(job.inputs), "attacks", "at least one row", 0, "attacks=compare or detect=prompts"
        )
        empty = {
            name: why for name, path in job.inputs.items() if (why := Artifact(path).why_empty)
        }
        parts = sections({name: path for name, path in job.inputs.items() if name not in empty})
        numbers = _joined(part.numbers for part in parts.values())
        page = {"title": self.title, "attacks": [], "numbers": list(numbers), **origin(job.inputs)}
        page |= _joined(part.content for part in parts.values())
        labels = page["detection"]["found"].results["labels"] if "detection" in page else None
        page["notices"] = notices(page["data"], page["dpm"], page["attacks"], labels, empty)
        warned = [line for notice in page["notices"] for line in wrapped(f"warning: {notice}")]
        text = [*warned, ""] if warned else []
        write(
            job.folder,
            "page.html.j2",
            tables=[table for part in parts.values() for table in part.tables],
            drawings=_joined(part.drawings for part in parts.values()),
            numbers=numbers,
            text="\n".join([*text, *(part.text for part in parts.values())]),
            content=page,
        )
        for name, picture in _joined(part.pictures for part in parts.values()).items():
            (job.folder / "figures" / f"{name}.png").write_bytes(picture)
        summary = {name: dict(part.summary) for name, part in parts.items()}
        return {**summary, "no_material": empty} if empty else summary

    def describe(self, folder: Path, title: str) -> str:
        return f"{load_table(folder)}\nreport: {page_path(folder)}"


def sections(inputs: Mapping[str, Path]) -> dict[str, Section]:
    """The section of each kind of input, in the order of the page."""
    from sidepipe.stages.report import (
        audit,
        canaries,
        content,
        detection,
        explanation,
        labels,
        mitigation,
        search,
        verdict,
    )
    from sidepipe.stages.report.comparison import read_attacks

    of: dict[str, dict[str, Path]] = {}
    for name, folder in inputs.items():
        of.setdefault(folder.parent.name, {})[name] = folder
    found: dict[str, Section] = {}
    attacks = read_attacks(of["evaluate"]) if "evaluate" in of else []
    require_one_model(inputs)
    if attacks:
        found["attacks"] = content.section(attacks)
    for folder in of.get("audit", {}).values():
        found["audit"] = audit.section(folder, attacks)
    if "verdict" in of:
        found["verdict"] = verdict.section(of["verdict"], attacks)
    for folder in of.get("detect", {}).values():
        of_labels = labels.is_of_labels(folder)
        found["detect"] = (
            labels.section(folder, attacks) if of_labels else detection.section(folder)
        )
    for folder in of.get("explain", {}).values():
        found["explain"] = explanation.section(folder)
    if "mitigate" in of:
        found["mitigate"] = mitigation.section(of["mitigate"])
    for folder in of.get("search", {}).values():
        found["search"] = search.section(folder)
    for folder in of.get("canaries", {}).values():
        found["canaries"] = canaries.section(folder, of.get("search", {}).get("search"))
    return found


def require_one_model(inputs: Mapping[str, Path]) -> None:
    """Raises ValueError unless attacks and prompts share one model; mitigation may change it."""
    models = {
        name: dpm.key
        for name, folder in inputs.items()
        if folder.parent.name != "mitigate" and (dpm := Artifact(folder).ancestor("dpm"))
    }
    remedy = "attack the model that detect examines"
    one = len(set(models.values())) <= 1
    require(one, "the model of attacks and detect", "one and the same", models, remedy)


def _joined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in part.items()}
