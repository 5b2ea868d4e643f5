"""The page's numbers against the results they come from."""

import re
import shutil

import numpy as np
import pytest
from tests.stages.report.conftest import NASTY
from tests.stages.report.pages import (
    BANDS,
    BLIND,
    COST,
    DISTANCES,
    HITS,
    NOVELTY,
    OVERLAP,
    QUALITY,
    RAREFACTION,
    RULES,
    hit_images,
    report,
    results,
    rows_of,
)
from tests.stages.report.planted import ATTACKS, NUM_LABELS, RUNTIME, Outputs

from sidepipe.engine import artifacts
from sidepipe.engine.stage import Job
from sidepipe.stages.report.stage import Report, load_table, page_path
from sidepipe.stages.report.words import DASH, average

TABLES = [HITS, BANDS, COST, RAREFACTION, NOVELTY, OVERLAP, BLIND, RULES, QUALITY, DISTANCES]


# Hits


@pytest.mark.parametrize("table", TABLES)
def test_every_attack_is_a_row_in_the_order_of_the_config(page, table):
    assert list(page.cells(table)) == list(ATTACKS)


def test_the_sections_come_in_the_order_of_a_readers_questions(page):
    assert [heading.replace("\xa0", " ") for heading in page.headings] == [
        "Hits at 0.1 % held-out false positives",
        "At every threshold",
        "How many training images can be extracted",
        "New hits",
        "The closest pairs",
        "Without the training images",
        "The surrogate condition",
        "Published measures",
        "Where the numbers come from",
    ]


@pytest.mark.parametrize("name", ATTACKS)
def test_hits_are_those_of_the_results(page, outputs, name):
    first, second = results(outputs, name)["calibrated"]
    train, heldout = first["train"]["count"], first["heldout"]["count"]
    expected = ["200", f"{train} ({train / 2:.1f} %)", f"{average(heldout)} ({heldout / 2:.1f} %)"]
    low, high = (100 * end for end in first["excess"]["interval"])
    share = f"{100 * first['excess']['share']:.1f} %; {low:.1f} to {high:.1f}"
    expected += [f"+{average(train - heldout)} ({share})", str(len(hit_images(outputs, name)))]
    expected += [str(second["train"]["count"]), average(second["heldout"]["count"])]
    expected += [str(second["train"]["unique"])]
    assert page.cells(HITS)[name] == expected
    assert train > 0


def test_hit_columns_say_what_was_counted(page, outputs):
    assert page.tables[HITS][1] == [
        "attack",
        "images",
        "hits on 256 training images",
        "hits on 256 held-out images (mean of 4 sets)",
        "excess over held-out (95 % interval)",
        "different training images hit",
        "training",
        "held-out",
        "different",
    ]
    first, second = (f"{r['threshold']:.3g}" for r in results(outputs, "side")["calibrated"])
    assert page.tables[HITS][0][2:] == [
        f"hit, at 0.1 % false positives: RMS pixel difference ≤ {first}",
        f"at 1 %: ≤ {second}",
    ]


def test_the_headline_gives_hits_excess_interval_and_cost_of_every_attack(page, outputs):
    text = page.text.replace("\xa0", " ")
    for name in ATTACKS:
        row = results(outputs, name)["calibrated"][0]
        low, high = (200 * end for end in row["excess"]["interval"])
        assert f"{name}: {row['train']['count']} of 200 generated images hit a training" in text
        sets = ", ".join(map(str, row["heldout"]["sets"]))
        control = f"{average(row['heldout']['count'])} hit a held-out image"
        assert f" {control} (mean of 4 held-out sets: {sets}). Excess: +" in text
        assert f"95 % interval {low:.0f} to {high:.0f} (" in text
    assert "Cost: 14,000 network evaluations, and 200,000 for the N_syn synthetic images." in text


def test_the_headline_says_how_sure_the_threshold_is(page, outputs):
    row = results(outputs, "side")["calibrated"][0]
    low, high = (f"{100 * end:.2g}" for end in row["true_rate_interval"])
    text = page.text.replace("\xa0", " ")
    assert "1 of 1,200 held-out images is that close to a" in text
    assert f"interval of the true share of false positives is {low} to {high} %" in text


def test_the_page_opens_with_what_came_out_of_the_best_attack(page, outputs):
    best = max(ATTACKS, key=lambda name: results(outputs, name)["calibrated"][0]["excess"]["share"])
    assert best == "early"
    row = results(outputs, best)["calibrated"][0]
    different = {which: average(row[which]["unique"]) for which in ("train", "heldout")}
    finding = (
        f"{different['train']} of 256 training images are reproduced; "
        f"{different['heldout']} of 256 "
        "held-out ones."
    )
    assert finding in page.text
    assert page.text.index(finding) < page.text.index("The model under attack")
    rank = [image for image in page.all("img") if image["alt"].startswith("generated image")]
    first = [row["index"] for row in rows_of(outputs, best, "gallery.csv")[:3]]
    assert [image["alt"].split()[-1] for image in rank[:3]] == first


