"""The pictures of the page: pairs of all attacks, and candidates ranked blindly."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidepipe.stages.evaluate.tables import load_candidates, load_gallery
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.pictures import shown_pixels
from sidepipe.stages.report.values import shots

LARGE, SMALL = 96, 64
SHOWN_FIRST = 3  # pairs next to the answer
# The number of candidates per attack shown at first; the others unfold.
OPEN_CANDIDATES = 24


def pairs(attacks: Sequence[Attack]) -> list[dict[str, Any]]:
    """Every kept pair with its three thumbnails: the closest of each attack, then the second ones.

    rank: the place of the pair among those of its attack, 0 for the closest.
    """
    sign = -1 if attacks[0].metric == "cosine" else 1
    found = [
        pair(number, attack, rank, triple, row)
        for number, attack in enumerate(attacks)
        for rank, (triple, row) in enumerate(zip(*load_gallery(attack.folder), strict=True))
    ]
    return sorted(found, key=lambda one: (one["rank"], sign * one["train_gamma"]))


def pair(
    number: int, attack: Attack, rank: int, triple: np.ndarray, row: Mapping[str, Any]
) -> dict[str, Any]:
    """A pair with its three thumbnails. rank: its place among those of its attack."""
    train, heldout = float(row["train_gamma"]), float(row["heldout_gamma"])
    return {
        "attack": number,
        "rank": rank,
        "index": row["index"] if isinstance(row["index"], str) else int(row["index"]),
        "hit": bool(row["hit"]),
        "new": bool(row["new"]),
        "train_id": str(row["train_id"]),
        "train_gamma": train,
        "heldout_id": str(row["heldout_id"]),
        "heldout_gamma": heldout,
        "heldout_closer": heldout > train if attack.metric == "cosine" else heldout < train,
        "shots": shots(attack.folder, triple),
    }


def first_pairs(
    shown: Sequence[Mapping[str, Any]], attacks: Sequence[Attack], best: Attack
) -> list[Mapping[str, Any]]:
    """The closest hits of the best attack, at most three, for display next to the answer."""
    of_best = [pair for pair in shown if attacks[pair["attack"]] is best and pair["hit"]]
    return of_best[:SHOWN_FIRST]


def data(attacks: Sequence[Attack], shown: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The data of the pairs for the page's script, in the order of the page."""
    names = ("attack", "rank", "index", "hit", "new", "train_id", "train_gamma", "heldout_id")
    names += ("heldout_gamma",)
    return {
        "attacks": [attack.name for attack in attacks],
        "closerIsLarger": attacks[0].metric == "cosine",
        "gamma": attacks[0].gamma_in_words,
        "pairs": [{name: pair[name] for name in names} for pair in shown],
    }


def slider(attacks: Sequence[Attack], shown: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The ends of the similarity slider, in thousandths, and the position that hides no pair."""
    gammas = [pair["train_gamma"] for pair in shown]
    low, high = np.floor(1000 * min(gammas)) / 1000, np.ceil(1000 * max(gammas)) / 1000
    return {"min": low, "max": high, "start": low if attacks[0].metric == "cosine" else high}


def sides(side: int) -> dict[str, Any]:
    """The display sizes of images of `side` pixels, and whether pixels are shown unsmoothed."""
    large = shown_pixels(side, LARGE)
    small = large // 2 if side >= 48 else shown_pixels(side, SMALL)
    return {"large": large, "small": small, "kind": "pixels" if side < 64 else "smooth"}


def candidates(attack: Attack) -> dict[str, Any]:
    """The attack's best candidates: thumbnails and rows of candidates.csv."""
    images, rows = load_candidates(attack.folder)
    return {
        "attack": attack,
        "found": [
            {**row, "shots": shots(attack.folder, image[None])}
            for image, row in zip(images, rows, strict=True)
        ],
        "open": OPEN_CANDIDATES,
        "sides": sides(images.shape[1]),
    }
