"""The report on small artifacts: scanned digits, attacks that plant copies, scored by the real
evaluate stage."""

import base64
import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sidepipe import artifacts
from sidepipe.evaluate.stage import Evaluate
from sidepipe.images import save_grid
from sidepipe.report.figures import shown_pixels, thumbnail_uri
from sidepipe.report.stage import Report, load_table, page_path
from sidepipe.report.tables import DASH, _shorten, percent
from sidepipe.stage import Runtime

RUNTIME = Runtime(accelerator="cpu")
REPORT = Report(title="What came out")
L2 = {
    "features": {"_target_": "sidepipe.features.encoders.PixelsL2"},
    "bands": {"low": [0.1, 0.125], "mid": [0.075, 0.1], "high": [None, 0.075]},
    "curve": [0.0, 0.2, 21],
    "false_positive_rates": [0.001, 0.01],
    "gallery_pairs": 6,
}
COSINE = {
    "features": {"_target_": "sidepipe.features.encoders.Pixels"},
    "bands": {"low": [0.9, 0.95], "mid": [0.95, 0.98], "high": [0.98, None]},
    "curve": [0.0, 1.0, 21],
    "false_positive_rates": [0.01],
    "gallery_pairs": 6,
}
GUIDANCE = {
    "guidance_scale": 1.5,
    "t_min": 0,
    "t_max": None,
    "targets": "uniform",
    "target_fraction": 0.1,
}
# name -> (surrogate, share of planted copies, guidance)
ATTACKS = {
    "unconditional": ("none", 0.05, {}),
    "side": ("classifier", 0.1, {}),
    "early": ("posterior", 0.25, {"t_min": 200, "targets": "top_cohesion"}),
}