def test_every_row_is_explained_once_before_the_numbers(page):
    explained = page.text.split("Hits at")[0]
    assert "unconditionalplain sampling." in explained
    assert "sideSIDE as published: a classifier of clusters" in explained
    assert "earlythe closed-form posterior of clusters" in explained
    assert page.text.count("SIDE as published") == 1


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    """Attacks whose images are noise; the second made more of them."""

    class Noise(Outputs):
        def samples(self, copied, number):
            return self.rng.integers(0, 256, (number, 8, 8, 1)).astype(np.uint8)

    folder = tmp_path_factory.mktemp("nothing")
    one = {"one": ("none", 0, {})}
    made = Noise(folder, one, num_train=32, num_heldout=1000, num_images=100)
    made.num_images = 150
    made.inputs["other"] = made.attack(1, "posterior", 0, {})
    return report(folder / "report", made)


def test_a_comparison_without_any_hit_says_so(nothing):
    summary, page = nothing
    assert summary["attacks"]["other"]["hits"] == 0
    assert "No copy of a training image was found among 150 images." in page.text
    assert "do not prove that nothing is memorized" in page.text
    assert [cell.split()[0] for cell in page.cells(HITS)["other"][1:4]] == ["0", "0", "+0"]
    assert page.cell_of(BLIND, "other", "area under the ROC") == DASH
    assert page.cell_of(RAREFACTION, "other", "error, %") == DASH


def test_attacks_that_made_different_numbers_of_images_are_compared_with_care(nothing, page):
    warning = "The attacks here made different numbers of images"
    assert warning in nothing[1].text
    assert warning not in page.text


def test_held_out_hits_are_scaled_where_the_control_is_small_and_the_page_says_by_how_much(unusual):
    made, summary, page = unusual
    row = results(made, "unconditional")["calibrated"][0]
    heldout = 120 * (1 - (1 - row["heldout"]["count"] / 120) ** (400 / 150))
    assert heldout > row["heldout"]["count"] > 0
    excess = row["train"]["count"] - heldout
    assert summary["attacks"]["unconditional"]["excess"] == pytest.approx(excess)
    column = "hits on 400 held-out images (scaled from 150)"
    assert page.cell_of(HITS, "unconditional", column).split()[0] == average(heldout)
    shown = page.cell_of(HITS, "unconditional", "excess over held-out (95 % interval)")
    assert shown.split()[0] == f"+{average(excess)}"
    assert "is therefore scaled by 2.67 to as many images as were trained on" in page.text
    text = " ".join(load_table(made.folder / "report").split())
    assert "scaled to the 400 training images, 2.67 times as many" in text


# The other sections


def test_plain_sampling_shows_no_guidance(page):
    assert page.cells(COST)["unconditional"] == [
        *("none", DASH, DASH, DASH, DASH, "10,000", "0", DASH, DASH, "10,000", "0")
    ]


def test_guidance_and_cost_are_shown(page):
    row = page.cells(COST)["early"]
    assert row[:5] == ["posterior", "1.5", "t ≥ 200", "9 most cohesive, 10 %", DASH]
    assert row[5:] == ["10,000", "8,000", "0.50", "0.62", "14,000", "200,000"]


def test_extrapolation_and_its_check_are_those_of_the_results(page, outputs):
    found = results(outputs, "early")["rarefaction"]
    check = found["check"]
    row = page.cells(RAREFACTION)["early"]
    assert row[1] == str(len(hit_images(outputs, "early")))
    assert row[4] == f"{found['at_least']:,}"
    assert found["observed"]["unique"] <= found["at_least"] < 256
    assert row[5] == f"{100 * found['coverage']:.1f}"
    low, high = check["interval"]
    assert row[6:8] == ["50", f"{check['predicted']:.0f} ({low:.0f} to {high:.0f})"]
    assert row[8:] == [row[1], f"{100 * check['relative_error']:.1f}"]


def test_new_hits_and_their_price_are_shown(page, outputs):
    row = page.cells(NOVELTY)["side"]
    found = results(outputs, "side")["novelty"]
    assert row[:3] == ["400", str(found["synthetic_hits"]), str(found["synthetic_unique"])]
    hits = [r for r in rows_of(outputs, "side", "nearest.csv") if r["hit"] == "1"]
    new = [r for r in hits if r["new"] == "1"]
    assert 0 < len(new) < len(hits)
    assert row[3] == str(len(hits) - len(new))
    assert row[5:7] == [str(len(new)), str(len({r["train_index"] for r in new}))]
    assert float(row[7]) == pytest.approx(len(hits) / 14, abs=0.005)
    assert float(row[8]) == pytest.approx(len({r["train_index"] for r in hits}) / 14, abs=0.005)


