"""The artifacts behind a report for people who decide, and a row per training image at risk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sidepipe.engine.artifacts import Artifact
from sidepipe.memorization.audit import closeness
from sidepipe.stages.audit.stage import load as load_audit
from sidepipe.stages.audit.stage import load_scores
from sidepipe.stages.evaluate.tables import load_nearest
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.comparison import read_attacks
from sidepipe.stages.verdict.stage import load as load_verdict


@dataclass(frozen=True)
class Sources:
    """inputs: artifacts by row. attacks: all of them. audit: the results and the scores, if any.

    verdicts: results by attack. mitigations: results by row.
    """

    inputs: Mapping[str, Artifact]
    attacks: list[Attack]
    audit: Mapping[str, Any] | None
    scores: pd.DataFrame | None
    verdicts: Mapping[str, Mapping[str, Any]]
    mitigations: Mapping[str, Mapping[str, Any]]

    @property
    def known(self) -> list[Attack]:
        """Attacks compared with the training images, without collapsed models, by `evidence`."""
        usable = [attack for attack in self.attacks if attack.has_truth and not attack.collapse]
        return sorted(usable, key=evidence, reverse=True)

    @property
    def best(self) -> Attack | None:
        """The attack with the best evidence."""
        return next(iter(self.known), None)

    @property
    def data(self) -> Artifact:
        return self._first("data")

    @property
    def dpm(self) -> Artifact:
        return self._first("dpm")

    def _first(self, stage: str) -> Artifact:
        found = next(iter(self.inputs.values())).ancestor(stage)
        assert found is not None
        return found


def finding(attack: Attack) -> str:
    """The finding of an attack in one word, as schema.json has it."""
    if attack.excess_interval[0] > 0:
        return "copies"
    if attack.inconclusive:
        return "inconclusive"
    return "chance" if attack.hits() else "none"


def different_by_chance(attack: Attack) -> float:
    """Different held-out images that are hit, of as many as there are training images."""
    return attack.headline["heldout"]["unique"] * attack.scale


def evidence(attack: Attack) -> tuple[bool, float, int]:
    """A rank: copies beyond chance first, by different images; then attacks with enough images."""
    copies = finding(attack) == "copies"
    beyond = attack.unique - different_by_chance(attack)
    return copies, beyond if copies else not attack.inconclusive, attack.num_images


def read(inputs: Mapping[str, Path]) -> Sources:
    """The sources of a report's inputs, none of which is empty."""
    of: dict[str, dict[str, Path]] = {}
    for name, folder in inputs.items():
        of.setdefault(folder.parent.name, {})[name] = folder
    audited = next(iter(of.get("audit", {}).values()), None)
    mitigated = {name: Artifact(path) for name, path in of.get("mitigate", {}).items()}
    return Sources(
        inputs={name: Artifact(path) for name, path in inputs.items()},
        attacks=read_attacks(of["evaluate"]) if "evaluate" in of else [],
        audit=None if audited is None else load_audit(audited),
        scores=None if audited is None else load_scores(audited),
        verdicts={
            name.removeprefix("verdict "): load_verdict(path)
            for name, path in of.get("verdict", {}).items()
        },
        mitigations={name: made.summary for name, made in mitigated.items()},
    )


def training_images(sources: Sources) -> pd.DataFrame:
    """A row per training image that an attack found or the audit scored, at most risk first.

    Columns: index, id, subject (None without), hits over the attacks that copy beyond chance,
    flagged (None without an audit; none where the audit flags held-out images about as often),
    probability of extraction within the budget of the audit (None without). The order is by hits,
    then by how closely the model returns to the image.
    """
    copying = [attack for attack in sources.known if finding(attack) == "copies"]
    nearest = [load_nearest(attack.folder) for attack in copying]
    hit = pd.concat([n.loc[n["hit"] == 1] for n in nearest]) if nearest else pd.DataFrame()
    hits = hit["train_index"].value_counts() if len(hit) else pd.Series(dtype=int)
    if sources.scores is None:
        if not len(hits):
            return pd.DataFrame(
                columns=["index", "id", "subject", "hits", "flagged", "probability"]
            )
        ids = hit.drop_duplicates("train_index").set_index("train_index")["train_id"]
        found = pd.DataFrame({"index": hits.index, "id": np.array(ids[hits.index])})
        return found.assign(subject=None, hits=hits.to_numpy(), flagged=None, probability=None)
    assert sources.audit is not None
    train = sources.scores.loc[sources.scores["kind"] == "train"].reset_index(drop=True)
    tells = sources.audit["excess"]["interval"][0] > 0
    found = train[["index", "id"]].assign(
        subject=train.get("subject"),
        hits=train["index"].map(hits).fillna(0).astype(int),
        flagged=(train["flagged"] == 1) & tells,
        probability=train.get("probability"),
    )
    close = closeness(np.array(train["gamma"]), sources.audit["metric"])
    return found.iloc[np.lexsort((-close, -np.array(found["hits"])))].reset_index(drop=True)
