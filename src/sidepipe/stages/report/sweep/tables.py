"""The tables of a sweep: every run, seeds side by side and their means, the models under attack."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidepipe.stages.report import words
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.sweep.points import Point, Spot, Sweep, label, value_words
from sidepipe.stages.report.sweep.quantities import QUANTITIES
from sidepipe.stages.report.tables import Table
from sidepipe.stages.report.words import DASH, count, decimals, percent


def runs_table(sweep: Sweep) -> Table:
    """One row per finished attack of every point, with its own intervals."""
    first = sweep.runs[0][1]
    groups = [("point", len(sweep.swept)), ("", 1)] if sweep.swept else [("", 1)]
    columns = [*sweep.swept, "images", "on training images"]
    columns += ["on held-out images", "excess over held-out (95 % interval)"]
    rate = words.rate(first.headline["false_positive_rate"])
    groups.append((f"hits at {rate} held-out false positives", 3))
    groups += [("different training images hit", 3), ("network evaluations", 2)]
    columns += ["number (95 % interval)", "% of all", "new", "in all", "hits per 1,000"]
    rows = [(attack.name, _run(point, attack, sweep)) for point, attack in sweep.runs]
    return Table("runs", "Every finished run", groups, columns, rows)


def _run(point: Point, attack: Attack, sweep: Sweep) -> list[str]:
    cells = [value_words(point.axes[name]) for name in sweep.swept]
    cells += [count(attack.num_images), words.hits(attack, "train")]
    cells += [words.hits(attack, "heldout"), words.excess(attack)]
    of_all = attack.unique / attack.num_different
    cells += [words.with_interval(attack.unique, attack.unique_interval), f"{100 * of_all:.3g}"]
    cells += [count(attack.new_unique), words.evaluations(attack.network_evaluations)]
    return [*cells, words.per_thousand(attack.hits(), attack.network_evaluations)]


def means_table(sweep: Sweep) -> Table:
    """The numbers of the figures: each attack's mean and range over its runs at every place."""
    groups = [("place", len(sweep.places))] if sweep.places else []
    groups += [("", 1), ("mean over runs (lowest to highest)", len(QUANTITIES))]
    columns = [*sweep.places, "runs", *(quantity.title for quantity in QUANTITIES)]
    rows = [(spot.attack, _spot(spot, sweep)) for spot in sweep.spots if spot.finished]
    return Table("means", "Means over seeds", groups, columns, rows)


def _spot(spot: Spot, sweep: Sweep) -> list[str]:
    place = [value_words(spot.point.axes[name]) for name in sweep.places]
    shown = [words.with_interval(q.mean(spot), q.range(spot), q.places) for q in QUANTITIES]
    return [*place, runs_in_words(spot), *shown]


def seeds_table(sweep: Sweep) -> Table:
    """One row per attack and place, with its runs side by side by seed.

    Held-out hits are scaled to the number of training images.
    """
    columns = [*sweep.places, "hits", "held out", "excess, % (95 % interval)"]
    columns += ["different (held out)", "new", "network evaluations"]
    rows = [(spot.attack, _seeds(spot, sweep)) for spot in sweep.spots if spot.finished]
    return Table("seeds", "Seeds side by side", [("", len(columns))], columns, rows)


def _seeds(spot: Spot, sweep: Sweep) -> list[str]:
    runs = [_side(attack) for attack in spot.finished]
    place = [value_words(spot.point.axes[name]) for name in sweep.places]
    return [*place, *("; ".join(cells) for cells in zip(*runs, strict=True))]


def _side(attack: Attack) -> list[str]:
    return [
        count(attack.hits()),
        words.average(attack.heldout_hits),
        f"{words.excess_share(attack)} ({words.excess_interval(attack)})",
        f"{count(attack.unique)} ({words.average(attack.headline['heldout']['unique'])})",
        count(attack.new_unique),
        words.evaluations(attack.network_evaluations),
    ]


def runs_in_words(spot: Spot) -> str:
    """How many runs of the spot are finished: `3`, or `2 of 3`."""
    done, wanted = len(spot.finished), len(spot.finished) + len(spot.missing)
    return count(done) if done == wanted else f"{done} of {wanted}"


def models_table(sweep: Sweep) -> Table:
    """How much each model has memorized: its losses, and the hits of plain samples."""
    found: dict[Path, list[tuple[Point, Attack]]] = {}
    for point, attack in sweep.runs:
        found.setdefault(attack.artifact("dpm"), []).append((point, attack))
    groups = [("training", 2), ("denoising loss", 3), ("plain sampling", 4)]
    columns = ["images", "epochs", "training", "held-out", "gap, %"]
    columns += ["images", "hits", "held-out hits", "excess over held-out (95 % interval)"]
    rows = [(_model_name(runs, sweep), _model(runs)) for runs in found.values()]
    caption = "How much each model has memorized"
    return Table("models", caption, groups, columns, rows, head="model")


def _model_name(runs: Sequence[tuple[Point, Attack]], sweep: Sweep) -> str:
    """The settings shared by all points of the model, or its key."""
    points = [point for point, _ in runs]
    same = [n for n in sweep.swept if len({value_words(p.axes[n]) for p in points}) == 1]
    return label(points[0], same) or runs[0][1].manifests["dpm"]["key"]


def _model(runs: Sequence[tuple[Point, Attack]]) -> list[str]:
    attacks = [attack for _, attack in runs]
    summary = attacks[0].summary("dpm")
    epochs = words.epochs(summary["epochs"]) if "epochs" in summary else DASH
    cells = [count(summary["num_train_images"]), epochs, *_losses(summary)]
    plain = next((attack for attack in attacks if not attack.guided), None)
    if plain is not None:
        cells += [count(plain.num_images), words.hits(plain, "train"), words.hits(plain, "heldout")]
        return [*cells, words.excess(plain)]
    # Every evaluation also scores the N_syn plain samples, on training images only.
    results = attacks[0].results
    number, hits = results["num_synthetic"], results["novelty"]["synthetic_hits"]
    return [
        *cells,
        count(number),
        f"{count(hits)} ({percent(hits / number, number)} %)",
        DASH,
        DASH,
    ]


def _losses(summary: dict[str, Any]) -> list[str]:
    """Losses at the end of training and their gap; a foreign checkpoint has none."""
    train, heldout = (summary.get(f"val/loss_{which}") for which in ("train", "heldout"))
    gap = None if train is None or heldout is None else 100 * (heldout / train - 1)
    return [decimals(train, 4), decimals(heldout, 4), decimals(gap, 1)]