def test_overlap_counts_the_training_images_that_two_attacks_hit(page, outputs):
    found = {name: hit_images(outputs, name) for name in ATTACKS}
    alone = found["side"] - found["unconditional"] - found["early"]
    both = {name: len(found["side"] & found[name]) for name in ("unconditional", "early")}
    counts = [len(found["side"]), len(alone), len(found["side"]) - len(alone)]
    assert both["unconditional"] != both["early"]
    assert page.cells(OVERLAP)["side"] == [
        *map(str, counts),
        str(both["unconditional"]),
        DASH,
        str(both["early"]),
    ]


def test_precision_stands_beside_the_base_rate(page, outputs):
    found = results(outputs, "early")["blind"]
    columns = page.tables[BLIND][1]
    assert columns[5:8] == ["of all", "of the first 10", "of the first 20"]
    row = page.cells(BLIND)["early"]
    assert row[1:4] == [str(found[name]) for name in ("num_candidates", "groups", "largest")]
    assert row[4] == f"{100 * found['base_rate']:.1f}"
    precision = {name: f"{100 * p:.1f}" for name, p in found["precision_at"].items()}
    assert dict(zip(columns[6:-1], row[5:-1], strict=True)) == {
        f"of the first {k}": precision.get(k, DASH) for k in ("10", "20", "50", "100")
    }
    assert row[-1] == f"{found['auc']:.3f}"


def test_candidates_show_group_size_and_whether_they_hit(page, outputs):
    expected = [
        f"{row['rank']} · {'hit' if row['hit'] == '1' else 'no hit'}"
        f"{'single image' if row['size'] == '1' else row['size'] + ' images'}"
        for row in rows_of(outputs, "early", "candidates.csv")
    ]
    said = page.text.split("The first candidates of early")[1].replace("\xa0", " ")
    assert re.findall(r"\d+ · (?:no )?hit(?:single image|\d+ images)", said) == expected
    assert any("single image" not in text for text in expected)


def test_the_classifier_is_judged_where_an_attack_used_one(page):
    rows = page.tables["The classifier by noise level, for side"][1:]
    assert rows[0] == ["0 to 99", "0.40", "4.41", "90.0", "3.0", ""]
    # 4.0 nats beat equal probabilities (4.41), not the labels' frequencies (3.9).
    assert [row[5] for row in rows] == [""] * 8 + ["no better than chance"] * 2


def test_bands_are_in_percent_with_the_closest_first(page, outputs):
    bands, tail = (results(outputs, "side")[name] for name in ("bands", "tail_percentile"))
    expected = []
    for name in ("high", "mid", "low"):
        scores = [("train", "ams"), ("heldout", "ams"), ("train", "ums")]
        scores += [("train", "ums_nearest")] if name == "high" else []
        expected += [f"{100 * bands[name][which][score]:.1f}" for which, score in scores]
    expected += [f"{tail['train']:.3f}", f"{tail['heldout']:.3f}"]
    assert page.cells(BANDS)["side"] == expected


def test_published_rules_stand_beside_their_false_alarms(page, outputs):
    rules = results(outputs, "early")["rules"]
    expected = [
        str(rules[rule][which][kind])
        for rule in ("adaptive", "ratio")
        for which in ("train", "heldout")
        for kind in ("count", "unique")
    ]
    assert page.cells(RULES)["early"] == expected
    assert page.tables[RULES][0][1:] == ["adaptive: score ≤ 1", "ratio: nn1 < nn2 / 3"]


def test_quality_and_distances_are_those_of_the_results(page, outputs):
    found = results(outputs, "early")
    fid, kid = found["quality"]["fid"], found["quality"]["kid"]
    row = page.cells(QUALITY)["early"]
    assert row[:2] == [f"{fid['train']:.3g}", f"{fid['heldout']:.3g}"]
    assert row[2] == f"{kid['train'][0]:.3g} ± {kid['train'][1]:.2g}"
    gap, row = found["distance_gap"], page.cells(DISTANCES)["early"]
    low, high = gap["interval"]
    assert row[0] == f"{gap['mean']:.4f} ({low:.4f} to {high:.4f})"
    assert row[3] == f"{found['divergence']['bandwidth']:.3g}"


