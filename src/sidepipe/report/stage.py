"""Stage `report`: the comparison of attacks as one page, a table for the terminal, CSV and SVG.

Everything is computed from the artifacts of evaluate and what they were made from, and nothing from
a clock: the same artifacts give the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sidepipe.evaluate.stage import load_gallery
from sidepipe.report import figures, tables
from sidepipe.report.attack import Attack, classifier_quality, distinct, read_attacks
from sidepipe.stage import Runtime, Stage

PAGE, TABLE = "report.html", "table.txt"
# Of a gallery, as many pairs are open at once; the others unfold.
OPEN_PAIRS = 24


@dataclass(frozen=True, kw_only=True)
class Report(Stage):
    """The comparison. Its inputs are evaluate artifacts by attack; their order is that of the rows.

    title: the page's heading.
    """

    name: ClassVar[str] = "report"
    title: str

    def run(self, folder: Path, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, Any]:
        attacks = read_attacks(inputs)
        (folder / "tables").mkdir(exist_ok=True)
        (folder / "figures").mkdir(exist_ok=True)
        tables.write_csv(folder / "tables" / "attacks.csv", attacks)
        curves = {score: figures.curves_svg(attacks, score) for score in ("ams", "ums")}
        for score, svg in curves.items():
            (folder / "figures" / f"{score}.svg").write_bytes(svg)
        pairs = figures.pairs_png([(a.name, load_gallery(a.folder)[0]) for a in attacks])
        (folder / "figures" / "pairs.png").write_bytes(pairs)
        (folder / TABLE).write_text(tables.terminal_table(attacks), encoding="utf-8")
        page = _template().render(title=self.title, **_content(attacks, curves))
        (folder / PAGE).write_text(page, encoding="utf-8")
        return {"attacks": {attack.name: _headline(attack) for attack in attacks}}


def _headline(attack: Attack) -> dict[str, Any]:
    return {
        "num_images": attack.num_images,
        "hits": attack.hits(),
        "heldout_hits": attack.hits("heldout"),
        "excess": attack.excess,
        "excess_interval": list(attack.excess_interval),
        "unique": attack.unique,
        "unet_forwards": attack.unet_forwards,
    }


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (tables.count, tables.percent, tables.rate, tables.parameters)
    words += (tables.epochs, tables.excess_interval)
    environment.filters |= {function.__name__: function for function in words}
    return environment.get_template("page.html.j2")


def _content(attacks: Sequence[Attack], curves: Mapping[str, bytes]) -> dict[str, Any]:
    first = attacks[0]
    wanted = first.manifests["evaluate"]["settings"]["false_positive_rates"]
    return {
        "attacks": attacks,
        "first": first,
        "best": max(attacks, key=lambda attack: attack.excess_share),
        "data": first.manifests["data"],
        "source": _source(first.manifests["data"]["settings"]["source"]),
        "dpm": first.manifests["dpm"],
        "hit_rule": tables.hit_rule(first),
        "tables": [
            make(attacks) for make in (tables.hits_table, tables.bands_table, tables.cost_table)
        ],
        "uncalibrated": sorted(set(wanted) - set(tables.rates(attacks))),
        "widest": max(
            a.hits(which) / a.num_images for a in attacks for which in (a.compared, "heldout")
        ),
        "synthetic": [a.manifests["generate"] for a, _ in distinct(attacks, "generate")],
        "curves": {score: figures.data_uri(svg, "svg+xml") for score, svg in curves.items()},
        "galleries": [_gallery(attack) for attack in attacks],
        "open_pairs": OPEN_PAIRS,
        "clusters": [_clusters(*shared) for shared in distinct(attacks, "label")],
        "classifiers": [_classifier(*shared) for shared in distinct(attacks, "classifier")],
        "artifacts": _artifacts(attacks),
        "settings": _settings(attacks),
    }


def _gallery(attack: Attack) -> dict[str, Any]:
    images, rows = load_gallery(attack.folder)
    side = images.shape[2]
    large = figures.shown_pixels(side, 96)
    return {
        "attack": attack,
        "pairs": [_pair(attack, triple, row) for triple, row in zip(images, rows, strict=True)],
        "large": large,
        "small": min(figures.shown_pixels(side, 48), large // 2 if side >= 48 else large),
    }


def _pair(attack: Attack, triple: np.ndarray, row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("generated", "training", "heldout")
    train, heldout = float(row["train_gamma"]), float(row["heldout_gamma"])
    return {
        **dict(zip(names, map(figures.thumbnail_uri, triple), strict=True)),
        **row,
        "heldout_closer": heldout > train if attack.metric == "cosine" else heldout < train,
    }


def _clusters(attack: Attack, names: list[str]) -> dict[str, Any]:
    picture, size = figures.picture_uri(attack.artifact("label") / "clusters.png")
    summary = attack.summary("label")
    return {"names": names, "picture": picture, "size": size, **summary}


def _classifier(attack: Attack, names: list[str]) -> dict[str, Any]:
    num_labels = attack.summary("classifier")["num_labels"]
    return {"names": names, "num_labels": num_labels, "quality": classifier_quality(attack)}


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


def load_table(folder: Path) -> str:
    """The comparison in plain text, for a terminal."""
    return (folder / TABLE).read_text(encoding="utf-8").rstrip()


def page_path(folder: Path) -> Path:
    """The page."""
    return folder / PAGE
