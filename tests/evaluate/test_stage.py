import csv
import json
import logging
import math

import numpy as np
import pytest

from sidepipe.artifacts import write_manifest
from sidepipe.dpm.stage import PretrainedDPM
from sidepipe.evaluate import reference
from sidepipe.evaluate.stage import Evaluate, load, load_gallery
from sidepipe.shards import write_shard
from sidepipe.stage import Runtime

RUNTIME = Runtime(accelerator="cpu")
L2 = {
    "features": {"_target_": "sidepipe.features.encoders.PixelsL2"},
    "bands": {"low": [0.1, 0.125], "mid": [0.075, 0.1], "high": [None, 0.075]},
    "curve": [0.0, 0.6, 61],
    "false_positive_rates": [0.01, 0.1],
    "gallery_pairs": 60,
}
COSINE = {
    **L2,
    "features": {"_target_": "sidepipe.features.encoders.Pixels"},
    "bands": {"low": [0.2, 0.5], "mid": [0.5, 0.93], "high": [0.93, None]},
    "curve": [-0.2, 1.0, 61],
}
SETTINGS = pytest.mark.parametrize("settings", [L2, COSINE], ids=["l2", "cosine"])


def rms(a, b):
    return math.sqrt(np.square((a.astype(float) - b) / 255).mean())


def correlation(a, b):
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


