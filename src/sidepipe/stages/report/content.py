"""The page's sections on attacks; those that need the truth are left out without it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sidepipe.stages.evaluate.tables import load_gallery, load_labels
from sidepipe.stages.report import curves, gallery, plots, words
from sidepipe.stages.report import measures as m
from sidepipe.stages.report import tables as t
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.comparison import distinct
from sidepipe.stages.report.figures import drawn
from sidepipe.stages.report.files import numbers
from sidepipe.stages.report.pictures import pairs_png, picture_uri
from sidepipe.stages.report.rows import described
from sidepipe.stages.report.section import Section
from sidepipe.stages.report.terminal import terminal_table


def section(attacks: Sequence[Attack]) -> Section:
    """The report's section on the attacks."""
    galleries = [(a.name, load_gallery(a.folder)[0]) for a in attacks if a.has_truth]
    pictures = [one for one in galleries if one[1].dtype == np.uint8]  # and not rows
    return Section(
        tables=tables(attacks),
        drawings=drawings(attacks),
        content=sections(attacks),
        numbers={"attacks": list(map(numbers, attacks))},
        text=terminal_table(attacks),
        summary={attack.name: _headline(attack) for attack in attacks},
        pictures={"pairs": pairs_png(pictures)} if pictures else {},
    )


def tables(attacks: Sequence[Attack]) -> list[t.Table]:
    """The tables; captions of tables of features name the transform."""
    made = [t.blind_table(attacks)]
    if attacks[0].has_truth:
        made += [t.hits_table(attacks), t.rarefaction_table(attacks), t.novelty_table(attacks)]
        made += [t.overlap_table(attacks)] if len(attacks) > 1 else []
        made += [t.tuning_table(attacks)] if any(attack.trials for attack in attacks) else []
        made += [m.bands_table(attacks), m.rules_table(attacks), m.distances_table(attacks)]
        made += [m.rows_table(attacks)] if "rows" in attacks[0].results else []
        # Too few images, or too many dimensions, have none.
        made += [m.quality_table(attacks)] if any(map(m.has_quality, attacks)) else []
    transform = attacks[0].transform
    named = [replace(table, caption=f"{table.caption} · {transform}") for table in made]
    return [*named, t.cost_table(attacks)]


def drawings(attacks: Sequence[Attack]) -> dict[str, dict[str, bytes]]:
    """The figures by name, each as SVG and PDF; none of attacks that have collapsed."""
    attacks = [attack for attack in attacks if attack.has_truth and not attack.collapse]
    if not attacks:
        return {}
    draw: dict[str, Any] = {
        "ams": partial(curves.scores_figure, attacks, "ams"),
        "ums": partial(curves.scores_figure, attacks, "ums"),
        "excess": partial(curves.excess_figure, attacks),
        "rarefaction": partial(plots.rarefaction_figure, attacks),
    }
    if any(attack.results["blind"]["roc"] for attack in attacks):
        draw["roc"] = partial(plots.roc_figure, attacks)
    labels = [(a.name, rows) for a in attacks if (rows := load_labels(a.folder))]
    if labels:
        draw["clusters"] = partial(
            plots.labels_figure, labels, "cohesion", "cohesion of the label's cluster"
        )
    return {name: drawn(figure) for name, figure in draw.items()}


def sections(attacks: Sequence[Attack]) -> dict[str, Any]:
    """The other values that the templates of these sections use."""
    first = attacks[0]
    guided = [attack for attack in attacks if attack.guided]
    common = {
        "attacks": attacks,
        "first": first,
        "rows_in_words": [(attack.name, described(attack)) for attack in attacks],
        "candidates": [gallery.candidates(attack) for attack in attacks],
        "synthetic": [a.manifests["generate"] for a, _ in distinct(guided, "generate")],
        "clusters": [_clusters(*shared) for shared in distinct(guided, "label")],
        "classifiers": [_classifier(*shared) for shared in distinct(guided, "classifier")],
    }
    return {**common, **_truth(attacks)} if first.has_truth else common


def _truth(attacks: Sequence[Attack]) -> dict[str, Any]:
    first, pairs = attacks[0], gallery.pairs(attacks)
    sound = [attack for attack in attacks if not attack.collapse]
    best = max(sound or attacks, key=lambda attack: (attack.excess_share, attack.num_images))
    copied = [attack for attack in attacks if attack.exact]
    if copied and (best.collapse or best.excess_interval[0] <= 0):
        best = max(copied, key=lambda attack: attack.results["exact_copies"]["different"])
    return {
        "best": best,
        "sound": sound,
        "first_pairs": gallery.first_pairs(pairs, attacks, best)
        if best in sound or best.exact
        else [],
        "hit_rule": words.hit_rule(first),
        "widest": max(a.share(which) for a in attacks for which in ("train", "heldout")),
        "pairs": pairs,
        "pair_data": gallery.data(attacks, pairs),
        "of_rows": bool(pairs) and not isinstance(pairs[0]["shots"], list),
        "slider": gallery.slider(attacks, pairs) if pairs else None,
        "sides": gallery.sides(first.summary("data")["shape"][0]),
    }


def _clusters(attack: Attack, names: list[str]) -> dict[str, Any]:
    picture, size = picture_uri(attack.artifact("label") / "clusters.png")
    return {"names": names, "picture": picture, "size": size, **attack.summary("label")}


def _classifier(attack: Attack, names: list[str]) -> dict[str, Any]:
    num_labels = attack.summary("classifier")["num_labels"]
    return {"names": names, "num_labels": num_labels, "quality": attack.classifier_quality()}


def _headline(attack: Attack) -> dict[str, Any]:
    if not attack.has_truth:
        found = attack.results["blind"]
        names = ("num_candidates", "groups", "largest")
        return {**{name: found[name] for name in names}, "collapse": attack.collapse}
    return {
        "num_images": attack.num_images,
        "false_positive_rate": attack.headline["false_positive_rate"],
        "hits": attack.hits(),
        "heldout_hits": attack.heldout_hits,
        "excess": attack.excess,
        "excess_interval": list(attack.excess_interval),
        "unique": attack.unique,
        "new_unique": attack.new_unique,
        "network_evaluations": attack.network_evaluations,
        "collapse": attack.collapse,
    }
