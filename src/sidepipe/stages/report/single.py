"""One comparison as one page, with the templates of the report, and without artifacts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sidepipe.stages.report import gallery, words
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.document import template_of
from sidepipe.stages.report.tables import hits_table


def page(
    title: str,
    attack: Attack,
    triples: Sequence[np.ndarray],
    rows: Sequence[Mapping[str, Any]],
    notices: Sequence[str],
) -> str:
    """The page as HTML.

    attack: with the part of results.json about hits. triples: uint8 (3, h, w, c) of each pair;
    rows: their rows as in gallery.csv.
    """
    found = zip(triples, rows, strict=True)
    pairs = [gallery.pair(0, attack, rank, triple, row) for rank, (triple, row) in enumerate(found)]
    sound = [] if attack.collapse else [attack]
    return template_of("single.html.j2").render(
        title=title,
        attacks=[attack],
        first=attack,
        best=attack,
        sound=sound,
        rows_in_words=[],
        widest=max(attack.share(which) for which in ("train", "heldout")),
        hit_rule=words.hit_rule(attack),
        tables={"hits": replace(hits_table([attack]), head="compared")},
        synthetic=[],
        notices=notices,
        pairs=pairs,
        first_pairs=gallery.first_pairs(pairs, [attack], attack) if sound or attack.exact else [],
        pair_data=gallery.data([attack], pairs),
        of_rows=False,
        slider=gallery.slider([attack], pairs) if pairs else None,
        sides=gallery.sides(triples[0].shape[1]) if pairs else None,
    )
