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
KEYS = ("train_images", "train_steps", "sampler", "attack", "refine_t", "false_positive_rate")
HEADS = {
    "train_images": "training images",
    "train_steps": "training steps",
    "refine_t": "t",
    "false_positive_rate": "false positive rate",
    "heldout_hits": "held-out hits",
    "different": "different training images",
    "different_heldout": "different held-out images",
    "evaluations": "network evaluations",
    "hits_per_1000_evaluations": "hits per 1,000 evaluations",
}
Row = dict[str, str]
Panel = tuple[str, list[Row]]


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
    if column == "excess" and len(rows) == 1:
        return f"{values[0]} ({rows[0]['excess_low']} to {rows[0]['excess_high']})"
    return mean(values) if values else ""


def table(rows: list[Row]) -> str:
    """The rows as Markdown, one line per attack."""
    columns = [key for key in rows[0] if key not in (*KEYS, "seed", "excess_low", "excess_high")]
    groups = grouped(rows)
    several = any(len(group) > 1 for group in groups.values())
    excess = f"excess, % ({'range over models' if several else '95 % interval'})"
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


def by_size(name: str, attacks: Sequence[str]) -> list[Panel]:
    """A panel for each number of training images of a CSV file of faces."""
    return [
        (f"{size:,} faces", rows_of(name, attacks, train_images=size)) for size in (250, 500, 1000)
    ]


def panels() -> dict[str, list[Panel]]:
    """What each figure of attacks shows: rows of a CSV file under a title."""
    refined = ["unconditional", "side", "posterior_repeats", "refined_cheap", "refined"]
    refined += ["side_refined", "repeats_refined"]
    side = ["unconditional", "side"]
    baselines = ["carlini_cond_x0", "carlini_cond", "side", "original_labels", "random_labels"]
    posterior = ["classifier_cohesive", "posterior_distilled", "posterior", "posterior_tuned"]
    rounds = ["posterior", "posterior_rounds", "posterior_rounds_all"]
    aimed = ["unconditional", "side", "posterior", "posterior_tuned", "posterior_repeats"]
    return {
        "refinement": [
            ("digits", rows_of("refined_digits", refined)),
            *by_size("refined_faces", refined),
        ],
        "side": [
            ("digits", rows_of("guided_digits", [*baselines, "unconditional"])),
            *by_size("guided_faces", side),
        ],
        "posterior": [
            ("digits", rows_of("guided_digits", ["unconditional", "side", *posterior])),
            *by_size("guided_faces", aimed[:4]),
        ],
        "repeats": [
            ("digits", rows_of("guided_digits", aimed)),
            *by_size("guided_faces", aimed),
        ],
        "rounds": [("digits", rows_of("guided_digits", ["unconditional", *rounds]))],
        "copy-descriptor": by_size("refined_faces_copydet", refined),
        "refined-synthetic": [("digits", rows_of("refined_synthetic_digits"))],
        "ancestral": [("digits, eta = 1", rows_of("ancestral_digits"))],
        "schedules": [("digits", rows_of("schedules_digits"))],
        "faces32": [
            (f"{steps:,} training steps", rows_of("refined_faces32", train_steps=steps))
            for steps in (2000, 4500)
        ],
        "control": [
            (
                f"threshold at {100 * float(rate):g} %",
                rows_of("control_faces", false_positive_rate=rate),
            )
            for rate in ("0.001", "0.01")
        ],
        "lora": [("digits", rows_of("lora_digits"))],
    }


def draw_attacks(shown: list[Panel], path: Path) -> None:
    """The excess of each model with its 95 % interval; a line per attack, a panel per data set."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["attack"] for _, rows in shown for row in rows))
    width, height = 3.2 + 2.2 * len(shown), 1.0 + 0.36 * len(names)
    figure = Figure(figsize=(width, height), layout="constrained")
    for axes, (title, rows) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
    ):
        for row in rows:
            shift = 0.2 * (int(row["seed"]) - 1) if len({r["seed"] for r in rows}) > 1 else 0
            low, middle, high = (float(row[k]) for k in ("excess_low", "excess", "excess_high"))
            y = len(names) - 1 - names.index(row["attack"]) - shift
            mark = "osD"[int(row["seed"])]
            axes.errorbar(
                middle,
                y,
                xerr=[[middle - low], [high - middle]],
                fmt=mark,
                color="black",
                ms=3,
                lw=1,
            )
        axes.axvline(0, color="0.6", lw=0.8)
        axes.set(title=title, xlabel="excess, %", ylim=(-0.6, len(names) - 0.4))
        axes.set_yticks(range(len(names)), [] if axes is not figure.axes[0] else names[::-1])
        axes.grid(axis="x", color="0.9")
    save(figure, path)


def draw_trials(path: Path) -> None:
    """Hits and groups of near duplicates of trials, by the noise of refinement."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    shown = {
        "digits, three models": "noise_trials_digits",
        "faces of 32 pixels": "noise_trials_faces32",
    }
    for axes, (title, name) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        rows = rows_of(name)
        for seed in sorted({row["seed"] for row in rows}):
            own = [row for row in rows if row["seed"] == seed]
            t = [int(row["refine_t"]) for row in own]
            for column, style in (("hits", "o-"), ("groups", "s--")):
                label = {"hits": "hits", "groups": "groups of near duplicates"}[column]
                values = [int(row[column]) for row in own]
                axes.plot(
                    t,
                    values,
                    style,
                    color="black",
                    ms=3,
                    lw=1,
                    label=label if seed == "0" else None,
                )
        axes.set(title=title, xlabel="t of refinement", ylim=(0, None))
        axes.legend(frameon=False)
    figure.axes[0].set_ylabel("per 500 images")
    save(figure, path)


def draw_samplers(path: Path) -> None:
    """Hits per 1,000 network evaluations of each sampler, unguided and guided."""
    from matplotlib.figure import Figure

    rows = rows_of("steps_digits_cost")
    names = list(dict.fromkeys(row["sampler"] for row in rows))[::-1]
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for attack, mark in (("plain", "o"), ("posterior", "s"), ("repeats", "D")):
        own = [row for row in rows if row["attack"] == attack]
        x = [float(row["hits_per_1000_evaluations"]) for row in own]
        fill = "black" if attack == "plain" else "white"
        y = [names.index(row["sampler"]) for row in own]
        axes.plot(x, y, mark, color="black", markerfacecolor=fill, label=attack)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="hits per 1,000 network evaluations", xlim=(0, None))
    axes.grid(axis="x", color="0.9")
    axes.legend(frameon=False, loc="upper right")
    save(figure, path)


def save(figure, path: Path) -> None:
    """An SVG file that is the same each time it is written."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "sidepipe", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def draw(folder: Path) -> None:
    """Every figure of the pages."""
    folder.mkdir(exist_ok=True)
    for name, shown in panels().items():
        draw_attacks(shown, folder / f"{name}.svg")
    draw_trials(folder / "noise.svg")
    draw_samplers(folder / "sampler.svg")


def main() -> None:
    """Writes tables into pages, and figures beside them."""
    for page in sorted(HERE.glob("*.md")):
        page.write_text(with_tables(page.read_text()))
    draw(HERE / "figures")


if __name__ == "__main__":
    main()
