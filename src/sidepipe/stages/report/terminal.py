"""The comparison in plain text, at most 110 characters wide, with definitions of its terms."""

import textwrap
from collections.abc import Callable, Sequence

from sidepipe.stages.report import words
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.words import COLLAPSED, NBSP, count

TERMINAL_COLUMNS = 110
SHORTEST_NAME = 12


def terminal_table(attacks: Sequence[Attack]) -> str:
    """One line per attack, and definitions below."""
    names = ["attack", *(attack.name for attack in attacks)]
    columns = [
        [title, *(cell(attack) for attack in attacks)]
        for title, cell in _columns(attacks[0]).items()
    ]
    legend = (
        _legend(_with_synthetic(attacks))
        if attacks[0].has_truth
        else _legend_without_truth(attacks[0])
    )
    return "\n".join([*aligned(names, columns), "", *wrapped(legend)]) + "\n"


def aligned(names: Sequence[str], columns: Sequence[Sequence[str]]) -> list[str]:
    """Rows of names at the left and of cells at the right.

    A name that leaves no room for its cells gets a line of its own above them, because truncated
    names of sweeps would look the same.
    """
    widths = [2 + max(map(len, column)) for column in columns]
    room = max(SHORTEST_NAME, TERMINAL_COLUMNS - sum(widths))
    width = max((len(name) for name in names if len(name) <= room), default=0)
    cells = [
        "".join(f"{c[i]:>{w}}" for c, w in zip(columns, widths, strict=True))
        for i in range(len(names))
    ]
    return [
        f"{name:<{width}}{row}" if len(name) <= room else f"{name}\n{'':<{width}}{row}"
        for name, row in zip(names, cells, strict=True)
    ]


def wrapped(text: str) -> list[str]:
    """Lines of the text in characters that every terminal has."""
    for sign, plain in (("≥", ">="), ("≤", "<="), (NBSP, " ")):
        text = text.replace(sign, plain)
    return textwrap.wrap(text, TERMINAL_COLUMNS, break_on_hyphens=False)


def _columns(first: Attack) -> dict[str, Callable[[Attack], str]]:
    columns: dict[str, Callable[[Attack], str]] = {"images": lambda a: count(a.num_images)}
    if not first.has_truth:
        columns["candidates"] = lambda a: count(a.results["blind"]["num_candidates"])
        columns["groups"] = lambda a: (
            COLLAPSED if a.collapse else count(a.results["blind"]["groups"])
        )
        columns["largest"] = lambda a: "-" if a.collapse else count(a.results["blind"]["largest"])
        return columns | {"evaluations": lambda a: words.evaluations(a.network_evaluations)}
    at = f"{100 * first.headline['false_positive_rate']:g} % FP"
    columns[f"hits at {at}"] = lambda a: count(a.hits())
    return columns | {
        "held-out": lambda a: words.average(a.heldout_hits),
        "excess %": lambda a: COLLAPSED if a.collapse else words.excess_share(a),
        "95 % interval": lambda a: "-" if a.collapse else words.excess_interval(a),
        "different": lambda a: count(a.unique),
        "new": lambda a: count(a.new_unique),
        "evaluations": lambda a: words.evaluations(a.network_evaluations),
    }


def _legend(attack: Attack) -> str:
    sizes = {name: count(size) for name, size in attack.results["num_reference"].items()}
    share = words.rate(attack.headline["false_positive_rate"])
    text = (
        f"hits at {share} FP (held-out false positives): images whose nearest of "
        f"{sizes['train']} training images has {words.hit_rule(attack)} ({attack.transform}), "
        f"which {share} of real held-out images reach; held-out: the same against "
        f"{sizes['heldout']} images the model was not trained on{_control(attack)};"
    )
    text += " different: training images hit, duplicates once"
    if not attack.results["num_synthetic"]:
        return f"{text}."
    plain = count(attack.results["num_synthetic"])
    return f"{text}; new: those of them that none of {plain} plain samples hits."


def _with_synthetic(attacks: Sequence[Attack]) -> Attack:
    """The first attack that is compared with plain samples; the first one where none is."""
    return next((a for a in attacks if a.results["num_synthetic"]), attacks[0])


def _control(attack: Attack) -> str:
    """A note on held-out hits unless they are counted on one set of equal size."""
    if attack.scale > 1:
        trained = count(attack.results["num_reference"]["train"])
        return f", scaled to the {trained} training images, {attack.scale:.3g} times as many"
    return f", mean of {attack.num_sets} such sets" if attack.num_sets > 1 else ""


def _legend_without_truth(attack: Attack) -> str:
    return (
        "No truth was given (evaluate.truth=none), so it is unknown how many images are "
        "copies. candidates: single images, or representatives of groups of near-duplicates "
        f"({attack.transform}); groups: candidates of two images or more; largest: images in the "
        "largest group."
    )
