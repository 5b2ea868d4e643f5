"""What the page is filled with, section by section; what there is no truth for is left out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sidepipe.evaluate.stage import load_labels
from sidepipe.report import curves, gallery, plots, words
from sidepipe.report import measures as m
from sidepipe.report import tables as t
from sidepipe.report.attack import Attack
from sidepipe.report.comparison import distinct
from sidepipe.report.figures import drawn
from sidepipe.report.pictures import picture_uri


def tables(attacks: Sequence[Attack]) -> list[t.Table]:
    """The tables; those of features say by which transform."""
    made = [t.blind_table(attacks)]
    if attacks[0].has_truth:
        made += [t.hits_table(attacks), t.rarefaction_table(attacks), t.novelty_table(attacks)]
        made += [t.overlap_table(attacks)] if len(attacks) > 1 else []
        made += [t.tuning_table(attacks)] if any(attack.trials for attack in attacks) else []
        made += [m.bands_table(attacks), m.rules_table(attacks), m.distances_table(attacks)]
        # Features of too many dimensions have none, of all attacks alike.
        made += [m.quality_table(attacks)] if attacks[0].results["quality"] is not None else []
    transform = attacks[0].transform
    named = [replace(table, caption=f"{table.caption} · {transform}") for table in made]
    return [*named, t.cost_table(attacks)]


def drawings(attacks: Sequence[Attack]) -> dict[str, dict[str, bytes]]:
    """The figures by name, each as SVG and PDF."""
    if not attacks[0].has_truth:
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
        draw["clusters"] = partial(plots.clusters_figure, labels)
    return {name: drawn(figure) for name, figure in draw.items()}


def sections(attacks: Sequence[Attack]) -> dict[str, Any]:
    """Everything else that the page's template names."""
    first = attacks[0]
    guided = [attack for attack in attacks if attack.guided]
    common = {
        "attacks": attacks,
        "first": first,
        "data": first.manifests["data"],
        "source": _source(first.manifests["data"]["settings"]["source"]),
        "dpm": first.manifests["dpm"],
        "candidates": [gallery.candidates(attack) for attack in attacks],
        "synthetic": [a.manifests["generate"] for a, _ in distinct(guided, "generate")],
        "clusters": [_clusters(*shared) for shared in distinct(guided, "label")],
        "classifiers": [_classifier(*shared) for shared in distinct(guided, "classifier")],
        "artifacts": _artifacts(attacks),
        "settings": _settings(attacks),
    }
    return {**common, **_truth(attacks)} if first.has_truth else common


def _truth(attacks: Sequence[Attack]) -> dict[str, Any]:
    first, pairs = attacks[0], gallery.pairs(attacks)
    return {
        "best": max(attacks, key=lambda attack: attack.excess_share),
        "hit_rule": words.hit_rule(first),
        "widest": max(a.share(which) for a in attacks for which in (a.compared, "heldout")),
        "pairs": pairs,
        "pair_data": gallery.data(attacks, pairs),
        "slider": gallery.slider(attacks, pairs) if pairs else None,
        "sides": gallery.sides(first.summary("data")["shape"][0]),
    }


def _clusters(attack: Attack, names: list[str]) -> dict[str, Any]:
    picture, size = picture_uri(attack.artifact("label") / "clusters.png")
    return {"names": names, "picture": picture, "size": size, **attack.summary("label")}


def _classifier(attack: Attack, names: list[str]) -> dict[str, Any]:
    num_labels = attack.summary("classifier")["num_labels"]
    return {"names": names, "num_labels": num_labels, "quality": attack.classifier_quality()}


def _source(settings: Mapping[str, Any]) -> str:
    """A source in words: its class, and its folder's name if it has one."""
    kind = settings["_target_"].rpartition(".")[2]
    return f"{kind} “{Path(settings['folder']).name}”" if "folder" in settings else kind


def _artifacts(attacks: Sequence[Attack]) -> list[tuple[list[str], dict[str, Any]]]:
    """Every artifact behind the page once, in the order of making: its attacks, its manifest."""
    longest = max(attacks, key=lambda attack: len(attack.manifests))
    names = dict.fromkeys([*longest.manifests, *(n for a in attacks for n in a.manifests)])
    return [
        (shared, attack.manifests[name])
        for name in names
        for attack, shared in distinct(attacks, name)
    ]


def _settings(attacks: Sequence[Attack]) -> list[tuple[str, list[str], str]]:
    """Stage, its attacks and its settings; settings that several artifacts have come once."""
    found: dict[str, tuple[str, list[str]]] = {}
    for names, manifest in _artifacts(attacks):
        lines = "\n".join(_flat(manifest["stage"], manifest["settings"]))
        found.setdefault(lines, (manifest["stage"], []))[1].extend(names)
    return [(*owned, lines) for lines, owned in found.items()]


def _flat(name: str, value: Any) -> list[str]:
    """Settings as they are typed on the command line, one a line."""
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _flat(f"{name}.{key}", inner)]
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
