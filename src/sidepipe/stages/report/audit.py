"""The report's section on the owner's audit: the training images that the model returns to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from sidepipe.memorization.audit import flags_judged, judged
from sidepipe.memorization.extraction import reliability
from sidepipe.memorization.rates import rate
from sidepipe.stages.audit.stage import Audit, load, load_gallery, load_risk, load_scores
from sidepipe.stages.evaluate.tables import load_nearest
from sidepipe.stages.report import words
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.gallery import sides
from sidepipe.stages.report.section import Rows, Section, rows_of
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.terminal import wrapped
from sidepipe.stages.report.values import shots
from sidepipe.stages.report.words import DASH, count

FALSE_POSITIVE_RATE = 0.01  # of the true positive rate
OPEN_IMAGES = 24  # shown at first; the others unfold
KINDS = {"train": "training images", "heldout": "held-out images"}


def section(folder: Path, attacks: Sequence[Attack]) -> Section:
    """The report's section on the audit, judged by those attacks that were compared with truth."""
    results, table = load(folder), load_scores(folder)
    train = table.loc[table["kind"] == "train"]
    known = [attack for attack in attacks if attack.has_truth]
    hits = {attack.name: hits_of(train, attack) for attack in known}
    best = max(known, key=lambda attack: attack.unique, default=None)
    tables = [flags_table(results)]
    tables += [extracted_table(train, hits)] if hits else []
    tables += [scores_table(load_risk(folder), hits[best.name], best.name)] if best else []
    if (chances := results["extraction"]) is not None:
        tables.append(chances_table(chances))
        alike = [a for a in known if a.num_images == chances["budget"] and is_refined(a)]
        tables += [reliability_table(train, hits[a.name], a.name) for a in alike[:1]]
    tables += [invmm_table(results["invmm"])] if "invmm" in results else []
    return Section(
        tables=tables,
        drawings={},
        content={"audit": {"results": results, "best": best, **_gallery(folder)}},
        numbers={"audit": rows_of(table)},
        text="\n".join(wrapped(f"Audit: {Audit.in_words(results)}")) + "\n",
        summary={name: results[name] for name in ("flagged", "heldout_flagged")},
    )


def is_refined(attack: Attack) -> bool:
    """Whether the attack refines its images, as the audit foresees."""
    return attack.sampled and attack.settings["refine"]["name"] != "none"


def hits_of(train: pd.DataFrame, attack: Attack) -> Int64[np.ndarray, "n"]:
    """How many images of the attack are hits on each audited training image."""
    nearest = load_nearest(attack.folder)
    places = nearest.loc[nearest["hit"] == 1, "train_index"].value_counts()
    return train["index"].map(places).fillna(0).to_numpy(np.int64)


def flags_table(results: Mapping[str, Any]) -> Table:
    """Flagged images of both kinds."""
    rows = []
    for kind, name in (("train", "flagged"), ("heldout", "heldout_flagged")):
        of, flagged = results[f"num_{kind}"], results[name]
        share = words.share(rate(np.arange(of) < flagged))
        rows.append((KINDS[kind], [count(of), count(flagged), share]))
    columns = ["audited", "flagged", "share, % (95 % interval)"]
    return Table("audit_flags", "Images that come back", [("", 3)], columns, rows, head="")


def extracted_table(train: pd.DataFrame, hits: Mapping[str, Int64[np.ndarray, "n"]]) -> Table:
    """Whether the flagged images are those that the attacks extract."""
    flagged = train["flagged"].to_numpy() == 1
    rows = []
    for name, of_image in hits.items():
        found = flags_judged(flagged, of_image)
        total = found["hits_flagged"] + found["hits_others"]
        cells = [count(total), f"{count(found['extracted_flagged'])} of {count(found['flagged'])}"]
        cells += [f"{count(found['extracted_others'])} of {count(found['others'])}"]
        cells += [words.rate(found["hits_flagged"] / total) if total else DASH]
        rows.append((name, cells))
    groups = [("", 1), ("extracted at least once", 2), ("", 1)]
    columns = ["hits", "of flagged images", "of the others", "hits on flagged images"]
    caption = "Flagged training images, and those that the attacks extracted"
    return Table("audit_extracted", caption, groups, columns, rows)