def test_artifacts_are_listed_once_with_their_keys(page):
    keys = {name: key for name, key, *_ in page.tables["Every artifact behind this page"][1:]}
    assert keys["data"] == "da"
    assert keys["generate"] == "ge"
    assert keys["label (side, early)"] == "la"
    assert keys["evaluate (early)"] == "ev2"
    assert len(keys) == 6 + 2 * len(ATTACKS)


def test_what_was_attacked_is_said_with_unreadable_images(page):
    assert (
        "a diffusion model of 268 thousand parameters, trained for 750 epochs on 256 of 1,456 "
        "images (Digits, 8 \N{MULTIPLICATION SIGN} 8 pixels, gray)"
    ) in page.text
    assert "gray); 1,200 images are held out as a control." in page.text
    assert "it never saw" not in page.text  # duplicates that were kept are held out as well
    assert "the more it has memorized" in page.text


def test_what_limits_the_numbers_stands_before_them_on_page_and_terminal(page, folder):
    notice = "2 image files could not be read and are left out."
    assert 0 < page.text.index(notice) < page.text.index("Hits at")
    assert load_table(folder).startswith(f"warning: {notice}\n")


def test_without_a_limit_there_is_no_notice(unusual):
    made, _, page = unusual
    assert "warnings" not in {attrs.get("aria-label") for attrs in page.all("ul")}
    assert "warning" not in load_table(made.folder / "report")


def test_a_page_without_pairs_or_surrogate_says_so_or_leaves_it_out(unusual):
    _, _, page = unusual
    assert "No pairs were kept" in page.text
    assert "The surrogate condition" not in page.text
    assert page.tables[HITS][1][-1] == "different training images hit"


def test_a_single_attack_by_similarity_is_reported(similar):
    _, _, page = similar
    head = page.tables[HITS][0][2]
    assert head.startswith("hit, at 2 % false positives: correlation of pixels ≥ 0.")
    assert page.cells(COST)[NASTY][2:4] == ["t 100 to 800", f"all {NUM_LABELS} labels"]
    assert OVERLAP not in page.tables
    assert "larger is closer" in page.text


# Without the truth


def test_without_truth_a_page_ranks_and_says_that_nothing_was_compared(blind):
    made, summary, page = blind
    assert "The training images were not used" in page.text
    assert page.headings == [
        "No comparison with training images",
        "Without the training images",
        "The surrogate condition",
        "Where the numbers come from",
    ]
    found = results(made, "early")["blind"]
    assert page.tables[BLIND][1][-1] == "images in the largest"
    assert page.cells(BLIND)["early"][1] == str(found["num_candidates"])
    assert summary["attacks"]["early"]["groups"] == found["groups"] > 0
    assert page.text.count("The first candidates of ") == len(ATTACKS)
    assert " hit " not in page.text.split("The first candidates of side")[1].split("Under each")[0]
    files = {path.name for path in (made.folder / "report").rglob("*") if path.is_file()}
    tables = {"attacks.csv", *(f"{n}.{k}" for n in ("blind", "cost") for k in ("csv", "md", "tex"))}
    assert files == {"report.html", "table.txt", *tables}


def test_every_table_of_features_says_by_which_transform(page, outputs):
    transform = results(outputs, "side")["transform"]
    without = [caption for caption in page.captions if not caption.endswith(f" · {transform}")]
    others = ("Settings and cost", "The classifier by noise level", "Every artifact behind")
    assert all(caption.startswith(others) for caption in without)
    assert len(page.captions) - len(without) >= 8


def test_a_row_without_material_is_named_first_and_the_others_are_shown(outputs, tmp_path):
    why = "nothing repeats: 0 groups of near duplicates"
    manifest = artifacts.read_manifest(outputs.inputs["early"])
    content = {**manifest, "key": "ev9", "summary": {"empty": why}}
    folder = outputs.start("evaluate", "ev9")
    artifacts.write_manifest(folder, content)
    inputs = {"repeats": folder, **outputs.inputs}
    try:
        summary = Report(title="Rows").run(Job(tmp_path, inputs, RUNTIME))
        assert summary["no_material"] == {"repeats": why}
        assert set(summary["attacks"]) == set(ATTACKS)
        table, page = load_table(tmp_path), page_path(tmp_path).read_text()
        assert f"warning: repeats has no result: {why}." in table
        assert f"repeats has no result: {why}." in page
        alone = Report(title="Alone").run(Job(tmp_path, {"repeats": folder}, RUNTIME))
        assert alone == {"no_material": {"repeats": why}}
        assert f"repeats has no result: {why}." in page_path(tmp_path).read_text()
        assert "of prompts" not in page_path(tmp_path).read_text()
    finally:
        shutil.rmtree(folder)
