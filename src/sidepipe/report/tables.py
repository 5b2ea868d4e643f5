"""Numbers become text: the tables of the page, the table for the terminal, and the CSV."""

import csv
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sidepipe.report.attack import Attack

DASH = "–"  # noqa: RUF001 - what a person reads where there is no number
TERMINAL_COLUMNS = 110
SHORTEST_NAME = 12
NBSP = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Table:
    """groups: (heading, number of columns) above the columns. rows: (attack, cells)."""

    caption: str
    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[tuple[str, list[str]]]

    @property
    def starts(self) -> list[bool]:
        """Of each column, whether it is the first of its group."""
        return [i == 0 for _, span in self.groups for i in range(span)]


def count(number: float) -> str:
    """A whole number with thousands apart."""
    return f"{number:,.0f}"


def percent(share: float, num_images: int) -> str:
    """A share in percent, to as many decimals as one image makes; without the sign."""
    decimals = max(0, math.ceil(math.log10(max(1, num_images) / 100)))
    return f"{100 * share:.{decimals}f}"


def parameters(number: int) -> str:
    """A model's size: `268 thousand`, `113.7 million`."""
    return f"{number / 1e6:.1f} million" if number >= 1e6 else f"{number / 1e3:.0f} thousand"


def epochs(number: float) -> str:
    """Passes over the training images, to three digits at most."""
    return count(number) if number >= 10 else f"{number:.2g}"


def rate(share: float) -> str:
    """A false positive rate: 0.1 %."""
    return f"{100 * share:g} %"


def band_rule(band: Sequence[float | None]) -> str:
    """A band's condition on gamma: `< 0.075`, `≥ 0.6` or `0.5 to 0.6`."""
    low, high = band
    if low is None:
        return f"<{NBSP}{high:g}"
    return f"≥{NBSP}{low:g}" if high is None else f"{low:g} to {high:g}"


def hit_rule(attack: Attack) -> str:
    """What makes a hit: `RMS pixel difference < 0.075`."""
    return f"{attack.gamma_in_words} {band_rule(attack.results['bands']['high']['band'])}"


def interval(attack: Attack) -> str:
    """Guided timesteps: `all t`, `t ≥ 200`, `t 200 to 800`."""
    if not attack.guided:
        return DASH
    t_min, t_max = attack.settings["t_min"], attack.settings["t_max"]
    if t_max is None:
        return f"t ≥ {t_min}" if t_min else "all t"
    return f"t {t_min} to {t_max}"


def targets(attack: Attack) -> str:
    """Which labels the attack aims at, and how many these are."""
    if not attack.guided:
        return DASH
    number = attack.summary("extract")["num_targets"]
    if attack.settings["targets"] == "uniform":
        return f"all {count(number)} labels"
    return f"{count(number)} most cohesive, {rate(attack.settings['target_fraction'])}"


def rates(attacks: Sequence[Attack]) -> list[float]:
    """False positive rates with a threshold in any attack."""
    return sorted({row["false_positive_rate"] for a in attacks for row in a.results["calibrated"]})


def _hits(attack: Attack, which: str) -> str:
    hits = attack.hits(which)
    return f"{count(hits)} ({percent(hits / attack.num_images, attack.num_images)} %)"


def excess_interval(attack: Attack) -> str:
    """The excess share's interval in percent: `3.1 to 5.2`."""
    low, high = (percent(share, attack.num_images) for share in attack.excess_interval)
    return f"{low} to {high}"


def _excess(attack: Attack) -> str:
    share = percent(attack.excess_share, attack.num_images)
    return f"{attack.excess:+,d} ({share} %; {excess_interval(attack)})"


