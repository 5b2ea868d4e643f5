"""The attacks of one report: whether they are comparable, what they share and where they differ."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sidepipe.base.settings import require
from sidepipe.engine.artifacts import Artifact
from sidepipe.stages.evaluate.stage import load as load_results
from sidepipe.stages.report.attack import Attack


def read_attacks(inputs: Mapping[str, Path]) -> list[Attack]:
    """The attacks of evaluate artifacts, in order; ValueError unless model and measure agree."""
    attacks = [read_attack(name, folder) for name, folder in inputs.items()]
    require(len(attacks) > 0, "attacks", "at least one row", 0, "attacks=compare")
    measures = {attack.name: _measure(attack) for attack in attacks}
    require(
        len(set(measures.values())) == 1,
        "the model and measure of all attacks",
        "one and the same",
        measures,
        "compare attacks on one model, evaluated with the same settings",
    )
    return attacks


def read_attack(name: str, folder: Path) -> Attack:
    """The attack of one evaluate artifact; FileNotFoundError if the artifact is not finished."""
    manifests = {made.stage: made.manifest for made in Artifact(folder).lineage()}
    return Attack(name, folder, load_results(folder), manifests)


def _measure(attack: Attack) -> str:
    results = attack.results
    measure = f"dpm {attack.manifests['dpm']['key']}, {attack.metric} of {attack.transform}"
    if not attack.has_truth:
        return f"{measure}, without the training images"
    rates = {row["false_positive_rate"]: f"{row['threshold']:.6g}" for row in results["calibrated"]}
    bands = {name: band["band"] for name, band in sorted(results["bands"].items())}
    return f"{measure}, thresholds by false positive rate {rates}, bands {bands}"


def distinct(attacks: Sequence[Attack], stage: str) -> list[tuple[Attack, list[str]]]:
    """One attack per artifact of `stage`, with the names of all attacks that share the artifact."""
    found: dict[str, tuple[Attack, list[str]]] = {}
    for attack in attacks:
        if stage in attack.manifests:
            first = found.setdefault(attack.manifests[stage]["key"], (attack, []))
            first[1].append(attack.name)
    return list(found.values())


def only_here(attack: Attack, attacks: Sequence[Attack]) -> frozenset[int]:
    """Training images that no other attack hits."""
    return attack.hit_images.difference(*(a.hit_images for a in attacks if a is not attack))


def false_positive_rates(attacks: Sequence[Attack]) -> list[float]:
    """The calibrated rates in the order of the settings: the first defines a hit."""
    return [row["false_positive_rate"] for row in attacks[0].results["calibrated"]]
