"""The report's section on verdicts: which candidates are training images, by the model alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool
from sklearn.metrics import roc_auc_score

from sidepipe.engine.artifacts import Artifact
from sidepipe.memorization.rates import rate
from sidepipe.stages.evaluate.tables import load_nearest
from sidepipe.stages.report import words
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.gallery import OPEN_CANDIDATES, sides
from sidepipe.stages.report.section import Section, rows_of
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.terminal import wrapped
from sidepipe.stages.report.values import shots
from sidepipe.stages.report.words import DASH, count
from sidepipe.stages.verdict.stage import PRECISIONS, Verdict, load, load_verdicts


@dataclass(frozen=True)
class Judged:
    """The verdicts on one attack. attack: its evaluation with truth, None without."""

    name: str
    folder: Path
    attack: Attack | None

    @cached_property
    def results(self) -> dict[str, Any]:
        return load(self.folder)

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per candidate; with truth, `hit` and `train_group`."""
        table = load_verdicts(self.folder)
        if self.attack is None:
            return table
        nearest = load_nearest(self.attack.folder).iloc[table["index"].to_numpy()]
        return table.assign(**{n: nearest[n].to_numpy() for n in ("hit", "train_group")})

    def listed(self, precision: float) -> Bool[np.ndarray, "n"]:
        """Which candidates are on the list that promises a precision."""
        return np.array(self.table[f"listed_{precision:g}"]) == 1


def section(folders: Mapping[str, Path], attacks: Sequence[Attack]) -> Section:
    """The report's section on verdicts, compared with the truth where attacks have it."""
    known = {Artifact(a.folder).inputs["extract"].key: a for a in attacks if a.has_truth}
    found = [
        Judged(
            name.removeprefix("verdict "),
            folder,
            known.get(Artifact(folder).inputs["extract"].key),
        )
        for name, folder in folders.items()
    ]
    tables = [verdicts_table(found)]
    true = [judged for judged in found if judged.attack is not None]
    tables += [truth_table(true)] if true else []
    return Section(
        tables=tables,
        drawings={},
        content={"verdicts": {"rows": [_gallery(judged) for judged in found], "true": bool(true)}},
        numbers={f"verdicts_{judged.name}": rows_of(judged.table) for judged in found},
        text="".join(
            "\n".join(wrapped(f"Verdicts on {judged.name}: {Verdict.in_words(judged.results)}"))
            + "\n"
            for judged in found
        ),
        summary={judged.name: judged.results["listed"] for judged in found},
    )


def verdicts_table(found: Sequence[Judged]) -> Table:
    """The verdicts alone: what an outsider has."""
    rows = []
    for judged in found:
        results, shadow = judged.results, judged.results["shadow"]
        cells = [count(results["num_candidates"]), count(results["expected_hits"])]
        cells += [count(results["listed"][f"{p:g}"]["count"]) for p in PRECISIONS]
        cells += [f"{count(shadow['hits'])} of {count(shadow['num_candidates'])}"]
        rows.append((judged.name, cells))
    columns = ["candidates", "expected training images"]
    columns += [f"listed at a precision of {words.rate(p)}" for p in PRECISIONS]
    groups = [("", len(columns)), ("shadow model", 1)]
    columns += ["hits among its candidates"]
    return Table("verdicts", "Verdicts without the training images", groups, columns, rows)


def truth_table(found: Sequence[Judged]) -> Table:
    """The verdicts next to the truth: is the promised precision the precision that is found?"""
    rows = []
    for judged in found:
        hit = np.array(judged.table["hit"]) == 1
        both = hit.any() and not hit.all()
        auc = float(roc_auc_score(hit, judged.table["score"])) if both else None
        cells = [count(hit.sum()), words.decimals(auc)]
        for precision in PRECISIONS:
            listed = judged.listed(precision)
            mean = judged.results["listed"][f"{precision:g}"]["promised"]
            cells += [
                words.rate(mean) if mean is not None else DASH,
                words.share(rate(hit[listed])),
            ]
            cells += [f"{different(judged, hit & listed)} of {different(judged, hit)}"]
        rows.append((judged.name, cells))
    groups, columns = [("candidates", 2)], ["hits", "AUC"]
    for precision in PRECISIONS:
        groups.append((f"listed at {words.rate(precision)}", 3))
        columns += ["promised precision", "found, % (95 % interval)", "different training images"]
    return Table("verdicts_truth", "Verdicts next to the truth", groups, columns, rows)


def different(judged: Judged, some: Bool[np.ndarray, "n"]) -> int:
    """How many different training images these candidates hit."""
    return int(judged.table.loc[some, "train_group"].nunique())


def _gallery(judged: Judged) -> dict[str, Any]:
    images = np.load(judged.folder / "gallery.npy")
    rows = rows_of(judged.table.head(len(images)))
    found = [
        {**row, "shots": shots(judged.folder, image[None])}
        for image, row in zip(images, rows, strict=True)
    ]
    return {
        "name": judged.name,
        "results": judged.results,
        "found": found,
        "open": OPEN_CANDIDATES,
        "sides": sides(images.shape[1]) if len(images) else None,
    }