def hits_table(attacks: Sequence[Attack]) -> Table:
    """Hits on training and held-out images, and the same at calibrated thresholds."""
    first = attacks[0]
    sizes = first.results["num_reference"]
    columns = ["images", f"hits on {count(sizes['train'])} training images"]
    if first.compared == "train_equal":
        columns.append(f"hits on {count(sizes['train_equal'])} of them")
    columns += [
        f"hits on {count(sizes['heldout'])} held-out images",
        "excess over held-out (95 % interval)",
        "different training images hit",
    ]
    groups = [("", 1), (f"hit: {hit_rule(first)}", len(columns) - 1)]
    for share in rates(attacks):
        threshold = next(row for a in attacks if (row := a.calibrated(share)))["threshold"]
        sign = "≥" if first.metric == "cosine" else "≤"
        groups.append((f"at {rate(share)} false positives: {sign}{NBSP}{threshold:.3g}", 3))
        columns += ["training", "held-out", "different"]
    rows = [(attack.name, _hits_row(attack, rates(attacks))) for attack in attacks]
    return Table("Hits: generated images that match a training image", groups, columns, rows)


def _hits_row(attack: Attack, shares: Sequence[float]) -> list[str]:
    cells = [count(attack.num_images), *(_hits(attack, which) for which in attack.references)]
    cells += [_excess(attack), count(attack.unique)]
    for share in shares:
        row = attack.calibrated(share)
        if row is None:
            cells += [DASH] * 3
        else:
            cells += [count(row[w]["count"]) for w in (attack.compared, "heldout")]
            cells.append(count(row[attack.compared]["unique"]))
    return cells


def bands_table(attacks: Sequence[Attack]) -> Table:
    """AMS and UMS in the bands, as published, and the older tail percentile."""
    first = attacks[0]
    groups, columns = [], []
    for name in first.band_names:
        nearest = ["nearest UMS"] if name == "high" else []
        groups.append(
            (f"{name}: {band_rule(first.results['bands'][name]['band'])}", 3 + len(nearest))
        )
        columns += ["AMS", "held-out AMS", "UMS", *nearest]
    tail = "95th" if first.metric == "cosine" else "5th"
    groups.append((f"{tail} percentile of {first.gamma_in_words}", 2))
    columns += ["training", "held-out"]
    rows = [(attack.name, _bands_row(attack)) for attack in attacks]
    return Table("The paper's measures, in percent of the images", groups, columns, rows)


def _bands_row(attack: Attack) -> list[str]:
    shares: list[float] = []
    for name in attack.band_names:
        band = attack.results["bands"][name]
        shares += [band["train"]["ams"], band["heldout"]["ams"], band["train"]["ums"]]
        shares += [band["train"]["ums_nearest"]] if name == "high" else []
    tail = attack.results["tail_percentile"]
    cells = [percent(share, attack.num_images) for share in shares]
    return [*cells, f"{tail['train']:.3f}", f"{tail['heldout']:.3f}"]


def cost_table(attacks: Sequence[Attack]) -> Table:
    """How each attack guides, and the network evaluations it took."""
    columns = ["surrogate", "guidance scale", "guided", "targets"]
    columns += ["UNet forwards", "surrogate gradients", "hits per 1,000 UNet forwards"]
    rows = []
    for attack in attacks:
        scale = f"{attack.settings['guidance_scale']:g}" if attack.guided else DASH
        cells = [attack.settings["surrogate"], scale, interval(attack), targets(attack)]
        cells += [count(attack.unet_forwards), count(attack.results["cost"]["surrogate_gradients"])]
        rows.append((attack.name, [*cells, f"{1000 * attack.hits() / attack.unet_forwards:#.3g}"]))
    return Table(
        "How each attack works, and what it spent", [("guidance", 4), ("spent", 3)], columns, rows
    )


