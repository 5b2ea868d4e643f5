"""What a reader must see before any number: everything that limits or forbids a conclusion.

Each notice is one sentence, shown at the top of the page and above the table of the terminal. A
stage that finds such a limit writes it into its summary or its results; this module alone puts it
into words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sidepipe.image_files import in_words
from sidepipe.report.attack import Attack
from sidepipe.report.words import count

Manifest = Mapping[str, Any]


def notices(data: Manifest, dpm: Manifest, attacks: Sequence[Attack]) -> list[str]:
    """Sentences on the data, on the model and on each attack, in this order.

    data, dpm: manifests of the stages that the first row was made from.
    """
    return [*_of_data(data["summary"]), *_of_model(dpm["summary"]), *_of_attacks(attacks)]


def _of_data(summary: Mapping[str, Any]) -> list[str]:
    found = []
    if skipped := summary.get("skipped"):
        found.append(f"{count(len(skipped))} image files could not be read and are left out.")
    if left_out := summary.get("left_out"):
        found.append(f"{in_words(dict(left_out))}.")
    return found


def _of_model(summary: Mapping[str, Any]) -> list[str]:
    return []


def _of_attacks(attacks: Sequence[Attack]) -> list[str]:
    return []