class Planted:
    """Finished inputs of random images, so far apart that only what is planted is near."""

    def __init__(self, folder, num_train=64, num_unseen=150, num_generated=200, ids="{:04d}.png"):
        self.folder, self.rng = folder, np.random.default_rng(0)
        self.images = self.random(num_train + num_unseen)
        order = self.rng.permutation(len(self.images))
        self.train, self.unseen = order[:num_train], order[num_train:]
        self.generated = self.random(num_generated)
        self.targets = self.rng.integers(0, 9, num_generated)
        self.ids = [ids.format(i) for i in range(len(self.images))]

    def random(self, n):
        return self.rng.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)

    def plant(self, places, rows, noise):
        """Makes the generated images in `places` noisy copies of the data's `rows`."""
        noisy = self.images[rows] + self.rng.normal(0, noise, (len(rows), 8, 8, 1))
        self.generated[places] = noisy.clip(0, 255).astype(np.uint8)

    def write(self):
        for name in ("data", "dpm", "extract"):
            (self.folder / name).mkdir()
        np.save(self.folder / "data" / "images.npy", self.images)
        with (self.folder / "data" / "ids.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "id", "partition", "identity"])
            writer.writerows([i, name, "train", ""] for i, name in enumerate(self.ids))
        np.save(self.folder / "dpm" / "subset.npy", self.train)
        np.save(self.folder / "dpm" / "heldout.npy", self.unseen)
        half = len(self.generated) // 2
        for shard, part in enumerate((self.generated[:half], self.generated[half:])):
            write_shard(self.folder / "extract", shard, part)
        np.save(self.folder / "extract" / "targets.npy", self.targets)
        cost = {"unet_forwards": 1234, "surrogate_gradients": 567}
        write_manifest(
            self.folder / "extract", {"summary": {**cost, "num_images": len(self.generated)}}
        )
        return {name: self.folder / name for name in ("data", "dpm", "extract")}


COPIES = np.arange(5, 35)  # generated images that are copies, of 12 training images
NEAR_MISSES = np.arange(40, 52)


@pytest.fixture
def planted(tmp_path):
    planted = Planted(tmp_path)
    planted.source = planted.train[np.arange(30) % 12]
    planted.plant(COPIES, planted.source, noise=8)
    planted.plant(NEAR_MISSES, planted.train[20:32], noise=45)
    return planted


def run(planted, settings=L2, name="evaluate", **changes):
    inputs = planted.write() if not (planted.folder / "data").exists() else None
    inputs = inputs or {n: planted.folder / n for n in ("data", "dpm", "extract")}
    folder = planted.folder / name
    folder.mkdir()
    return folder, Evaluate(**{**settings, **changes}).run(folder, inputs, RUNTIME)


def table(folder, name="nearest.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


@SETTINGS
def test_thirty_planted_copies_of_two_hundred_are_found_and_near_misses_are_not(planted, settings):
    folder, summary = run(planted, settings)
    assert summary["hits"] == 30
    assert summary["heldout_hits"] == 0
    assert summary["ams_high"] == 30 / 200
    assert summary["ums_high"] == 12 / 200
    hits = [i for i, row in enumerate(table(folder)) if row["hit"] == "1"]
    assert hits == COPIES.tolist()
    high = load(folder)["bands"]["high"]
    assert high["train"] == {"count": 30, "ams": 0.15, "ums": 0.06, "ums_nearest": 0.06}
    assert high["heldout"] == {"count": 0, "ams": 0.0, "ums": 0.0, "ums_nearest": 0.0}


@SETTINGS
def test_the_table_names_each_image_s_nearest_training_and_held_out_image(planted, settings):
    folder, _ = run(planted, settings)
    rows = table(folder)
    assert len(rows) == 200
    for i, row in enumerate(rows):
        assert int(row["index"]) == i
        assert int(row["target"]) == planted.targets[i]
        for which, places in (("train", planted.train), ("heldout", planted.unseen[:64])):
            gammas = [gamma_of(settings)(planted.generated[i], planted.images[j]) for j in places]
            k = int(np.argmin(gammas) if settings is L2 else np.argmax(gammas))
            assert int(row[f"{which}_index"]) == places[k]
            assert row[f"{which}_id"] == f"{places[k]:04d}.png"
            assert float(row[f"{which}_gamma"]) == pytest.approx(gammas[k], abs=2e-6)
    for i, source in zip(COPIES, planted.source, strict=True):
        assert int(rows[i]["train_index"]) == source


def gamma_of(settings):
    return rms if settings["features"] == L2["features"] else correlation


def scores(generated, images, settings):
    """What results.json must say of one reference set, by double loops from the formulas."""
    gamma, similar = gamma_of(settings), settings["features"] == COSINE["features"]
    pairs = np.array([[gamma(g, d) for d in images] for g in generated])
    best = pairs.max(1) if similar else pairs.min(1)
    index = pairs.argmax(1) if similar else pairs.argmin(1)
    found = {"bands": {}}
    for name, (low, high) in settings["bands"].items():
        low, high = -math.inf if low is None else low, math.inf if high is None else high
        inside = (low <= best) & (best < high)
        any_inside = ((low <= pairs) & (pairs < high)).any(0)
        found["bands"][name] = {
            "count": inside.sum(),
            "ams": inside.sum() / len(generated),
            "ums": any_inside.sum() / len(generated),
            "ums_nearest": len(set(index[inside])) / len(generated),
        }
    start, stop, count = settings["curve"]
    thresholds = [start + (stop - start) * i / (count - 1) for i in range(count)]
    reach = [(pairs >= a if similar else pairs <= a) for a in thresholds]
    found["thresholds"] = thresholds
    found["ams"] = [r.any(1).sum() / len(generated) for r in reach]
    found["ums"] = [r.any(0).sum() / len(generated) for r in reach]
    ordered, place = sorted(best), (0.95 if similar else 0.05) * (len(best) - 1)
    below = int(place)
    found["tail"] = ordered[below] + (place - below) * (ordered[below + 1] - ordered[below])
    return found, best, index


@SETTINGS
@pytest.mark.parametrize(("num_train", "num_unseen"), [(40, 110), (40, 25), (40, 40)])
def test_results_equal_the_formulas_for_every_reference_set(
    tmp_path, settings, num_train, num_unseen
):
    planted = Planted(tmp_path, num_train, num_unseen, num_generated=60)
    # Copies and near misses of training and unseen images; five training images are nearly alike.
    planted.images[planted.train[1:5]] = planted.images[planted.train[0]]
    planted.images[planted.train[1:5], 0, 0] += 9
    planted.plant(np.arange(12), planted.train[:12], noise=6)
    planted.plant(np.arange(12, 20), planted.train[28:36], noise=24)
    planted.plant(np.arange(20, 24), planted.unseen[18:22], noise=12)
    planted.plant(np.arange(24, 26), planted.unseen[-2:], noise=4)
    folder, summary = run(planted, settings)
    results = load(folder)
    fewer = min(num_train, num_unseen)
    sets = {"train": planted.train, "heldout": planted.unseen[:num_train]}
    if num_unseen < num_train:
        sets["train_equal"] = planted.train[:num_unseen]
    assert results["num_reference"] == {name: len(rows) for name, rows in sets.items()}
    assert len(sets["heldout"]) == fewer
    best = {}
    for name, rows in sets.items():
        expected, *best[name] = scores(planted.generated, planted.images[rows], settings)
        for band, numbers in expected["bands"].items():
            assert results["bands"][band][name] == numbers
            assert results["bands"][band]["band"] == settings["bands"][band]
        assert results["curve"]["thresholds"] == pytest.approx(expected["thresholds"], abs=1e-6)
        assert results["curve"][name]["ams"] == expected["ams"]
        assert results["curve"][name]["ums"] == expected["ums"]
        assert results["tail_percentile"][name] == pytest.approx(expected["tail"], abs=1e-6)
    high = results["bands"]["high"]
    assert high["train"]["ums"] > high["train"]["ums_nearest"]  # the five that are alike
    assert results["num_images"] == 60
    assert results["metric"] == ("l2" if settings is L2 else "cosine")
    assert results["cost"] == {"unet_forwards": 1234, "surrogate_gradients": 567}
    assert summary["hits"] == high["train"]["count"]
    calibrated_equals_the_formula(planted, results, settings, sets, best)


def calibrated_equals_the_formula(planted, results, settings, sets, best):
    similar = settings is COSINE
    real = planted.images[planted.unseen]
    _, unseen_best, _ = scores(real, planted.images[planted.train], settings)
    rates = [r for r in settings["false_positive_rates"] if r * len(real) >= 1]
    assert [row["false_positive_rate"] for row in results["calibrated"]] == rates
    for row in results["calibrated"]:
        threshold = row["threshold"]
        passing = unseen_best >= threshold if similar else unseen_best <= threshold
        assert passing.sum() == int(row["false_positive_rate"] * len(real) + 1e-9)
        assert row["num_real"] == len(real)
        for name in sets:
            gammas, index = best[name]
            hits = gammas >= threshold if similar else gammas <= threshold
            expected = {"count": hits.sum(), "ams": hits.mean(), "unique": len(set(index[hits]))}
            assert row[name] == expected


def test_copies_of_held_out_images_count_as_held_out_hits_and_other_unseen_ones_do_not(tmp_path):
    planted = Planted(tmp_path)
    planted.plant(np.arange(7), planted.unseen[50:57], noise=5)  # within the first 64
    planted.plant(np.arange(7, 12), planted.unseen[64:69], noise=5)  # beyond
    _, summary = run(planted)
    assert summary["hits"] == 0
    assert summary["heldout_hits"] == 7


def test_a_rate_that_needs_more_real_images_is_left_out_with_a_warning(planted, caplog):
    with caplog.at_level(logging.WARNING, "sidepipe"):
        folder, _ = run(planted, false_positive_rates=[0.001, 0.01])
    assert [row["false_positive_rate"] for row in load(folder)["calibrated"]] == [0.01]
    [warning] = caplog.messages
    assert "0.001 needs at least 1000 held-out images, got 150; remedy" in warning


def test_hits_are_logged_beside_the_sizes_they_are_out_of(tmp_path, caplog):
    planted = Planted(tmp_path, num_train=64, num_unseen=20)
    planted.plant(np.arange(6), planted.train[[0, 0, 1, 2, 40, 50]], noise=5)
    with caplog.at_level(logging.INFO, "sidepipe"):
        run(planted, false_positive_rates=[])
    assert caplog.messages == [
        "train: 6 of 200 images hit one of 64 images, 5 different ones",
        "heldout: 0 of 200 images hit one of 20 images, 0 different ones",
        "train_equal: 4 of 200 images hit one of 20 images, 3 different ones",
    ]


def test_the_gallery_has_one_pair_a_training_image_the_closest_first(planted):
    folder, _ = run(planted, gallery_pairs=9)
    triples, rows = load_gallery(folder)
    assert triples.shape == (9, 3, 8, 8, 1)
    assert triples.dtype == np.uint8
    # Of each of the 12 copied images the closest of its copies; of those the nine closest.
    closest = {}
    for i, source in zip(COPIES, planted.source, strict=True):
        gamma = rms(planted.generated[i], planted.images[source])
        closest[source] = min(closest.get(source, (9, 0)), (gamma, i))
    expected = sorted((gamma, i, source) for source, (gamma, i) in closest.items())[:9]
    assert [(row["index"], row["train_index"]) for row in rows] == [(i, s) for _, i, s in expected]
    assert [row["train_gamma"] for row in rows] == pytest.approx(
        [g for g, *_ in expected], abs=1e-6
    )
    whole = {int(row["index"]): row for row in table(folder)}
    for (generated, train, heldout), row in zip(triples, rows, strict=True):
        np.testing.assert_array_equal(generated, planted.generated[row["index"]])
        np.testing.assert_array_equal(train, planted.images[row["train_index"]])
        np.testing.assert_array_equal(heldout, planted.images[row["heldout_index"]])
        assert {name: str(value) for name, value in row.items() if "gamma" not in name} == {
            name: value for name, value in whole[row["index"]].items() if "gamma" not in name
        }


def test_the_gallery_of_similarities_begins_with_the_most_similar(planted):
    _, rows = load_gallery(run(planted, COSINE)[0])
    gammas = [row["train_gamma"] for row in rows]
    assert gammas == sorted(gammas, reverse=True)
    assert gammas[0] > 0.98
    assert len({row["train_index"] for row in rows}) == len(rows)


@pytest.mark.parametrize(("pairs", "shown"), [(0, 0), (1, 1), (1000, None)])
def test_the_gallery_is_as_large_as_asked_or_as_there_are_training_images_near(
    planted, pairs, shown
):
    folder, _ = run(planted, gallery_pairs=pairs)
    triples, rows = load_gallery(folder)
    different = len({row["train_index"] for row in table(folder)})
    assert len(triples) == len(rows) == (different if shown is None else shown)
    assert triples.shape[1:] == (3, 8, 8, 1)


def test_ids_come_back_as_they_are_whatever_they_look_like(tmp_path):
    planted = Planted(tmp_path)
    planted.plant(np.arange(4), planted.train[:4], noise=3)
    names = ["NA", "007", "1e5", 'a, "b"']
    for row, name in zip(planted.train[:4], names, strict=True):
        planted.ids[row] = name
    _, rows = load_gallery(run(planted)[0])
    assert {row["train_id"] for row in rows[:4]} == set(names)


def test_results_do_not_depend_on_how_many_images_are_encoded_at_once(planted, monkeypatch):
    whole, _ = run(planted, name="whole")
    monkeypatch.setattr(reference, "ENCODE_IMAGES", 7)
    parts, _ = run(planted, name="parts")
    files = sorted(path.name for path in whole.iterdir())
    assert files == ["gallery.csv", "gallery.npy", "nearest.csv", "results.json"]
    for file in files:
        assert (whole / file).read_bytes() == (parts / file).read_bytes()


def test_results_are_plain_json_with_null_for_an_open_end(planted):
    folder, _ = run(planted)

    def no_constant(name):
        raise AssertionError(name)

    text = (folder / "results.json").read_text()
    results = json.loads(text, parse_constant=no_constant)
    assert results["bands"]["high"]["band"] == [None, 0.075]
    assert results == load(folder)


# Settings


def test_without_held_out_images_it_refuses_with_the_remedy(tmp_path):
    planted = Planted(tmp_path, num_unseen=0)
    with pytest.raises(ValueError, match=r"held-out images.*remedy: lower dpm.num_train_images"):
        run(planted)


def dpm(num_train_images=100, train_partitions=None):
    return {
        "dpm": PretrainedDPM(
            path="someone/model",
            revision=None,
            num_train_images=num_train_images,
            train_partitions=train_partitions,
            subset_seed=0,
        )
    }


def test_a_model_trained_on_all_of_data_is_refused_at_the_start():
    with pytest.raises(
        ValueError, match=r"held-out images.*remedy.*dpm.train_partitions=\[train\]"
    ):
        Evaluate(**L2).check(dpm(None, None), RUNTIME)
    Evaluate(**L2).check(dpm(100, None), RUNTIME)
    Evaluate(**L2).check(dpm(None, ["train"]), RUNTIME)


def test_bands_of_another_metric_are_refused_at_the_start():
    for settings, other in ((L2, COSINE), (COSINE, L2)):
        Evaluate(**settings).check(dpm(), RUNTIME)
        mixed = Evaluate(**{**settings, "features": other["features"]})
        with pytest.raises(ValueError, match=r"evaluate.bands.high must be the closest band of pi"):
            mixed.check(dpm(), RUNTIME)


@pytest.mark.parametrize(
    ("settings", "high", "end"),
    [(COSINE, [0.9, 1.0], "second"), (L2, [0.001, 0.075], "first")],
    ids=["cosine", "l2"],
)
def test_a_high_band_without_exact_copies_is_refused_at_the_start(settings, high, end):
    bands = {**settings["bands"], "high": high}
    if settings is L2:
        bands = {"high": high}
    message = rf"bands.high must be a band that exact copies lie in, got .*; set its {end} end"
    with pytest.raises(ValueError, match=message):
        Evaluate(**{**settings, "bands": bands}).check(dpm(), RUNTIME)
    for end in ([0.0, 0.075], [-1.0, 0.075]) if settings is L2 else ([0.9, 1.01],):
        Evaluate(**{**settings, "bands": {"high": end}}).check(dpm(), RUNTIME)


def test_missing_weights_of_the_features_are_noticed_at_the_start(tmp_path):
    sscd = {
        "_target_": "sidepipe.features.encoders.SSCD",
        "path": str(tmp_path / "absent"),
        "sha256": "0",
    }
    with pytest.raises(FileNotFoundError, match="must be a file"):
        Evaluate(**{**COSINE, "features": sscd}).check(dpm(), RUNTIME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": {"low": [0, 1]}}, r"evaluate.bands must be named with `high`.* got \['low'\]"),
        ({"bands": {"high": [0.2, 0.1]}}, r"evaluate.bands.high must be .* low < high.*0.2, 0.1"),
        ({"bands": {"high": [0.1, 0.1]}}, r"evaluate.bands.high must be .* low < high"),
        ({"bands": {"high": 0.6}}, r"evaluate.bands.high must be \[low, high\).* got 0.6"),
        ({"bands": {"high": [0.6]}}, r"evaluate.bands.high must be \[low, high\).* got \[0.6\]"),
        ({"curve": [0, 1]}, r"evaluate.curve must be \[start, stop, count\].* got \[0, 1\]"),
        ({"curve": [1, 0, 9]}, r"evaluate.curve must be .* start < stop"),
        ({"curve": [0, 1, 1]}, r"evaluate.curve must be .* count >= 2"),
        ({"false_positive_rates": [0.1, 0]}, r"false_positive_rates must be in \(0, 1\), got 0"),
        ({"false_positive_rates": [1]}, r"false_positive_rates must be in \(0, 1\), got 1"),
        ({"gallery_pairs": -1}, r"evaluate.gallery_pairs must be >= 0, got -1"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        Evaluate(**{**L2, **changes})
