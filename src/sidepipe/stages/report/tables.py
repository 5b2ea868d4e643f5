"""The tables of the comparison, one row per attack, for the page and for papers."""

from collections.abc import Sequence
from dataclasses import dataclass

from sidepipe.stages.attack.attack import load_gradient_seconds
from sidepipe.stages.report import words
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.comparison import only_here
from sidepipe.stages.report.words import COLLAPSED, DASH, count


@dataclass(frozen=True)
class Table:
    """A table. name: of its files. groups: (heading, number of columns). rows: (name, cells).

    head: the heading of the column of row names.
    """

    name: str
    caption: str
    groups: list[tuple[str, int]]
    columns: list[str]
    rows: list[tuple[str, list[str]]]
    head: str = "attack"

    @property
    def starts(self) -> list[bool]:
        """Whether each column is the first of its group."""
        return [i == 0 for _, span in self.groups for i in range(span)]


def hits_table(attacks: Sequence[Attack]) -> Table:
    """Hits on training and held-out images at every calibrated threshold."""
    first = attacks[0]
    columns = [
        "images",
        f"hits on {count(first.results['num_reference']['train'])} training images",
        f"hits on {words.heldout_head(first)}",
        "excess over held-out (95 % interval)",
        f"different training {first.unit}s hit",
    ]
    rule = f"{words.rate(first.headline['false_positive_rate'])} false positives"
    groups = [("", 1), (f"hit, at {rule}: {words.hit_rule(first)}", len(columns) - 1)]
    for row in first.results["calibrated"][1:]:
        rule = words.threshold_rule(first, row["threshold"])
        groups.append((f"at {words.rate(row['false_positive_rate'])}: {rule}", 3))
        columns += ["training", "held-out", "different"]
    rows = [(attack.name, _hits_row(attack)) for attack in attacks]
    return Table("hits", "Generated images that match a training image", groups, columns, rows)


def _hits_row(attack: Attack) -> list[str]:
    cells = [count(attack.num_images), *(words.hits(attack, name) for name in ("train", "heldout"))]
    cells += [COLLAPSED if attack.collapse else words.excess(attack), count(attack.unique)]
    for row in attack.results["calibrated"][1:]:
        cells += [count(row["train"]["count"]), words.average(row["heldout"]["scaled"])]
        cells.append(count(row["train"]["unique"]))
    return cells


def rarefaction_table(attacks: Sequence[Attack]) -> Table:
    """The estimated number of different training images that can be extracted."""
    groups = [("hits found", 4), ("training images within reach", 2)]
    groups.append(("check: all, predicted from a quarter", 4))
    columns = ["hits", "different", "seen once", "seen twice", "at least (95 % confidence)"]
    columns += ["coverage, %", "from images", "predicted (95 % interval)", "found", "error, %"]
    rows = [(attack.name, _rarefaction_row(attack)) for attack in attacks]
    return Table(
        "rarefaction", "Training images found, and the estimated rest", groups, columns, rows
    )


def _rarefaction_row(attack: Attack) -> list[str]:
    found = attack.results["rarefaction"]
    seen, check = found["observed"], found["check"]
    cells = [count(seen[name]) for name in ("hits", "unique", "singletons", "doubletons")]
    cells.append(words.at_least(attack))
    cells.append(_percent(found["coverage"]))
    cells += [
        count(check["num_images"]),
        words.with_interval(check["predicted"], check["interval"]),
    ]
    return [*cells, count(check["observed"]), _percent(check["relative_error"])]


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{100 * share:.1f}"


def novelty_table(attacks: Sequence[Attack]) -> Table:
    """Hits already found by plain synthetic images, new hits, and their cost."""
    groups = [("N_syn plain images", 3), ("hits already among them", 2), ("new hits", 2)]
    groups.append(("per 1,000 network evaluations", 2))
    columns = ["images", *["hits", "different"] * 4]
    rows = [(attack.name, _novelty_row(attack)) for attack in attacks]
    return Table("novelty", "Hits already among plain samples, and new hits", groups, columns, rows)


def _novelty_row(attack: Attack) -> list[str]:
    found = attack.results["novelty"]
    numbers = [attack.results["num_synthetic"], found["synthetic_hits"], found["synthetic_unique"]]
    numbers += [found[part][kind] for part in ("seen", "new") for kind in ("count", "unique")]
    if not attack.results["num_synthetic"]:
        numbers = [None] * len(numbers)
    made = (attack.hits(), attack.unique)
    prices = [words.per_thousand(number, attack.network_evaluations) for number in made]
    return [*map(count, numbers), *prices]


def overlap_table(attacks: Sequence[Attack]) -> Table:
    """Training images that only this attack hits, and those that it shares with each other one."""
    groups = [("training images hit", 3), ("hit by this attack and by", len(attacks))]
    columns = ["different", "only here", "shared", *(attack.name for attack in attacks)]
    rows = [(attack.name, _overlap_row(attack, attacks)) for attack in attacks]
    return Table("overlap", "Overlap of the attacks", groups, columns, rows)


