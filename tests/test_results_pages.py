"""The tables of docs/results are the means of their CSV files, and the pages hang together."""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGES = sorted(RESULTS.glob("*.md"))
sys.path.insert(0, str(RESULTS))
import figures  # noqa: E402
import pages  # noqa: E402

from sidepipe.memorization.clock import slope  # noqa: E402

MARK = re.compile(r"<!-- begin table: (\w+)([ \w]*) -->\n(.*?)<!-- end table -->", re.DOTALL)
TABLES = [
    pytest.param(page, found[1], found[3], id=f"{page.stem}-{found[1]}")
    for page in PAGES
    for found in MARK.finditer(page.read_text())
]
CELL = re.compile(r"(-?[\d,.]+)(?: \((-?[\d,.]+) to (-?[\d,.]+)\))?")
# Images per attack, where they are not 2,000.
IMAGES = {
    "tables_rows": 500,
    "tables_augment": 500,
    "classes_digits": 1000,
    "exact": 500,
    "finetuned_digits": 1000,
    "latent_faces": 1000,
    "latent_faces_copydet": 1000,
}
COLUMN = {head: column for column, head in pages.HEADS.items()}


def number(text):
    return float(text.replace(",", ""))


def cells_of(lines):
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines]


def common(data, key, cell):
    """Which rows of the CSV file have this value of a key."""
    return data[key] == (cell.strip("`") if "`" in cell else number(cell))


@pytest.mark.parametrize(("page", "name", "text"), TABLES)
def test_every_mean_and_range_of_a_table_is_that_of_the_csv_file(page, name, text):
    data = pd.read_csv(RESULTS / "data" / f"{name}.csv")
    head, _, *lines = cells_of(text.splitlines())
    columns = ["excess" if h.startswith("excess") else COLUMN.get(h, h) for h in head]
    assert len(lines) > 1
    for line in lines:
        rows = data
        for key, cell in zip(columns, line, strict=True):
            if key in pages.KEYS:
                rows = rows[common(rows, key, cell)]
        assert len(rows) in (1, 2, 3)
        for column, cell in zip(columns, line, strict=True):
            if column in pages.KEYS:
                continue
            values = rows[column].dropna()
            if not len(values):
                assert cell == ""
                continue
            mean, low, high = CELL.fullmatch(cell).groups()
            digits = len(mean.partition(".")[2])
            assert number(mean) == pytest.approx(values.mean(), abs=0.5 * 10**-digits + 1e-9)
            if len(rows) == 1 and f"{column}_low" in pages.HIDDEN:
                values = rows[[f"{column}_low", f"{column}_high"]].iloc[0]
            elif low is None:
                assert values.nunique() == 1
                continue
            assert (number(low), number(high)) == (values.min(), values.max())


def test_no_two_columns_of_a_table_have_one_head():
    assert len(COLUMN) == len(pages.HEADS)


def test_every_table_is_what_the_script_writes():
    assert len(TABLES) >= 16
    for page in PAGES:
        assert pages.with_tables(page.read_text()) == page.read_text()


def test_every_row_of_every_csv_file_is_in_a_table():
    shown = {}
    for page in PAGES:
        for name, attacks, _ in MARK.findall(page.read_text()):
            rows = pages.rows_of(name, attacks.split())
            shown.setdefault(name, []).extend(tuple(row.values()) for row in rows)
    for file in (RESULTS / "data").glob("*.csv"):
        assert {tuple(row.values()) for row in pages.rows_of(file.stem)} <= set(shown[file.stem])


def test_the_excess_of_a_row_is_its_hits_less_its_held_out_hits():
    for file in (RESULTS / "data").glob("*.csv"):
        data = pd.read_csv(file)
        if "excess" not in data:
            continue
        each = IMAGES.get(file.stem, 2000)
        if "attack" in data:
            images = data["attack"].map(
                lambda attack, each=each: 6000 if attack.endswith("_6000") else each
            )
        else:  # tables, of which generators make as many rows as they have training rows
            images = data["train_rows"]
        images = data.get("starts", images)
        share = 100 * (data["hits"] - data["heldout_hits"]) / images
        assert (share - data["excess"]).abs().max() <= 0.005 + 1e-9, file.name
        assert (
            (data["excess_low"] <= data["excess"]) & (data["excess"] <= data["excess_high"])
        ).all()


def test_the_claims_of_the_pages_follow_from_the_csv_files():
    sets = [pd.read_csv(RESULTS / "data" / "refined_digits.csv").assign(train_images=256)]
    sets.append(pd.read_csv(RESULTS / "data" / "refined_faces.csv"))
    data = pd.concat(sets)
    models = data.pivot(index=["train_images", "seed"], columns="attack")
    assert len(models) == 12
    assert (models["hits"]["side"] < models["hits"]["unconditional"]).sum() == 11
    assert (models["excess_low"]["refined"] > models["excess_high"]["unconditional"]).all()
    sums = data.groupby(["train_images", "attack"])[["hits", "different"]].sum()
    gain = sums.xs("refined", level=1) / sums.xs("unconditional", level=1)
    assert gain["hits"].round(1).tolist() == [8.2, 14.3, 8.0, 11.5]
    assert gain["different"].round(1).tolist() == [2.6, 3.4, 3.3, 5.6]


