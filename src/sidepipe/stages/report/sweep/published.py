"""Table 1 of SIDE next to a sweep of the same data, in the same columns.

Chen, Wang, Zou, Ma, "SIDE: Surrogate Conditional Data Extraction from Diffusion Models", arXiv
2410.02467 v7. `published.csv` has its rows for the data sets that the pipeline reads, as printed.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.sweep.points import Sweep, label
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.words import band_rule, count, decimals, percent

SIZE = "dpm.num_train_images"
BANDS = {"low": [0.4, 0.5], "mid": [0.5, 0.6], "high": [0.6, None]}
_CELEBA = ("CelebA-HQ-FI", "CelebA-25000", "CelebA")
# The paper's data sets by the class of our source.
_COMPARABLE = {"CelebA": _CELEBA, "CelebAHQFI": _CELEBA, "CIFAR10": ("CIFAR-10",)}


def comparable(sweep: Sweep) -> list[Attack]:
    """The finished attacks on data sets of the paper."""
    return [attack for _, attack in sweep.runs if _source(attack) in _COMPARABLE]


def _source(attack: Attack) -> str:
    return attack.manifests["data"]["settings"]["source"]["_target_"].rpartition(".")[2]


def paper_table(sweep: Sweep) -> Table:
    """The paper's rows and ours: AMS and UMS by band in percent, and the tail percentile."""
    wanted = {name for attack in comparable(sweep) for name in _COMPARABLE[_source(attack)]}
    with Path(__file__).with_name("published.csv").open(newline="") as file:
        printed = [row for row in csv.reader(file) if row[0] in wanted]
    rows = [
        (f"{method} (paper)", [data, count(int(num_images)), *cells])
        for data, num_images, method, *cells in printed
    ]
    others = [name for name in sweep.swept if name != SIZE]
    for point, attack in sweep.runs:
        if _source(attack) in _COMPARABLE:
            sizes = f"{count(attack.results['num_reference']['train'])} of {_source(attack)}"
            where = ", ".join(filter(None, [sizes, label(point, others)]))
            rows.append((attack.name, [where, count(attack.num_images), *_measures(attack)]))
    groups = [("", 2), *((name, 2) for name in BANDS), ("", 1)]
    columns = ["data", "N_G", *["AMS", "UMS"] * len(BANDS), "p95"]
    return Table("paper", "The paper's table and ours, in percent of N_G", groups, columns, rows)


def _measures(attack: Attack) -> list[str]:
    bands = [attack.results["bands"].get(name) for name in BANDS]
    shares = [band and band["train"][kind] for band in bands for kind in ("ams", "ums")]
    cells = [decimals(None) if s is None else percent(s, attack.num_images) for s in shares]
    return [*cells, decimals(attack.results["tail_percentile"]["train"])]


def differences(attacks: Sequence[Attack]) -> list[str]:
    """Differences from the paper, one sentence each."""
    cifar = all(_source(attack) == "CIFAR10" for attack in attacks)
    sides = {attack.summary("data")["shape"][0] for attack in attacks}
    first = attacks[0]
    found = []
    if sides != {32 if cifar else 128}:
        found.append(
            f"Images are {_either(sides)} pixels wide here, {32 if cifar else 128} in the paper."
        )
    if cifar:
        found.append(
            f"Gamma is the {first.gamma_in_words} here, a normalized L2 distance in the paper, "
            "which prints no bands: neither bands nor percentiles are comparable."
        )
    elif not first.transform.startswith("sscd"):
        found.append(
            f"Gamma is the {first.gamma_in_words} ({first.transform}) here, that of SSCD features "
            "in the paper: neither bands of one name nor percentiles are comparable."
        )
    elif any(first.results["bands"].get(n, {}).get("band") != ends for n, ends in BANDS.items()):
        ours = {n: band_rule(b["band"]) for n, b in first.results["bands"].items()}
        theirs = {name: band_rule(ends) for name, ends in BANDS.items()}
        found.append(f"Bands are {_named(ours)} here, {_named(theirs)} in the paper.")
    made = {attack.num_images for attack in attacks}
    found.append(
        f"N_G is {_either(made)} here; UMS falls as N_G grows, so compare it at equal N_G only."
    )
    return found


def _either(numbers: Iterable[int]) -> str:
    return " or ".join(map(count, sorted(numbers)))


def _named(rules: dict[str, str]) -> str:
    return ", ".join(f"{name} {rule}" for name, rule in rules.items())