def _overlap_row(attack: Attack, attacks: Sequence[Attack]) -> list[str]:
    found, alone = len(attack.hit_images), len(only_here(attack, attacks))
    both = [
        DASH if other is attack else count(len(attack.hit_images & other.hit_images))
        for other in attacks
    ]
    return [count(found), count(alone), count(found - alone), *both]


def cost_table(attacks: Sequence[Attack]) -> Table:
    """The guidance of each attack, and its network evaluations.

    each: the operations of a gradient; timed: its seconds; both in forwards of the network.
    """
    columns = ["surrogate", "guidance scale", "guided", "targets", "refined"]
    columns += ["forwards", "surrogate gradients", "each", "timed", "evaluations"]
    columns.append("N_syn")
    groups = [("guidance", 4), ("", 1), ("spent", 6)]
    rows = [(attack.name, _cost_row(attack)) for attack in attacks]
    return Table("cost", "Settings and cost of each attack", groups, columns, rows)


def _cost_row(attack: Attack) -> list[str]:
    scale = f"{attack.settings['guidance_scale']:g}" if attack.guided else DASH
    cells = [attack.settings["surrogate"], scale, words.guided_timesteps(attack)]
    cells += [words.targets(attack), words.refinement(attack)]
    cost = attack.cost
    cells += [words.evaluations(cost[n]) for n in ("unet_forwards", "surrogate_gradients")]
    cells.append(f"{cost['gradient_cost']:.2f}" if attack.guided else DASH)
    seconds = load_gradient_seconds(attack.artifact("extract")) if attack.guided else None
    cells.append(DASH if seconds is None else f"{seconds:.2f}")
    before = words.evaluations(cost["synthetic_evaluations"])
    if training := cost.get("training_evaluations"):
        before += f" + {count(training)} to adapt the model"
    return [*cells, words.evaluations(attack.network_evaluations), before]


def tuning_table(attacks: Sequence[Attack]) -> Table:
    """Trials of tuned attacks: the blind score that decided, and the hits, which it did not use."""
    groups = [("tried", 2), ("available to the attack", 2), ("true", 3)]
    columns = ["settings", "images", "repeated", "chosen", "hits", "different", "rank of hits"]
    rows = [(attack.name, row) for attack in attacks for row in _tuning_rows(attack)]
    return Table("tuning", "Settings chosen without the training images", groups, columns, rows)


def _tuning_rows(attack: Attack) -> list[list[str]]:
    """One row per trial, in descending order of the score."""
    measured = ("score", "judged_by", "images", "hits", "unique", *attack.cost)
    rows = []
    for trial in sorted(attack.trials, key=lambda trial: -trial["score"]):
        tried = {name: value for name, value in trial.items() if name not in measured}
        settings = ", ".join(f"{name} {value}" for name, value in tried.items())
        chosen = all(attack.settings[name] == value for name, value in tried.items())
        rank = 1 + sum(other["hits"] > trial["hits"] for other in attack.trials)
        cells = [settings, count(trial["images"]), words.blind_score(trial)]
        cells += ["chosen" if chosen else "", *map(count, (trial["hits"], trial["unique"], rank))]
        rows.append(cells)
    return rows


def blind_table(attacks: Sequence[Attack]) -> Table:
    """Candidates found without the training images and, with the truth, their precision."""
    groups = [("found without the training images", 4)]
    columns = ["images", "candidates", "of two images or more", "images in the largest"]
    if attacks[0].has_truth:
        depths = _depths(attacks)
        groups += [("hits among the candidates, %", 1 + len(depths)), ("", 1)]
        columns += ["of all", *(f"of the first {count(depth)}" for depth in depths)]
        columns.append("area under the ROC")
    rows = [(attack.name, _blind_row(attack, attacks)) for attack in attacks]
    return Table("blind", "Candidates ranked without the training images", groups, columns, rows)


def _depths(attacks: Sequence[Attack]) -> list[int]:
    """Numbers of candidates with a known precision for any attack."""
    return sorted({int(k) for a in attacks for k in a.results["blind"]["precision_at"]})


def _blind_row(attack: Attack, attacks: Sequence[Attack]) -> list[str]:
    found = attack.results["blind"]
    cells = [count(attack.num_images)]
    cells.append(count(found["num_candidates"]))
    cells += [COLLAPSED if attack.collapse else count(found[n]) for n in ("groups", "largest")]
    if attack.has_truth:
        cells.append(_percent(found["base_rate"]))
        cells += [_percent(found["precision_at"].get(str(k))) for k in _depths(attacks)]
        cells.append(words.decimals(found["auc"]))
    return cells
