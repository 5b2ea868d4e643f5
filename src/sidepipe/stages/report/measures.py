"""Tables of published measures, each against the training and the held-out images.

None of them defines a hit; they allow comparison with the numbers of papers.
"""

from collections.abc import Sequence

from sidepipe.stages.report import words
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.words import DASH, count, decimals, percent


def bands_table(attacks: Sequence[Attack]) -> Table:
    """AMS and UMS in the bands, as published, and the older tail percentile."""
    first = attacks[0]
    groups, columns = [], []
    for name in first.band_names:
        nearest = ["nearest UMS"] if name == "high" else []
        rule = words.band_rule(first.results["bands"][name]["band"])
        groups.append((f"{name}: {rule}", 3 + len(nearest)))
        columns += ["AMS", "held-out AMS", "UMS", *nearest]
    tail = "95th" if first.metric == "cosine" else "5th"
    groups.append((f"{tail} percentile of {first.gamma_in_words}", 2))
    columns += ["training", "held-out"]
    rows = [(attack.name, _bands_row(attack)) for attack in attacks]
    caption = "The paper's measures, in percent of the images"
    return Table("bands", caption, groups, columns, rows)


def _bands_row(attack: Attack) -> list[str]:
    shares: list[float] = []
    for name in attack.band_names:
        band = attack.results["bands"][name]
        shares += [band["train"]["ams"], band["heldout"]["ams"], band["train"]["ums"]]
        shares += [band["train"]["ums_nearest"]] if name == "high" else []
    tail = attack.results["tail_percentile"]
    cells = [percent(share, attack.num_images) for share in shares]
    return [*cells, decimals(tail["train"]), decimals(tail["heldout"])]


def rows_table(attacks: Sequence[Attack]) -> Table:
    """Utility, and impossible rows, of generated rows of a table next to those of real rows."""
    first = attacks[0].results["rows"]
    columns = [f"{first['score']} of {first['target']}" if first["target"] else "no target"]
    cells = [
        (a.name, a.results["rows"]["utility"], a.results["rows"]["impossible"]) for a in attacks
    ]
    cells += [("training rows", first["train_utility"], 0.0)]
    cells += [("held-out rows", None, first["heldout_impossible"])]
    rows = [(name, [decimals(use), words.rate(share)]) for name, use, share in cells]
    caption = "Use of the rows, and impossible rows"
    return Table("rows", caption, [("", 2)], [*columns, "impossible rows"], rows, head="")


def rules_table(attacks: Sequence[Attack]) -> Table:
    """Images that the published rules classify as copies of training and of held-out images."""
    rules = attacks[0].results["rules"]
    groups = [(f"{name}: {rule['rule'].replace('<=', '≤')}", 4) for name, rule in rules.items()]
    columns = ["training", "different", "held-out", "different held-out"] * len(groups)
    rows = [
        (
            attack.name,
            [
                count(rule[which][kind])
                for rule in attack.results["rules"].values()
                for which in ("train", "heldout")
                for kind in ("count", "unique")
            ],
        )
        for attack in attacks
    ]
    return Table("rules", "Images that published rules classify as copies", groups, columns, rows)


def has_quality(attack: Attack) -> bool:
    """Whether the attack has FID or KID."""
    return any(attack.results["quality"][name] for name in ("fid", "kid"))


def quality_table(attacks: Sequence[Attack]) -> Table:
    """FID, KID and MiFID against training and held-out images."""
    groups = [("FID", 2), ("KID (standard deviation)", 2), ("MiFID", 2)]
    columns = ["training", "held-out"] * 3
    rows = [(attack.name, _quality_row(attack)) for attack in attacks]
    return Table("quality", "Image quality", groups, columns, rows)


def _quality_row(attack: Attack) -> list[str]:
    quality, cells = attack.results["quality"], []
    for name in ("fid", "kid", "mifid"):
        for which in ("train", "heldout"):
            if quality[name] is None:
                cells.append(DASH)
            elif name == "kid":
                cells.append(words.with_error(*quality[name][which]))
            else:
                cells.append(f"{quality[name][which]:.3g}")
    return cells


def distances_table(attacks: Sequence[Attack]) -> Table:
    """How much closer the images are to the training set than to the held-out set."""
    groups, columns = [("distance gap (95 % interval)", 1)], ["training minus held-out"]
    if attacks[0].results["divergence"] is not None:
        groups.append(("memorization divergence (standard error)", 3))
        columns += ["training", "held-out", "bandwidth"]
    rows = [(attack.name, _distances_row(attack)) for attack in attacks]
    caption = "Distance to training images compared with held-out images"
    return Table("distances", caption, groups, columns, rows)


def _distances_row(attack: Attack) -> list[str]:
    gap, divergence = attack.results["distance_gap"], attack.results["divergence"]
    cells = [words.with_interval(gap["mean"], gap["interval"], places=4)]
    if divergence is None:
        return cells
    for which in ("train", "heldout"):
        found = divergence[which]
        cells.append(words.with_error(found["value"], found["standard_error"]))
    return [*cells, f"{divergence['bandwidth']:.3g}"]
