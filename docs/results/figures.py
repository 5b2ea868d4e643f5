"""The figures of the results pages, drawn from docs/results/data; pages.py saves them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pages import HEADS, Row, rows_of

Panel = tuple[str, list[Row]]


def by_size(name: str, attacks: Sequence[str]) -> list[Panel]:
    """A panel for each number of training images of a CSV file of faces."""
    sizes = sorted({int(row["train_images"]) for row in rows_of(name)})
    return [(f"{size:,} faces", rows_of(name, attacks, train_images=size)) for size in sizes]


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
        "latent": by_size("latent_faces", ["unconditional", "refined", "side"]),
        "exact": [
            (model, rows_of("exact", model=model))
            for model in dict.fromkeys(row["model"] for row in rows_of("exact"))
        ],
        "control": [
            (
                f"threshold at {100 * float(rate):g} %",
                rows_of("control_faces", false_positive_rate=rate),
            )
            for rate in ("0.001", "0.01")
        ],
        "lora": [("digits", rows_of("lora_digits"))],
        "ablation": [("digits", rows_of("ablation_digits"))],
        "faces16": [
            ("by pixels", rows_of("faces16_pixels")),
            ("by a copy descriptor", rows_of("faces16_copydet")),
        ],
    }


def draw_attacks(shown: list[Panel], path: Path) -> None:
    """The excess of each model with its 95 % interval; a line per attack, a panel per data set."""
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


def draw_coverage(path: Path) -> None:
    """Different training images by network evaluations; a curve per attack, its end with 95 %.

    A dot at a curve's end is the number of different held-out images.
    """
    shown = {"relaxed": "-", "union": (0, (8, 2)), "annealed": "--", "refined_cheap": "-."}
    shown |= {"refined": "-.", "cyclic": ":", "cyclic_20": (0, (6, 3)), "cyclic_100": (0, (1, 3))}
    shown |= {"cyclic_100_10": ":"}
    data = [
        *((f"digits, seed {seed}", rows_of("coverage_digits", seed=seed)) for seed in range(3)),
        ("250 faces, 16 pixels", rows_of("coverage_faces16")),
        ("512 faces, 32 pixels", rows_of("coverage_faces32")),
        ("256 faces, 64 pixels, latent", rows_of("coverage_latent")),
    ]
    figure = Figure(figsize=(11.4, 6.0), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(2, 3).flat, data, strict=True):
        for row in rows:
            if row["attack"] in shown:
                draw_discovery(axes, row, shown[row["attack"]])
        axes.set(title=title, xlabel="network evaluations", xlim=(0, None), ylim=(0, None))
        axes.grid(color="0.9")
    for axes in figure.axes[::3]:
        axes.set_ylabel("different training images")
    lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
    named = {name: line for name, line in lines.items() if name in shown}
    figure.legend(named.values(), named.keys(), frameon=False, loc="outside right upper")
    save(figure, path)


def draw_discovery(axes: Axes, row: Row, style: Any) -> None:
    """One attack of `draw_coverage`."""
    end, evaluations = int(row["different"]), int(row["evaluations"])
    between = {int(key[10:]): int(row[key]) for key in row if re.fullmatch(r"different_\d+", key)}
    points = sorted({0: 0, **between, evaluations: end}.items())
    x, y = zip(*points, strict=True)
    axes.plot(x, y, linestyle=style, color="black", lw=1, label=row["attack"])
    below, above = end - int(row["different_low"]), int(row["different_high"]) - end
    axes.errorbar(evaluations, end, yerr=[[below], [above]], color="black", lw=1, capsize=2)
    axes.plot(evaluations, float(row["different_heldout"]), "o", color="0.6", ms=3, clip_on=False)


def draw_samplers(path: Path) -> None:
    """Hits per 1,000 network evaluations of each sampler, unguided and guided."""
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


def bars(axes: Axes, rows: list[Row], name: str, columns: Sequence[str]) -> None:
    """A group of horizontal bars for each row."""
    names = [row[name] for row in rows][::-1]
    height = 0.8 / len(columns)
    for number, column in enumerate(columns):
        y = [k + 0.4 - (number + 0.5) * height for k in range(len(rows))]
        values = [float(row[column]) for row in rows][::-1]
        shade = str(0.8 * number / max(1, len(columns) - 1)) if len(columns) > 1 else "0.4"
        axes.barh(y, values, height, color=shade, edgecolor="black", lw=0.5, label=column)
    axes.set_yticks(range(len(names)), names)


def draw_precision(path: Path) -> None:
    """Average precision on planted copies, by edit, of the descriptor and of pixels."""
    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    titles = ("faces 16 px", "faces 32 px", "digits 8 px")
    columns = ("copydet", "pixel_l2", "correlation")
    for axes, title in zip(figure.subplots(1, 3, sharey=True), titles, strict=True):
        bars(axes, rows_of("descriptor_precision", data=title), "edit", columns)
        axes.set(title=title, xlabel="average precision", xlim=(0, 1.02))
    handles, _ = figure.axes[0].get_legend_handles_labels()
    names = ["copy descriptor", "pixel L2", "correlation"]
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def draw_mitigation(path: Path) -> None:
    """Shares still memorized and recovered against alignment, a point per method and model."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    rows = rows_of("text_benchmark")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axes, share in zip(figure.subplots(1, 2, sharey=True), ("still", "recovered"), strict=True):
        for method, mark in zip(methods, "osD^v<>*", strict=True):
            own = [row for row in rows if row["method"] == method]
            x, y = ([float(row[key]) for row in own] for key in (share, "alignment"))
            fill = "black" if method in ("none", "drop_word", "unlearn") else "white"
            axes.plot(x, y, mark, color="black", markerfacecolor=fill, label=method, clip_on=False)
        axes.set(xlabel=HEADS[share], xlim=(-3, 103))
    figure.axes[0].axvline(25, color="0.6", lw=0.8, ls="--")
    figure.axes[0].set_ylabel("alignment")
    figure.axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def draw_search(path: Path) -> None:
    """Recall of memorized images by network evaluations; a line per search and model."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes, rows = figure.subplots(), rows_of("text_search")
    searches = list(dict.fromkeys(row["search"] for row in rows))
    for search, style in zip(searches, ("-", "--", "-.", ":"), strict=False):
        own = [row for row in rows if row["search"] == search]
        for seed in dict.fromkeys(row["seed"] for row in own):
            curve = [row for row in own if row["seed"] == seed]
            x, y = ([float(row[key]) for row in curve] for key in ("evaluations", "recall"))
            label = search if seed == own[0]["seed"] else None
            axes.plot(x, y, ls=style, color="black", lw=1, marker=".", label=label)
    axes.set(xlabel="network evaluations", ylabel=HEADS["recall"], xscale="log", ylim=(0, None))
    axes.grid(color="0.9")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    save(figure, path)


def draw_speed(path: Path) -> None:
    """Sampling speed in times of the plain implementation."""
    figure = Figure(figsize=(7.6, 2.8), layout="constrained")
    for axes, network in zip(figure.subplots(1, 2, sharey=True), ("tiny", "unet16"), strict=True):
        rows = rows_of("speed_sampling", network=network)
        bars(axes, rows, "sampling", ["speed_per_plain"])
        axes.axvline(1, color="black", lw=0.8, ls="--")
        axes.set(title=network, xlabel="speed / plain guided")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """An SVG file that is the same each time it is written."""
    with mpl.rc_context({"svg.hashsalt": "sidepipe", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None})


def draw_linear(path: Path) -> None:
    """The divergence of a linear denoiser, and two signs of memorization, by training rows."""
    figure = Figure(figsize=(8.4, 3.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for d, style in (("8", "o-"), ("32", "s--")):
        rows = rows_of("linear_denoiser", dimension=d, bandwidth="1.0")
        x = [int(row["train_rows"]) / int(d) for row in rows]
        left.plot(x, [float(row["divergence"]) / int(d) for row in rows], style, label=f"d = {d}")
    left.set(title="KL divergence per dimension", yscale="log")
    for axes, column in ((middle, "nearer_to_truth"), (right, "nearer_to_unseen")):
        for bandwidth, style in (("0.5", "o-"), ("1.0", "s--"), ("2.0", "D-."), ("4.0", "^:")):
            rows = rows_of("linear_denoiser", dimension=32, bandwidth=bandwidth)
            x = [int(row["train_rows"]) / 32 for row in rows]
            values = [float(row[column]) for row in rows]
            axes.plot(x, values, style, label=f"bandwidth {float(bandwidth):g}")
        axes.set(title=f"{HEADS[column]}, d = 32", ylim=(-0.03, 1.03))
    right.axhline(0.5, color="0.6", lw=0.8)
    for axes in figure.axes:
        axes.set(xlabel="training rows / d", xscale="log")
        for line in axes.lines:
            line.set(color="black" if line.get_marker() != "None" else "0.6", ms=3, lw=1)
    left.legend(frameon=False)
    middle.legend(frameon=False, loc="center left")
    save(figure, path)


def draw_clock(path: Path) -> None:
    """The onset of memorization by training images, and hits and loss by training steps."""
    figure = Figure(figsize=(10.0, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    marks = {"loss": "o", "refined": "s", "plain": "D"}
    for name, mark in marks.items():
        rows = [row for row in rows_of("clock_onsets") if row[f"onset_{name}"]]
        n, steps = ([float(row[key]) for row in rows] for key in ("train_images", f"onset_{name}"))
        fill = "black" if name == "refined" else "white"
        left.plot(n, steps, mark, color="black", markerfacecolor=fill, label=name)
    sizes = sorted({int(row["train_images"]) for row in rows_of("clock_onsets")})
    ends = [sizes[0], sizes[-1]]
    left.plot(ends, [9 * end for end in ends], color="0.6", lw=1, ls="--", label="slope 1")
    left.set(xscale="log", yscale="log", xlabel="training images", ylabel="onset, step")
    left.set_xticks(sizes, map(str, sizes))
    left.set_xticks([], minor=True)
    left.legend(frameon=False)
    for size, style in (("16", ":"), ("64", "--"), ("256", "-")):
        rows = rows_of("clock_curves", train_images=size)
        steps = [int(row["train_steps"]) / int(size) for row in rows]
        for column, color in (("refined_hits", "black"), ("plain_hits", "0.6")):
            label = f"{column.removesuffix('_hits')}, {size} images"
            hits = [100 * int(row[column]) / 250 for row in rows]
            middle.plot(steps, hits, ls=style, color=color, label=label)
        loss = [float(row["loss_heldout"]) for row in rows]
        right.plot(steps, loss, ls=style, color="black", label=f"{size} images")
    middle.set(xlabel="steps per training image", ylabel="hits, % of samples", xscale="log")
    right.set(xlabel="steps per training image", ylabel="held-out loss", xscale="log")
    middle.legend(frameon=False, fontsize="small")
    right.set(ylim=(0.05, 0.25))
    right.legend(frameon=False)
    save(figure, path)


def draw(folder: Path) -> None:
    """Every figure of the pages."""
    folder.mkdir(exist_ok=True)
    for name, shown in panels().items():
        draw_attacks(shown, folder / f"{name}.svg")
    draw_trials(folder / "noise.svg")
    draw_coverage(folder / "coverage.svg")
    draw_samplers(folder / "sampler.svg")
    draw_precision(folder / "descriptor.svg")
    draw_mitigation(folder / "mitigation.svg")
    draw_search(folder / "search.svg")
    draw_speed(folder / "speed.svg")
    draw_linear(folder / "linear.svg")
    draw_clock(folder / "clock.svg")