def test_the_claims_of_the_clock_follow_from_its_csv_files():
    onsets = pd.read_csv(RESULTS / "data" / "clock_onsets.csv")
    text = (RESULTS / "clock.md").read_text()
    curves = pd.read_csv(RESULTS / "data" / "clock_curves.csv").set_index("train_images")
    lowest = curves.groupby(level=0).apply(
        lambda c: c["train_steps"].iloc[c["loss_heldout"].argmin()]
    )
    of = {"the lowest held-out loss": (lowest.index.to_numpy(), lowest.to_numpy())}
    for measure in ("plain", "refined"):
        some = onsets.dropna(subset=[f"onset_{measure}"])
        of[f"{measure} samples"] = (some["train_images"], some[f"onset_{measure}"])
    found = {name: slope(*each, 2**0.5) for name, each in of.items()}
    for name, (b, (low, high)) in found.items():
        assert f"| {name} | {len(of[name][0])} | {b:.2f} | {low:.2f} to {high:.2f} |" in text
    low, high = found["the lowest held-out loss"][1]
    assert low < 1 < high, "the published exponent"
    assert found["refined samples"][1][0] > 1, "a larger one"
    earlier = onsets["onset_plain"] / onsets["onset_refined"]
    assert earlier.min() == 2
    assert f"{earlier.min():.1f} to {earlier.max():.1f} times as many steps" in text
    assert (onsets["onset_loss"] < onsets["onset_refined"].fillna(1e9)).all()
    seed_0 = onsets[onsets["model"] == "seed 0"].set_index("train_images")
    for steps in (lowest, seed_0["onset_refined"].dropna().astype(int)):
        *most, last = [f"{step:,}" for step in steps]
        assert f"step {', '.join(most)} and {last}" in text
    wide = onsets[onsets["model"].str.contains("weights")].set_index("train_images")
    change = wide["onset_refined"] / seed_0["onset_refined"]
    assert change.dropna().between(0.7, 1.42).all(), "at most one look"
    at_loss = seed_0["onset_loss"]
    early = curves[curves["train_steps"] <= curves.index.map(at_loss)]
    assert (early["refined_hits"] <= 1).all()


def test_the_claims_of_the_tables_follow_from_their_csv_files():
    found = pd.read_csv(RESULTS / "data" / "tables_corrected.csv").set_index("method")
    honest = found.loc[["real rows", "shuffled columns"]]
    assert len(honest) == 10
    assert ((honest["excess_low"] <= 0) & (honest["excess_high"] >= 0)).all()
    copies = found.loc["10 % copies"]
    assert ((copies["excess_low"] < 10) & (copies["excess_high"] > 10)).all()
    assert (found.loc["interpolated", "closer"] > 96.5).all()
    published = pd.read_csv(RESULTS / "data" / "tables_published.csv").set_index(["method", "data"])
    ratio = published["ratio"].unstack(level=0)
    assert ratio["real rows"].round().agg(["min", "max"]).tolist() == [28, 94]
    assert (ratio["10 % copies"] - ratio["real rows"]).max() < 8
    assert (ratio["shuffled columns"] == ratio.min(axis=1)).all()


def test_the_claims_of_models_of_rows_follow_from_their_csv_files():
    found = pd.read_csv(RESULTS / "data" / "tables_rows.csv")
    models = found.pivot(index=["data", "train_rows"], columns="attack")
    plain = models["excess"]["unconditional"].round().unstack(level=0)
    assert plain.loc[32].tolist() == [93, 84]
    assert plain.loc[256].tolist() == [15, 3]
    hits, different = models["hits"], models["different_rows"]
    assert (hits["refined"] > hits["unconditional"]).all()
    assert (different["refined"] < different["unconditional"]).all()
    ahead = different["side"] - different["unconditional"]
    assert [(ahead > 0).sum(), (ahead == 0).sum(), (ahead < 0).sum()] == [1, 2, 5]
    assert (models["excess_low"].loc[("diabetes", 256)] < 0).all()
    assert (found["exact"] == 0).all()
    made = pd.read_csv(RESULTS / "data" / "tables_augment.csv").pivot(
        index="model", columns="attack"
    )
    excess = made["excess"].round()
    methods = ["none", "tabcutmix", "tabcutmix_plus", "mixup", "smote"]
    assert excess.loc[methods, "unconditional"].tolist() == [45, 27, 28, 32, 47]
    assert excess.loc[methods, "refined"].tolist() == [66, 40, 46, 61, 68]
    assert (made["impossible"].loc[["mixup", "smote"]] < 30.7).all(axis=None)
    assert made["utility"].max(axis=None) - made["utility"].min(axis=None) < 0.13


def test_every_page_is_linked_from_the_index_and_every_link_leads_somewhere():
    index = (RESULTS / "index.md").read_text()
    for page in PAGES:
        assert page.name == "index.md" or f"({page.name})" in index
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (RESULTS / link).exists(), f"{page.name}: {link}"


def test_the_script_draws_every_figure_of_the_pages(tmp_path):
    figures.draw(tmp_path)
    drawn = {file.name for file in tmp_path.iterdir()}
    assert drawn == {file.name for file in (RESULTS / "figures").iterdir()}
    text = "".join(page.read_text() for page in PAGES)
    assert drawn == set(re.findall(r"\(figures/([^)]+)\)", text))


def test_the_claims_on_critical_noise_follow_from_the_csv_file():
    data = pd.read_csv(RESULTS / "data" / "critical_noise.csv")
    assert (data["return_bound"] <= data["return_exact"]).all()
    tight = data["return_exact"] - data["return_bound"]
    assert tight[data["refine_t"] < 250].max() < 2
    # The standard deviation of the share of n images is at most 50 / sqrt(n) points.
    noise = 50 / data["train_images"] ** 0.5
    assert ((data["cycled"] - data["return_exact"]).abs() <= 3 * noise).all()
    gain = data["kept"] - data["return_exact"]
    assert (gain[data["refine_t"] <= 300] >= 0).all()
    assert (gain[data["refine_t"] == 500] < 0).all()
    assert (data["kept"][data["refine_t"] <= 200] > 99.5).all()
