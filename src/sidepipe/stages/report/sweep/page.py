"""The page of a sweep: its content, from everything that is finished."""

from collections.abc import Sequence
from functools import partial
from os.path import relpath
from pathlib import Path
from typing import Any

from sidepipe.stages.report import words
from sidepipe.stages.report.document import page_path, write
from sidepipe.stages.report.figures import drawn
from sidepipe.stages.report.files import numbers
from sidepipe.stages.report.sweep.figures import sweep_figure
from sidepipe.stages.report.sweep.points import Point, Spot, Sweep, kind, label, read, value_words
from sidepipe.stages.report.sweep.published import comparable, differences, paper_table
from sidepipe.stages.report.sweep.quantities import EXCESS, QUANTITIES
from sidepipe.stages.report.sweep.tables import means_table, models_table, runs_table, seeds_table
from sidepipe.stages.report.sweep.terminal import collapsed, states, sweep_text
from sidepipe.stages.report.tables import Table

# Longer lists are folded.
OPEN = 12


def write_sweep(folder: Path, title: str, points: Sequence[Point]) -> Path:
    """The page of the sweep, written into `folder` with its tables, figures and text.

    Raises ValueError if the points are not measured alike, FileNotFoundError if a given evaluate
    artifact is not finished.
    """
    sweep = read(points)
    folder.mkdir(parents=True, exist_ok=True)
    draw = QUANTITIES if sweep.runs else ()
    write(
        folder,
        "sweep.html.j2",
        tables=_tables(sweep) if sweep.runs else [],
        drawings={q.name: drawn(partial(sweep_figure, sweep, q)) for q in draw},
        numbers={"attacks": [{**point.axes, **numbers(attack)} for point, attack in sweep.runs]},
        text=sweep_text(sweep),
        content={"title": title, **_head(sweep), **_found(sweep), "links": _links(sweep, folder)},
    )
    return page_path(folder)


def _tables(sweep: Sweep) -> list[Table]:
    """The tables; means only if seeds repeat a point, the paper's only for its data sets."""
    made = [runs_table(sweep), seeds_table(sweep), models_table(sweep)]
    made += [means_table(sweep)] if sweep.repeated else []
    return made + ([paper_table(sweep)] if comparable(sweep) else [])


def _head(sweep: Sweep) -> dict[str, Any]:
    """The swept settings, the progress and the missing points."""
    fixed = [name for name in sweep.axes if name not in sweep.swept]
    return {
        "axes": {name: _values(sweep.axes[name]) for name in sweep.swept},
        "fixed": label(sweep.points[0], fixed),
        "num_points": len(sweep.points),
        "points_done": len(sweep.points) - len({id(point) for point, _, _ in sweep.waiting}),
        "num_attacks": len(sweep.runs) + len(sweep.waiting),
        "attacks_done": len(sweep.runs),
        "missing": _missing(sweep),
        "states": states(sweep),
        "notices": collapsed(sweep),
        "open": OPEN,
    }


def _values(values: Sequence[Any]) -> str:
    if len(values) > OPEN:
        return f"{len(values)} values from {value_words(values[0])} to {value_words(values[-1])}"
    return ", ".join(map(value_words, values))


def _missing(sweep: Sweep) -> dict[str, list[dict[str, Any]]]:
    """Missing points by kind of state, with the attacks that wait and their keys."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for point, name, missing in sweep.waiting:
        same = found.setdefault((label(point, sweep.swept), missing.state), [])
        same.append((name, missing.key))
    kinds: dict[str, list[dict[str, Any]]] = {}
    for (place, state), attacks in found.items():
        one = {"place": place, "state": state, "attacks": attacks}
        kinds.setdefault(kind(state), []).append(one)
    return kinds


def _found(sweep: Sweep) -> dict[str, Any]:
    """Facts about the finished attacks; empty if there are none."""
    if not sweep.runs:
        return {"first": None}
    attacks = [attack for _, attack in sweep.runs]
    same = comparable(sweep)
    return {
        "first": attacks[0],
        "best": _best(sweep),
        "quantities": QUANTITIES,
        "repeated": ", ".join(sweep.repeated),
        "several_panels": len(sweep.panels) > 1,
        "numeric": sweep.is_numeric(sweep.x),
        "x": sweep.x,
        "fewer_heldout": any(attack.scale > 1 for attack in attacks),
        "different_numbers": len({attack.num_images for attack in attacks}) > 1,
        "differences": differences(same) if same else [],
    }


def _best(sweep: Sweep) -> dict[str, Any]:
    """The spot with the largest mean excess, and plain sampling at the same place if any."""
    done = [spot for spot in sweep.spots if spot.finished]
    sound = [spot for spot in done if not any(attack.collapse for attack in spot.finished)]
    best = max(sound or done, key=EXCESS.mean)
    plain = [s for s in done if s.place == best.place and not s.finished[0].guided]
    others = [spot for spot in plain if best.finished[0].guided]
    return {
        "spot": best,
        "excess": _excess(best, sweep),
        "plain": others[0] if others else None,
        "plain_excess": _excess(others[0], sweep) if others else "",
    }


def _excess(spot: Spot, sweep: Sweep) -> str:
    """The excess in words: `3.40 % (95 % interval 2.48 to 4.38)`."""
    first = spot.finished[0]
    if not sweep.repeated:
        interval = words.excess_interval(first)
        return f"{words.excess_share(first)} % (95 % interval {interval})"
    low, high = EXCESS.range(spot)
    runs = f"{low:.2f} to {high:.2f} in {len(spot.finished)} runs"
    return f"{EXCESS.mean(spot):.2f} % ({runs})"


def _links(sweep: Sweep, folder: Path) -> list[tuple[str, str]]:
    """(point, relative address) of the reports of single points."""
    return [
        (label(point, sweep.swept) or "its report", relpath(page_path(point.report), folder))
        for point in sweep.ordered
        if point.report is not None
    ]
