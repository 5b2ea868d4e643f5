"""`report=audit`: the tests of a model, their findings, images and subjects at risk, and limits.

Two printable pages in plain words, and audit.json with the same facts, whose schema is schema.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidepipe.base.files import write_json
from sidepipe.base.settings import require
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.stage import Job
from sidepipe.stages.report.document import PAGE, TABLE, template_of
from sidepipe.stages.report.stage import Report, require_one_model

if TYPE_CHECKING:
    from sidepipe.stages.report.decision.sources import Sources

FACTS = "audit.json"
MOST_PICTURES = 12  # that fit on the second page


@dataclass(frozen=True, kw_only=True)
class AuditReport(Report):
    """The report on one model for people who decide about it.

    author: the person or team that ran the audit, None where nobody is named. pictures: training
    images that the page shows, those at most risk; 0 for none, as they may show real people.
    """

    author: str | None
    pictures: int

    def __post_init__(self) -> None:
        rule = f"in [0, {MOST_PICTURES}]"
        require(0 <= self.pictures <= MOST_PICTURES, "report.pictures", rule, self.pictures)

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.stages.report.decision.facts import facts
        from sidepipe.stages.report.decision.sources import read
        from sidepipe.stages.report.terminal import wrapped

        require(bool(job.inputs), "attacks", "at least one row", 0, "attacks=compare")
        full = {name: path for name, path in job.inputs.items() if not Artifact(path).why_empty}
        require_one_model(full)
        sources = read(full)
        found = facts(sources, self.title, self.author)
        write_json(job.folder / FACTS, found)
        page = template_of("decision.html.j2").render(
            title=self.title, f=found, shots=self._shots(sources, found["worst"])
        )
        (job.folder / PAGE).write_text(page, encoding="utf-8")
        text = [*wrapped(found["answer"]), *(f"not tested: {t}" for t in found["not_tested"])]
        (job.folder / TABLE).write_text("\n".join(text) + "\n", encoding="utf-8")
        return {"answer": found["answer"]}

    def _shots(self, sources: Sources, worst: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The pictures of the training images at most risk."""
        from sidepipe.stages.data.stage import load
        from sidepipe.stages.report.values import shots

        if not self.pictures:
            return []
        folder, some = sources.data.folder, worst[: self.pictures]
        images = load(folder)
        return [{**row, "shots": shots(folder, images[[row["index"]]])} for row in some]

    def describe(self, folder: Path, title: str) -> str:
        return f"{super().describe(folder, title)}\nfacts: {folder / FACTS}"
