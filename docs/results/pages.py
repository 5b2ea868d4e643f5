"""Writes tables and figures of the results pages: `python docs/results/pages.py`.

The CSV files in docs/results/data hold one row per model. A page marks each of its tables with the
name of a CSV file and, where the table shows a part of it, the attacks. The script writes the means
over the models between a mark and its end.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).parent
DATA = HERE / "data"
TABLE = re.compile(r"<!-- begin table: (\w+)([ \w]*) -->\n.*?<!-- end table -->", re.DOTALL)
KEYS = (
    "data",
    "model",
    "network",
    "train_images",
    "train_steps",
    "sampler",
    "sampling",
    "attack",
    "method",
)
KEYS += ("dimension", "train_rows", "bandwidth", "score", "edit", "refine_t", "known_starts")
KEYS += ("false_positive_rate", "image_kind", "bin", "search", "prompts", "repeats")
# Columns that a table shows with their value: intervals of single models; of several it has ranges.
HIDDEN = {"seed", "excess_low", "excess_high"}
HIDDEN |= {
    f"{name}_{end}"
    for name in ("still", "recovered", "control", "extracted")
    for end in ("low", "high")
}
HEADS = {
    "train_images": "training images",
    "train_steps": "training steps",
    "train_rows": "training rows",
    "ratio": "ratio below 1/3, %",
    "ratio_heldout": "ratio of held-out rows, %",
    "mem_auc": "Mem-AUC, %",
    "mem_auc_heldout": "Mem-AUC of held-out rows, %",
    "scaled_ratio": "ratio in units of ranges, %",
    "scaled_ratio_heldout": "of held-out rows in units of ranges, %",
    "false_positives": "false positives, %",
    "exact": "exact copies",
    "exact_heldout": "exact copies of held-out rows",
    "closer": "closer to training, %",
    "closer_low": "closer, 95 % from",
    "closer_high": "closer, 95 % to",
    "divergence": "KL divergence",
    "nearer_to_truth": "nearer to the truth",
    "nearer_to_unseen": "nearer to unseen rows",
    "onset_loss": "onset by the loss gap, step",
    "onset_plain": "onset by plain samples, step",
    "onset_refined": "onset by refined samples, step",
    "loss_train": "training loss",
    "loss_heldout": "held-out loss",
    "plain_hits": "plain hits",
    "plain_heldout_hits": "plain held-out hits",
    "refined_hits": "refined hits",
    "refined_heldout_hits": "refined held-out hits",
    "moved_hits": "refined hits, moved copies too",
    "moved_heldout_hits": "held-out hits, moved copies too",
    "low": "lower bound of the excess, %",
    "refine_t": "t",
    "false_positive_rate": "false positive rate",
    "heldout_hits": "held-out hits",
    "different": "different training images",
    "different_6000": "different by 6,000 evaluations",
    "different_12000": "by 12,000",
    "different_9000": "different by 9,000 evaluations",
    "different_18000": "by 18,000",
    "different_low": "different, 95 % from",
    "different_high": "different, 95 % to",
    "different_heldout": "different held-out images",
    "ratio_hits": "hits by the published rule",
    "known_starts": "first starts",
    "t_best": "best t",
    "different_best": "different training images at best t",
    "t_groups": "t by groups",
    "different_groups": "different at t by groups",
    "t_rate": "t by rate",
    "different_rate": "different at t by rate",
    "t_apart": "t by distances",
    "different_apart": "different at t by distances",
    "coverage_estimated": "estimated share that repeats, %",
    "coverage_true": "true share, %",
    "hits_known": "further hits on known training images, %",
    "groups_estimated": "groups, estimated",
    "groups_in_all": "groups in all",
    "of_starts": "of starts",
    "different_in_all": "of different in all",
    "found_by_refined": "found by `refined_cheap`",
    "refined_at": "after evaluations",
    "relaxed_at": "`relaxed` finds as many after",
    "found_by_relaxed": "found by `relaxed`",
    "relaxed_end": "after its evaluations",
    "refined_end": "`refined_cheap_10` finds as many after",
    "found_by_long": "found by `refined_cheap_10`",
    "share_of_long": "`relaxed` of these, %",
    "different_rows": "different training rows",
    "different_heldout_rows": "different held-out rows",
    "utility": "utility (R2)",
    "impossible": "impossible rows, %",
    "return_bound": "returned by the bound, %",
    "return_exact": "returned by Bayes' rule, %",
    "cycled": "returned by a cycle, %",
    "kept": "kept by refinement, %",
    "evaluations": "network evaluations",
    "hits_per_1000_evaluations": "hits per 1,000 evaluations",
    "hits_at_1_percent": "hits at 1 %",
    "heldout_hits_at_1_percent": "held-out hits at 1 %",
    "extracted_flagged": "of these extracted",
    "extracted_others": "of the others extracted",
    "hits_on_flagged": "hits on flagged images, %",
    "image_kind": "kind",
    "bin": "probability",
    "audited": "images with it",
    "sample_hits": "hits of the sample",
    "expected": "expected to be extracted",
    "expected_low": "95 % from",
    "expected_high": "95 % to",
    "found": "extracted",
    "auc": "AUC",
    "auc_low": "from",
    "auc_high": "to",
    "tpr_at_1_percent": "TPR at 1 % FPR, %",
    "rank_correlation": "rank correlation with hits",
    "pixel_l2": "pixel L2",
    "memorized_images": "memorized images",
    "still": "still memorized, %",
    "recovered": "recovered by an adversary, %",
    "control": "its control, %",
    "still_unused": "still memorized of the unused half, %",
    "recovered_unused": "recovered of the unused half, %",
    "alignment_other": "alignment, other prompts",
    "kid": "KID",
    "evaluations_per_image": "evaluations per image",
    "recall": "recall, %",
    "memorized": "memorized of all",
    "extracted": "extracted by the trigger, %",
    "exposure_median": "exposure, median bits",
    "found_by_search": "found by the search",
    "images_per_second": "images per second",
    "speed_per_plain": "speed per plain",
    "cost_per_unguided": "cost per unguided",
}
# Next to an excess, of one model and of several.
SHOWN = {False: "95 % interval", True: "range over models"}
Row = dict[str, str]


def rows_of(name: str, attacks: Sequence[str] = (), **values: object) -> list[Row]:
    """The rows of a CSV file with these values, in its order or in that of the attacks."""
    with (DATA / f"{name}.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if all(r[k] == str(v) for k, v in values.items())]
    if missing := set(attacks) - {row.get("attack") for row in rows}:
        raise ValueError(f"{name}.csv has no rows of the attacks {sorted(missing)}")
    chosen = [row for row in rows if not attacks or row["attack"] in attacks]
    return sorted(chosen, key=lambda row: attacks.index(row["attack"])) if attacks else chosen


def grouped(rows: Iterable[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Rows that differ in nothing but the model, by what they have in common."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in KEYS if key in row), []).append(row)
    return groups


def mean(values: list[str]) -> str:
    """The mean with the smallest and the largest value; the value itself where all are equal."""
    numbers = [float(value) for value in values]
    exact = max(len(value.partition(".")[2]) for value in values)
    if len(set(values)) == 1:
        return f"{numbers[0]:,.{exact}f}"
    average = sum(numbers) / len(numbers)
    digits = exact or int(average < 100)
    return f"{average:,.{digits}f} ({min(numbers):,.{exact}f} to {max(numbers):,.{exact}f})"


def cell(rows: list[Row], column: str) -> str:
    """One value of a table: of one model the value, of several their mean and range."""
    values = [row[column] for row in rows if row[column]]
    if len(rows) == 1 and f"{column}_low" in HIDDEN and values:
        return f"{values[0]} ({rows[0][f'{column}_low']} to {rows[0][f'{column}_high']})"
    return mean(values) if values else ""


def table(rows: list[Row]) -> str:
    """The rows as Markdown, one line per attack."""
    columns = [key for key in rows[0] if key not in {*KEYS, *HIDDEN}]
    groups = grouped(rows)
    several = {len(group) > 1 for group in groups.values()}
    said = [SHOWN[each] for each in sorted(several)]
    excess = f"excess, % ({' or '.join(said)})"
    heads = {**HEADS, "excess": excess}
    names = [key for key in KEYS if key in rows[0]]
    lines = [[heads.get(head, head) for head in (*names, *columns)]]
    lines.append(["---"] * len(lines[0]))
    for key, group in groups.items():
        common = [f"{float(k):,g}" if k.replace(".", "").isdigit() else f"`{k}`" for k in key]
        lines.append([*common, *(cell(group, column) for column in columns)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def with_tables(page: str) -> str:
    """The page with the table of each of its marks."""

    def written(mark: re.Match[str]) -> str:
        name, attacks = mark[1], mark[2].split()
        begin = f"<!-- begin table: {name}{mark[2]} -->\n"
        return f"{begin}{table(rows_of(name, attacks))}<!-- end table -->"

    return TABLE.sub(written, page)


def main() -> None:
    """Writes tables into pages, and figures beside them."""
    from figures import draw  # which imports this module

    for page in sorted(HERE.glob("*.md")):
        page.write_text(with_tables(page.read_text()))
    draw(HERE / "figures")


if __name__ == "__main__":
    main()