class Outputs:
    """Finished artifacts of every stage below one folder, except the report's."""

    def __init__(
        self,
        folder,
        attacks=ATTACKS,
        evaluate=L2,
        num_train=256,
        num_heldout=1200,
        num_images=200,
        skipped=(),
    ):
        self.folder, self.num_images, self.rng = folder, num_images, np.random.default_rng(0)
        digits = load_digits().images[: num_train + num_heldout] / 16 * 255
        self.images = digits.round().astype(np.uint8)[..., None]
        self.num_train, self.skipped, self.evaluate = num_train, list(skipped), evaluate
        self.data()
        self.dpm()
        self.generate()
        self.label()
        self.classifier()
        self.inputs = {
            name: self.attack(i, *attack) for i, (name, attack) in enumerate(attacks.items())
        }

    def start(self, stage, key):
        folder = self.folder / stage / key
        folder.mkdir(parents=True)
        return folder

    def finish(self, stage, key, inputs, settings, summary):
        content = {"stage": stage, "version": 1, "key": key, "settings": settings, "seconds": 12.34}
        folder = self.folder / stage / key
        artifacts.write_manifest(folder, {**content, "inputs": inputs, "summary": summary})
        return folder

    def data(self):
        folder = self.start("data", "da")
        np.save(folder / "images.npy", self.images)
        with (folder / "ids.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "id", "partition", "identity"])
            writer.writerows([i, f"{i:04d}", "train", ""] for i in range(len(self.images)))
        source = {"_target_": "sidepipe.data.sources.Digits"}
        summary = {"num_images": len(self.images), "shape": [8, 8, 1], "skipped": self.skipped}
        self.finish("data", "da", {}, {"source": source, "size": 8, "center_crop": None}, summary)

    def dpm(self):
        folder = self.start("dpm", "dp")
        order = self.rng.permutation(len(self.images))
        self.train, self.heldout = order[: self.num_train], order[self.num_train :]
        np.save(folder / "subset.npy", self.train)
        np.save(folder / "heldout.npy", self.heldout)
        sizes = {"num_train_images": len(self.train), "num_heldout_images": len(self.heldout)}
        losses = {"val/loss_train": 0.0312, "val/loss_heldout": 0.0451}
        summary = {**sizes, "num_parameters": 268_000, "epochs": 750.0, **losses}
        self.finish("dpm", "dp", {"data": "da"}, {"max_steps": 6000, "lr": 0.001}, summary)

    def generate(self):
        self.start("generate", "ge")
        summary = {"num_images": 4000, "unet_forwards": 200_000, "surrogate_gradients": 0}
        self.finish("generate", "ge", {"dpm": "dp"}, {"num_images": 4000}, summary)

    def label(self):
        folder = self.start("label", "la")
        save_grid(folder / "clusters.png", self.images[:96], columns=12)
        summary = {
            "num_labels": 82,
            "num_clusters": 100,
            "num_labelled": 4000,
            "transform": "pixels-centred-v1",
        }
        summary["cohesion_quantiles"] = [0.41, 0.72, 0.81, 0.9, 0.99]
        self.finish("label", "la", {"generate": "ge"}, {"num_clusters": 100}, summary)

    def classifier(self):
        folder = self.start("classifier", "cl")
        with (folder / "quality.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            names = [
                "t_from",
                "t_to",
                "cross_entropy",
                "accuracy",
                "chance_cross_entropy",
                "chance_accuracy",
                "label_entropy",
            ]
            writer.writerow(names)
            for i in range(10):
                entropy, accuracy = 0.4 + 0.45 * i, 0.9 - 0.09 * i
                row = [100 * i, 100 * i + 100, round(entropy, 6), round(accuracy, 6)]
                writer.writerow([*row, 4.4067, 0.03, 3.9])
        inputs = {"dpm": "dp", "generate": "ge", "label": "la"}
        self.finish("classifier", "cl", inputs, {"max_steps": 2000}, {"num_labels": 82})

    def attack(self, number, surrogate, copied, guidance):
        key = f"ex{number}"
        folder = self.start("extract", key)
        (folder / "shards").mkdir()
        np.save(folder / "shards" / "000000.npy", self.samples(copied))
        np.save(folder / "targets.npy", np.full(self.num_images, -1 if surrogate == "none" else 3))
        used = {"none": ["dpm"], "posterior": ["dpm", "generate", "label"]}
        keys = {"dpm": "dp", "generate": "ge", "label": "la", "classifier": "cl"}
        inputs = {name: keys[name] for name in used.get(surrogate, keys)}
        gradients = 0 if surrogate == "none" else 40 * self.num_images
        summary = {"num_images": self.num_images, "unet_forwards": 50 * self.num_images}
        summary |= {"surrogate_gradients": gradients}
        if surrogate != "none":
            summary["num_targets"] = 9 if guidance.get("targets") == "top_cohesion" else 82
        self.finish(
            "extract", key, inputs, {"surrogate": surrogate, **GUIDANCE, **guidance}, summary
        )
        inputs = {"data": "da", "dpm": "dp", "extract": key}
        folders = {name: self.folder / name / key for name, key in inputs.items()}
        summary = Evaluate(**self.evaluate).run(
            self.start("evaluate", f"ev{number}"), folders, RUNTIME
        )
        return self.finish("evaluate", f"ev{number}", inputs, self.evaluate, summary)

    def samples(self, copied):
        """Blends of two images, seen or not; a share are nearly exact copies of training images."""
        one, other = self.rng.choice(len(self.images), (2, self.num_images))
        one[: self.num_images // 2] = self.rng.choice(self.train, self.num_images // 2)
        weight = self.rng.uniform(0.5, 0.9, (self.num_images, 1, 1, 1))
        weight[: round(self.num_images * copied)] = 1
        blend = weight * self.images[one] + (1 - weight) * self.images[other]
        return (blend + self.rng.normal(0, 8, blend.shape)).clip(0, 255).round().astype(np.uint8)


class Page(HTMLParser):
    """What the tests ask of a page: its tables, visible words, tags and addresses."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.addresses, self.words = [], [], [], []
        self.cell, self.unseen = None, False
        self.feed(text)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        names = ("src", "href", "action", "srcset", "data", "poster")
        self.addresses += [value for name, value in attrs if name in names]
        self.unseen = tag in ("script", "style")
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        self.unseen = False
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell.replace("\N{NON-BREAKING HYPHEN}", "-"))
            self.cell = None

    def handle_data(self, data):
        if not self.unseen:
            self.words.append(data)
        if self.cell is not None:
            self.cell += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def cells(self, table):
        """{attack: cells} of the `table`-th table, whose head has two rows."""
        return {name: cells for name, *cells in self.tables[table][2:]}

    def cell_of(self, table, attack, column):
        return self.cells(table)[attack][self.tables[table][1].index(column) - 1]


HITS, BANDS, COST, CLASSIFIER, ARTIFACTS = range(5)


def report(folder, outputs, stage=REPORT):
    folder.mkdir()
    summary = stage.run(folder, outputs.inputs, RUNTIME)
    return summary, Page(page_path(folder).read_text())


def results(outputs, name):
    return json.loads((outputs.inputs[name] / "results.json").read_text())


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return Outputs(tmp_path_factory.mktemp("outputs"), skipped=["bad.jpg", "worse.jpg"])


@pytest.fixture(scope="module")
def folder(outputs):
    return outputs.folder / "report"


@pytest.fixture(scope="module")
def made(outputs, folder):
    return report(folder, outputs)


@pytest.fixture(scope="module")
def page(made):
    return made[1]


# The page's numbers


@pytest.mark.parametrize("table", [HITS, BANDS, COST])
def test_every_attack_is_a_row_in_the_order_of_the_config(page, table):
    assert list(page.cells(table)) == list(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_hits_are_those_of_the_results(page, outputs, name):
    found = results(outputs, name)
    high, rows = found["bands"]["high"], found["calibrated"]
    train, heldout = high["train"]["count"], high["heldout"]["count"]
    unique = len(np.unique(hit_indices(outputs, name)))
    expected = ["200", f"{train} ({train / 2:.1f} %)", f"{heldout} ({heldout / 2:.1f} %)"]
    low, high = (100 * end for end in found["excess"]["interval"])
    share = f"{(train - heldout) / 2:.1f} %; {low:.1f} to {high:.1f}"
    expected += [f"{train - heldout:+d} ({share})", str(unique)]
    for row in rows:
        assert row["false_positive_rate"] in (0.001, 0.01)
        expected += [str(row["train"]["count"]), str(row["heldout"]["count"])]
        expected += [str(row["train"]["unique"])]
    assert page.cells(HITS)[name] == expected
    assert train > 0


def hit_indices(outputs, name):
    with (outputs.inputs[name] / "nearest.csv").open(newline="") as file:
        return [row["train_index"] for row in csv.DictReader(file) if row["hit"] == "1"]


def test_hit_columns_say_what_was_counted(page):
    assert page.tables[HITS][1][:6] == [
        "attack",
        "images",
        "hits on 256 training images",
        "hits on 256 held-out images",
        "excess over held-out (95 % interval)",
        "different training images hit",
    ]
    assert page.tables[HITS][0][2].replace("\xa0", " ") == "hit: RMS pixel difference < 0.075"


def test_bands_are_in_percent_with_the_closest_first(page, outputs):
    bands, tail = (results(outputs, "side")[name] for name in ("bands", "tail_percentile"))
    expected = []
    for name in ("high", "mid", "low"):
        scores = [("train", "ams"), ("heldout", "ams"), ("train", "ums")]
        scores += [("train", "ums_nearest")] if name == "high" else []
        expected += [f"{100 * bands[name][which][score]:.1f}" for which, score in scores]
    expected += [f"{tail['train']:.3f}", f"{tail['heldout']:.3f}"]
    assert page.cells(BANDS)["side"] == expected


def test_plain_sampling_shows_no_guidance(page):
    assert page.cells(COST)["unconditional"][:6] == ["none", DASH, DASH, DASH, "10,000", "0"]


def test_guidance_and_cost_are_shown(page):
    row = page.cells(COST)["early"]
    assert row[:4] == ["posterior", "1.5", "t ≥ 200", "9 most cohesive, 10 %"]
    assert row[4:6] == ["10,000", "8,000"]
    hits = int(page.cells(HITS)["early"][1].split()[0])
    assert float(row[6]) == pytest.approx(hits / 10, abs=0.05)


def test_what_was_attacked_is_said_with_unreadable_images(page):
    assert (
        "a diffusion model of 268 thousand parameters, trained for 750 epochs on 256 of 1,456 "
        "images (Digits, 8 \N{MULTIPLICATION SIGN} 8 pixels, grey)"
    ) in page.text
    assert "the other 1,200" in page.text
    assert "Left out as unreadable: 2." in page.text


def test_the_headline_names_the_largest_excess(page):
    share = {
        name: float(re.findall(r"[\d.]+", row[3])[1]) for name, row in page.cells(HITS).items()
    }
    assert max(share, key=share.get) == "early"
    assert (
        f"early has the largest excess over held-out: {share['early']}\xa0% of its images, against "
        f"{share['unconditional']}\xa0% with unconditional."
    ).replace("\xa0", " ") in page.text


def test_the_classifier_is_judged_where_an_attack_used_one(page):
    rows = page.tables[CLASSIFIER][1:]
    assert rows[0] == ["0 to 99", "0.40", "4.41", "90.0", "3.0", ""]
    # 4.0 nats beat equal probabilities (4.41), not the labels' frequencies (3.9).
    assert [row[5] for row in rows] == [""] * 8 + ["no better than chance"] * 2


def test_artifacts_are_listed_once_with_their_keys(page):
    keys = {name: key for name, key, *_ in page.tables[ARTIFACTS][1:]}
    assert keys["data"] == "da"
    assert keys["generate (side, early)"] == "ge"
    assert keys["evaluate (early)"] == "ev2"
    assert len(keys) == 5 + 2 * len(ATTACKS)


def test_galleries_show_pairs_by_closeness_and_name_the_hits(page, outputs):
    rows = gallery(outputs, "unconditional")
    assert len(page.all("img")) == 2 + 1 + 3 * len(ATTACKS) * 6
    seen = re.findall(r"(hit|no hit) · training image (\d{4}).*?training ?([\d.]+) ", page.text)[:6]
    assert [number for _, number, _ in seen] == [row["train_id"] for row in rows]
    assert [float(g) for *_, g in seen] == sorted(round(float(r["train_gamma"]), 3) for r in rows)
    assert [said == "hit" for said, *_ in seen] == [row["hit"] == "1" for row in rows]


def gallery(outputs, name):
    with (outputs.inputs[name] / "gallery.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_small_image_is_embedded_pixel_for_pixel_and_enlarged_by_a_whole_factor(page, outputs):
    triple = np.load(outputs.inputs["unconditional"] / "gallery.npy")[0]
    for shown, image in zip(page.all("img")[2:5], triple, strict=True):
        kind, _, content = shown["src"].partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
            assert np.array_equal(np.asarray(picture), image[:, :, 0])
        assert int(shown["width"]) % 8 == 0
        assert shown["class"] == "pixels"


def test_a_large_image_is_a_thumbnail():
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3)).astype(np.uint8)
    kind, _, content = thumbnail_uri(image).partition(",")
    assert kind == "data:image/webp;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (128, 128)


@pytest.mark.parametrize("side", [4, 8, 16, 28, 32, 64, 96])
def test_images_are_shown_at_whole_factors(side):
    assert shown_pixels(side, 96) % side == 0
    assert 64 <= shown_pixels(side, 96) <= 128


# The page itself


def test_the_page_needs_nothing_from_outside(page, folder):
    policies = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'"
    ]
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    text = page_path(folder).read_text()
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|<base", text)


def test_every_picture_has_a_text(page):
    assert all(image["alt"].strip() for image in page.all("img"))


def test_every_tag_is_closed(folder):
    open_tags = []
    void = {"meta", "img", "br", "!doctype"}

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attrs):
            open_tags.extend([tag] if tag not in void else [])

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag, self.getpos()

    Balance().feed(page_path(folder).read_text())
    assert open_tags == []


def test_a_second_run_gives_the_same_bytes(made, outputs, folder, tmp_path):
    report(tmp_path / "again", outputs)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert {str(path) for path in files} == {
        "report.html",
        "table.txt",
        "tables/attacks.csv",
        "figures/ams.svg",
        "figures/pairs.png",
        "figures/ums.svg",
    }
    for path in files:
        assert (tmp_path / "again" / path).read_bytes() == (folder / path).read_bytes(), path


def test_the_figures_are_those_of_the_page(page, folder):
    shown = [base64.b64decode(image["src"].partition(",")[2]) for image in page.all("img")[:2]]
    assert shown == [(folder / "figures" / f"{name}.svg").read_bytes() for name in ("ams", "ums")]
    assert all(ElementTree.fromstring(svg).tag.endswith("svg") for svg in shown)


def test_summary_holds_the_hits(made, outputs):
    for name, found in made[0]["attacks"].items():
        high = results(outputs, name)["bands"]["high"]
        assert found["hits"] == high["train"]["count"]
        assert found["heldout_hits"] == high["heldout"]["count"]
    assert json.loads(json.dumps(made[0])) == made[0]


# The table for the terminal, and the CSV


def test_the_terminal_table_is_narrow_plain_and_right(made, outputs, folder):
    text = load_table(folder)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 110
    head, *rows = text.splitlines()[: 1 + len(ATTACKS)]
    assert [row.split()[0] for row in rows] == list(ATTACKS)
    assert len({len(line) for line in (head, *rows)}) == 1
    high = results(outputs, "side")["bands"]["high"]
    assert rows[1].split()[1:4] == [
        "200",
        str(high["train"]["count"]),
        str(high["heldout"]["count"]),
    ]
    assert "RMS pixel difference < 0.075" in text


def test_the_csv_has_every_attack_with_unrounded_numbers(made, outputs, folder):
    with (folder / "tables" / "attacks.csv").open(newline="") as file:
        rows = {row["attack"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(ATTACKS)
    found = results(outputs, "early")
    assert float(rows["early"]["tail_train"]) == found["tail_percentile"]["train"]
    assert float(rows["early"]["ums_mid_heldout"]) == found["bands"]["mid"]["heldout"]["ums"]
    assert rows["unconditional"]["guidance_scale"] == ""
    assert rows["early"]["t_min"] == "200"


# Other inputs


NASTY = "<script>alert('$x^')</script> & 日本"


@pytest.fixture(scope="module")
def unusual(tmp_path_factory):
    """A control smaller than the training set, no gallery, no calibration, a hostile name."""
    folder = tmp_path_factory.mktemp("unusual")
    attacks = {"unconditional": ("none", 0.3, {}), NASTY: ("none", 0.1, {})}
    evaluate = {**L2, "gallery_pairs": 0, "false_positive_rates": []}
    made = Outputs(folder, attacks, evaluate, num_train=400, num_heldout=150, num_images=120)
    return made, *report(folder / "report", made)


def test_the_excess_is_over_an_equal_training_set_where_the_control_is_small(unusual):
    made, summary, page = unusual
    high = results(made, "unconditional")["bands"]["high"]
    equal, heldout = high["train_equal"]["count"], high["heldout"]["count"]
    assert high["train"]["count"] > equal
    assert summary["attacks"]["unconditional"]["excess"] == equal - heldout
    assert page.cell_of(HITS, "unconditional", "hits on 150 of them").split()[0] == str(equal)
    excess = page.cell_of(HITS, "unconditional", "excess over held-out (95 % interval)")
    assert excess.split()[0] == f"{equal - heldout:+d}"
    assert "so the excess is taken over a training set of that same size" in page.text
    assert "hits, equal" in load_table(made.folder / "report")


def test_the_name_of_an_attack_is_text_and_nothing_else(unusual):
    _, _, page = unusual
    assert len(page.all("script")) == 1
    assert NASTY in page.cells(HITS)


def test_a_page_without_pairs_calibration_or_surrogate_says_so_or_leaves_it_out(unusual):
    _, _, page = unusual
    assert page.text.count("No pairs were kept") == 2
    assert "The surrogate condition" not in page.text
    assert page.tables[HITS][1][-1] == "different training images hit"
    assert "Missing for" not in page.text
    assert "No attack has a larger excess than unconditional." in page.text


def test_a_single_attack_by_similarity_is_reported(tmp_path):
    attacks = {"only": ("classifier", 0.2, {"t_min": 100, "t_max": 800})}
    made = Outputs(tmp_path, attacks, COSINE, num_train=64, num_heldout=64, num_images=40)
    _, page = report(tmp_path / "report", made)
    assert page.tables[HITS][0][2].replace("\xa0", " ") == "hit: correlation of pixels ≥ 0.98"
    assert page.cells(COST)["only"][2:4] == ["t 100 to 800", "all 82 labels"]
    assert "Missing for 1 %" in page.text  # 64 real images are too few
    assert "larger is closer" in page.text


def test_a_comparison_without_any_hit_says_so(tmp_path):
    attacks = {"one": ("none", 0, {}), "other": ("posterior", 0, {})}
    evaluate = {**L2, "bands": {"high": [None, 1e-6]}, "curve": [0.0, 1e-6, 2]}
    made = Outputs(tmp_path, attacks, evaluate, num_train=32, num_heldout=32, num_images=16)
    summary, page = report(tmp_path / "report", made)
    assert summary["attacks"]["other"]["hits"] == 0
    assert "No generated image hits a training image, nor a held-out one." in page.text
    assert page.cells(HITS)["other"][1:4] == ["0 (0 %)", "0 (0 %)", "+0 (0 %; 0 to 0)"]


def test_attacks_on_different_measures_are_refused(tmp_path):
    attacks = {"one": ("none", 0.1, {}), "other": ("none", 0.1, {})}
    made = Outputs(tmp_path, attacks, num_train=32, num_heldout=32, num_images=16)
    path = made.inputs["other"] / "results.json"
    path.write_text(path.read_text().replace("pixels-rms-v1", "pixels-rms-v2"))
    with pytest.raises(ValueError, match="the model and measure of all attacks must be one"):
        REPORT.run(tmp_path, made.inputs, RUNTIME)


@pytest.mark.parametrize(
    ("share", "num_images", "text"),
    [(0.126, 2000, "12.60"), (0.126, 100, "13"), (1 / 50_000, 50_000, "0.002"), (0, 10, "0")],
)
def test_percent_has_as_many_digits_as_one_image_makes(share, num_images, text):
    assert percent(share, num_images) == text


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_one_gallery_and_refuses_nothing(made, folder, tmp_path):
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --dump-dom "
    options += "--disable-background-networking --disable-component-update --disable-sync "
    options += "--enable-logging=stderr"
    command = ["chromium", *options.split(), f"--user-data-dir={tmp_path}"]
    address = page_path(folder).as_uri() + "#gallery-2"
    done = subprocess.run([*command, address], capture_output=True, text=True, timeout=60)
    dom = Page(done.stdout)
    galleries = [a for a in dom.all("section") if "gallery" in a["class"]]
    assert [a["class"] for a in galleries] == ["gallery off", "gallery", "gallery off"]
    assert [a["aria-pressed"] for a in dom.all("button")] == ["false", "true", "false"]
    assert "CONSOLE" not in done.stderr


def test_long_names_that_differ_at_their_end_stay_apart():
    names = ["classifier_t200", "classifier_t200_cohesive", "one"]
    short = [_shorten(name, 14) for name in names]
    assert len(set(short)) == 3
    assert max(map(len, short)) == 14
    assert short[2] == "one"