def numbers(attack: Attack) -> dict[str, Any]:
    """The attack's numbers under plain names, a row of the CSV."""
    guidance = ("guidance_scale", "t_min", "t_max", "targets", "target_fraction")
    row: dict[str, Any] = {"attack": attack.name, "key": attack.manifests["evaluate"]["key"]}
    row |= {"surrogate": attack.settings["surrogate"]}
    row |= {name: attack.settings[name] if attack.guided else None for name in guidance}
    row |= {"metric": attack.metric, "transform": attack.results["transform"]}
    row |= {"hit_threshold": attack.hit_threshold, "num_images": attack.num_images}
    sets = attack.references
    row |= {f"num_{which}": attack.results["num_reference"][which] for which in sets}
    row |= {f"{which}_hits": attack.hits(which) for which in sets}
    low, high = attack.excess_interval
    row |= {"excess": attack.excess, "excess_low": low, "excess_high": high}
    row |= {"unique": attack.unique}
    for name in attack.band_names:
        for which in sets:
            band = attack.results["bands"][name][which]
            row |= {
                f"{score}_{name}_{which}": band[score] for score in ("ams", "ums", "ums_nearest")
            }
    row |= {f"tail_{which}": attack.results["tail_percentile"][which] for which in sets}
    for found in attack.results["calibrated"]:
        at = f"at_{found['false_positive_rate']:g}"
        row[f"threshold_{at}"] = found["threshold"]
        for which in sets:
            row |= {f"{which}_hits_{at}": found[which]["count"]}
            row |= {f"{which}_unique_{at}": found[which]["unique"]}
    return {**row, **attack.results["cost"]}


def write_csv(path: Path, attacks: Sequence[Attack]) -> None:
    """All numbers, one row an attack; a column that an attack lacks is empty."""
    rows = [numbers(attack) for attack in attacks]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def terminal_table(attacks: Sequence[Attack]) -> str:
    """The comparison in plain characters, at most 110 wide, and what a hit is."""
    first, shares = attacks[0], rates(attacks)[:1]
    columns: dict[str, Callable[[Attack], str]] = {
        "images": lambda a: count(a.num_images),
        "hits": lambda a: count(a.hits()),
    }
    if first.compared == "train_equal":
        columns["hits, equal"] = lambda a: count(a.hits("train_equal"))
    columns |= {
        "held-out": lambda a: count(a.hits("heldout")),
        "excess %": lambda a: percent(a.excess_share, a.num_images),
        "95 % interval": excess_interval,
        "different": lambda a: count(a.unique),
    }
    for share in shares:
        columns[f"at {rate(share)} FP"] = lambda a, share=share: _calibrated(a, share)
    columns["UNet forwards"] = lambda a: count(a.unet_forwards)
    cells = [[title, *(cell(attack) for attack in attacks)] for title, cell in columns.items()]
    widths = [2 + max(map(len, column)) for column in cells]
    room = max(SHORTEST_NAME, TERMINAL_COLUMNS - sum(widths))
    names = [_shorten(name, room) for name in ("attack", *(attack.name for attack in attacks))]
    width = max(map(len, names))
    lines = [
        f"{name:<{width}}" + "".join(f"{c[i]:>{w}}" for c, w in zip(cells, widths, strict=True))
        for i, name in enumerate(names)
    ]
    # Not every terminal has these signs.
    legend = _legend(first, shares).replace("≥", ">=").replace(NBSP, " ")
    wrapped = textwrap.wrap(legend, TERMINAL_COLUMNS, break_on_hyphens=False)
    return "\n".join([*lines, "", *wrapped]) + "\n"


def _calibrated(attack: Attack, share: float) -> str:
    row = attack.calibrated(share)
    return (
        f"{count(row[attack.compared]['count'])} / {count(row['heldout']['count'])}" if row else "-"
    )


def _shorten(name: str, width: int) -> str:
    """The name, its middle left out where it is too long: variants often differ at their end."""
    if len(name) <= width:
        return name
    tail = (width - 2) // 2
    return name[: width - 2 - tail] + ".." + name[-tail:]


def _legend(attack: Attack, shares: Sequence[float]) -> str:
    sizes = {name: count(size) for name, size in attack.results["num_reference"].items()}
    text = (
        f"hits: images whose nearest of {sizes['train']} training images has {hit_rule(attack)} "
        f"({attack.results['transform']}); held-out: the same against {sizes['heldout']} images "
        "the model never saw; different: training images hit."
    )
    if attack.compared == "train_equal":
        text += (
            f" hits, equal: against {sizes['train_equal']} of the training images, as many as are "
            "held out; the excess is over these."
        )
    for share in shares:
        text += (
            f" at {rate(share)} FP: training / held-out hits at the threshold that {rate(share)} "
            "of real held-out images reach."
        )
    return text
