"""The sweep in plain text, at most 110 characters wide: every attack, finished or not."""

from collections import Counter

from sidepipe.stages.report import words
from sidepipe.stages.report.sweep.points import Spot, Sweep, kind, label
from sidepipe.stages.report.sweep.quantities import COST, EXCESS, HELDOUT, HITS, NEW, UNIQUE
from sidepipe.stages.report.sweep.tables import runs_in_words
from sidepipe.stages.report.terminal import aligned, wrapped

MOST_FAILED = 10


def sweep_text(sweep: Sweep) -> str:
    """One line per attack under each place: the means over its runs, or its state."""
    spots = sweep.spots
    titles = ["runs", "images", "hits %", "held-out %", "excess %"]
    titles += ["lowest to highest" if sweep.repeated else "95 % interval"]
    titles += ["different", "new", "per 1,000"]
    cells = [_cells(spot, sweep) if spot.finished else [""] * len(titles) for spot in spots]
    names = ["attack", *(f"  {spot.attack}" for spot in spots)]
    head, *rows = aligned(names, list(zip(titles, *cells, strict=True)))
    lines, place = [head], ""
    for spot, row in zip(spots, rows, strict=True):
        if spot.place != place:
            place = spot.place
            lines.append(place)
        lines.append(row if spot.finished else f"{row.rstrip()}  {_states(spot)}")
    legend = ["", *wrapped(_legend(sweep))] if sweep.runs else []
    warnings = [line for text in collapsed(sweep) for line in wrapped(f"warning: {text}")]
    return "\n".join([*warnings, *lines, *_missing(sweep), *legend]) + "\n"


def collapsed(sweep: Sweep) -> list[str]:
    """A sentence for every run whose images are nearly all alike."""
    return [
        f"{label(point, sweep.swept)} {attack.name}: the model {attack.collapse}.".lstrip()
        for point, attack in sweep.runs
        if attack.collapse
    ]


def _missing(sweep: Sweep) -> list[str]:
    """The number of missing attacks by state, and the first that failed."""
    if not sweep.waiting:
        return []
    kinds = ", ".join(f"{number} {name}" for name, number in states(sweep).items())
    failed = [
        f"  {label(point, sweep.swept)} {name}: {missing.state}"
        for point, name, missing in sweep.waiting
        if kind(missing.state) == "failed"
    ]
    more = [f"  and {len(failed) - MOST_FAILED} more"] if len(failed) > MOST_FAILED else []
    return ["", f"missing: {kinds}", *failed[:MOST_FAILED], *more]


def states(sweep: Sweep) -> Counter[str]:
    """The number of unfinished attacks by kind of state, failed attacks first."""
    return Counter(kind(missing.state) for _, _, missing in sweep.waiting)


def _cells(spot: Spot, sweep: Sweep) -> list[str]:
    first = spot.finished[0]
    sizes = sorted({attack.num_images for attack in spot.finished})
    cells = [runs_in_words(spot), " or ".join(map(words.count, sizes))]
    cells += [f"{quantity.mean(spot):.2f}" for quantity in (HITS, HELDOUT, EXCESS)]
    low, high = EXCESS.range(spot) if sweep.repeated else (100 * s for s in first.excess_interval)
    cells.append(f"{low:.2f} to {high:.2f}")
    cells += [words.count(quantity.mean(spot)) for quantity in (UNIQUE, NEW)]
    return [*cells, f"{COST.mean(spot):.2f}"]


def _states(spot: Spot) -> str:
    """The state of a single missing run, or the number of runs by state."""
    if len(spot.missing) == 1:
        return spot.missing[0].state
    kinds = Counter(kind(missing.state) for missing in spot.missing)
    return ", ".join(f"{number} {name}" for name, number in kinds.items())


def _legend(sweep: Sweep) -> str:
    first = sweep.runs[0][1]
    text = (
        f"hits: images that come as close to a training image ({first.gamma_in_words}, "
        f"{first.transform}) as {words.rate(first.headline['false_positive_rate'])} of real "
        "held-out images do, for every model its own; held-out: the same against as many images "
        "that the model was not trained on"
    )
    if any(attack.scale > 1 for _, attack in sweep.runs):
        text += " (scaled to as many where fewer of these are left)"
    of = "means over runs that differ in the seed" if sweep.repeated else "of one run each"
    return (
        f"{text}; different: training images hit; new: those of them that no plain sample hits; "
        f"per 1,000: hits for every 1,000 network evaluations. All are {of}."
    )