def scores_table(
    risk: Mapping[str, Float64[np.ndarray, "n"]], hits: Int64[np.ndarray, "n"], attack: str
) -> Table:
    """How well each score tells which images the attack extracts."""
    rows = []
    for name, score in risk.items():
        found = judged(score, hits, FALSE_POSITIVE_RATE)
        cells = [DASH] * 3
        if found is not None:
            auc = words.with_interval(found["auc"], found["auc_interval"], 3)
            cells = [auc, words.rate(found["tpr"]), words.decimals(found["correlation"], 2)]
        rows.append((SCORES.get(name) or _of_level(name), cells))
    columns = ["AUC (95 % interval)", f"TPR at {words.rate(FALSE_POSITIVE_RATE)} FPR"]
    columns += ["rank correlation with the number of hits"]
    caption = f"Scores of training images against extraction by {attack}"
    return Table("audit_scores", caption, [("", 3)], columns, rows, head="score")


def chances_table(chances: Mapping[str, Any]) -> Table:
    """The expected number of extracted images of both kinds."""
    rows = []
    for kind, prefix in (("train", ""), ("heldout", "heldout_")):
        low, high = chances[f"{prefix}interval"]
        cells = [count(chances[f"{prefix}hits"]), count(chances[f"{prefix}expected"])]
        rows.append((KINDS[kind], [*cells, f"{count(low)} to {count(high)}"]))
    columns = [f"hits of {count(chances['sampled'])} refined samples", "expected", "95 % interval"]
    caption = f"Images that {count(chances['budget'])} refined images are expected to hit"
    return Table("audit_chances", caption, [("", 3)], columns, rows, head="")


def reliability_table(train: pd.DataFrame, hits: Int64[np.ndarray, "n"], attack: str) -> Table:
    """Whether the images with a probability are extracted as often as it promises."""
    rows = []
    for row in reliability(train["probability"].to_numpy(np.float64), hits > 0):
        name = f"{words.rate(row['low'])} to {words.rate(row['high'])}"
        cells = [count(row["images"]), f"{row['expected']:.1f}", count(row["found"])]
        rows.append((name, cells))
    columns = ["training images", "expected to be extracted", "extracted"]
    caption = f"Probability of extraction, and training images that {attack} extracted"
    return Table("audit_reliability", caption, [("", 3)], columns, rows, head="probability")


def invmm_table(found: Mapping[str, Any]) -> Table:
    """The share of images that some noise always gives, and how far that noise is from normal."""
    rows = []
    for kind, name in KINDS.items():
        of = found[kind]
        share = words.share(rate(np.arange(of["num_images"]) < of["finite"] * of["num_images"]))
        cells = [count(of["num_images"]), share]
        rows.append((name, [*cells, words.decimals(of["median"]) if of["median"] else INFINITE]))
    columns = ["images", "finite, % (95 % interval)", "median"]
    return Table("audit_invmm", "InvMM of images", [("", 3)], columns, rows, head="")


INFINITE = "\N{INFINITY}"
SCORES = {
    "gamma": "distance to the refined image",
    "probability": "probability of extraction",
    "error": "error of one denoising step",
    "divergence": "score divergence",
    "contrast": "log(loss of the base / loss)",
}


def _of_level(name: str) -> str:
    kind, _, t = name.partition("_")
    said = {"recall": "own noised copies that come back", "arrivals": "noised copies that arrive"}
    return f"{said[kind]}, t = {t}"


def _gallery(folder: Path) -> dict[str, Any]:
    images, rows = load_gallery(folder)
    found: Rows = [
        {**row, "shots": shots(folder, pair)} for pair, row in zip(images, rows, strict=True)
    ]
    return {"gallery": found, "open": OPEN_IMAGES, "sides": sides(images.shape[2])}
