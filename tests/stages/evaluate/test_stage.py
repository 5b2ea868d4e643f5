import csv
import json
import logging
import math
import re
import shutil

import numpy as np
import pytest
from tests.tiny import checked

from sidepipe.base.settings import build
from sidepipe.engine.artifacts import write_manifest
from sidepipe.engine.shards import write_shard
from sidepipe.engine.stage import Job, Runtime
from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.encoders import PixelsL2
from sidepipe.features.near import NearDuplicates
from sidepipe.stages.attack.guidance import AttackGuidance
from sidepipe.stages.attack.strategies import NoSurrogate
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.evaluate.stage import Evaluate, load
from sidepipe.stages.evaluate.tables import load_candidates, load_gallery, load_labels
from sidepipe.stages.extract.stage import Extract
from sidepipe.stages.reference.stage import Reference

RUNTIME = Runtime(accelerator="cpu")
L2 = {
    "features": {"_target_": "sidepipe.features.encoders.PixelsL2"},
    "truth": "train",
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
COST = {"unet_forwards": 1234, "surrogate_gradients": 567}
COST |= {"gradient_cost": 0.5, "network_evaluations": 1518}
EXTRACT = {
    "surrogate": NoSurrogate(),
    "guidance": AttackGuidance(),
    "tuned": False,
    "rounds": 1,
    "stop_rounds": True,
    "near_duplicates": NearDuplicates(features=L2["features"], threshold=0.05),
    "num_inference_steps": 10,
    "eta": 0.0,
    "sampler": "ddim",
    "timestep_spacing": "leading",
    "precision": "32-true",
    "prompts": None,
    "condition_guidance_scale": 1.0,
    "shard_size": 100,
    "seed": 0,
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
        self.behind = folder.parent  # where an artifact finds those that it was made from
        self.images = self.random(num_train + num_unseen)
        order = self.rng.permutation(len(self.images))
        self.train, self.unseen = order[:num_train], order[num_train:]
        self.generated, self.synthetic = self.random(num_generated), self.random(50)
        self.targets = self.rng.integers(0, 9, num_generated)
        self.ids = [ids.format(i) for i in range(len(self.images))]

    def random(self, n):
        return self.rng.integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)

    def noisy(self, rows, noise):
        noisy = self.images[rows] + self.rng.normal(0, noise, (len(rows), 8, 8, 1))
        return noisy.clip(0, 255).astype(np.uint8)

    def plant(self, places, rows, noise):
        """Makes the generated images in `places` noisy copies of the data's `rows`."""
        self.generated[places] = self.noisy(rows, noise)

    def calibrate(self, noise):
        """Makes the last real unseen images as like training images as `noise`, and no more."""
        self.images[self.unseen[-4:]] = self.noisy(self.train[40:44], noise)

    def write(self):
        for name in WRITTEN:
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
        cost = {**COST, "num_targets": 9}
        summary = {**cost, "num_images": len(self.generated)}
        inputs = {name: name for name in ("label", "generate") if (self.behind / name).exists()}
        write_manifest(self.folder / "extract", {"summary": summary, "inputs": inputs})
        write_shard(self.folder / "generate", 0, self.synthetic)

    def reference(self, features):
        """The real images, encoded; other features have another artifact."""
        name = features["_target_"].rpartition(".")[2]
        folder = self.folder / f"reference_{name}"
        if not folder.exists():
            folder.mkdir()
            inputs = {name: self.folder / name for name in ("data", "dpm")}
            Reference(features=features, false_positive_rates=[0.5]).run(
                Job(folder, inputs, RUNTIME)
            )
        return folder


WRITTEN = ("data", "dpm", "generate", "extract")
COPIES = np.arange(5, 35)  # generated images that are copies, of 12 training images
NEAR_MISSES = np.arange(40, 52)


@pytest.fixture
def planted(tmp_path):
    (tmp_path / "of_this_test" / "inputs").mkdir(parents=True)
    planted = Planted(tmp_path / "of_this_test" / "inputs")
    planted.source = planted.train[np.arange(30) % 12]
    planted.plant(COPIES, planted.source, noise=8)
    planted.plant(NEAR_MISSES, planted.train[20:32], noise=45)
    planted.calibrate(noise=30)
    return planted


def run(planted, settings=L2, name="evaluate", **changes):
    if not (planted.folder / "data").exists():
        planted.write()
    stage = Evaluate(**{**settings, **changes})
    inputs = {n: planted.folder / n for n in stage.inputs() if n != "reference"}
    inputs["reference"] = planted.reference(stage.features)
    folder = planted.folder / name
    folder.mkdir()
    return folder, stage.run(Job(folder, inputs, RUNTIME))


def table(folder, name="nearest.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


@SETTINGS
def test_thirty_planted_copies_of_two_hundred_are_found_and_near_misses_are_not(planted, settings):
    folder, summary = run(planted, settings)
    assert summary["hits"] == 30
    assert summary["heldout_hits"] == 0
    assert summary["unique"] == 12
    assert summary["excess"] == 30 / 200
    assert summary["excess_low"] <= 30 / 200 <= summary["excess_high"]
    assert summary["ams_high"] == 30 / 200
    assert summary["ums_high"] == 12 / 200
    hits = [i for i, row in enumerate(table(folder)) if row["hit"] == "1"]
    assert hits == COPIES.tolist()
    high = load(folder)["bands"]["high"]
    assert high["train"] == {"count": 30, "ams": 0.15, "ums": 0.06, "ums_nearest": 0.06}
    assert high["excess"]["share"] == 0.15
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
@pytest.mark.parametrize(("num_train", "num_unseen"), [(60, 130), (40, 25), (40, 40)])
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
    settings = {**settings, "false_positive_rates": [0.1, 0.3]}
    folder, summary = run(planted, settings)
    results = load(folder)
    fewer = min(num_train, num_unseen)
    sets = {"train": planted.train, "heldout": planted.unseen[:num_train]}
    if num_unseen < num_train:
        sets["train_equal"] = planted.train[:num_unseen]
    assert results["num_reference"] == {name: len(rows) for name, rows in sets.items()}
    assert len(sets["heldout"]) == fewer
    controls = [planted.unseen[i : i + fewer] for i in range(0, num_unseen - fewer + 1, fewer)]
    assert results["control"] == {"num_sets": len(controls), "scale": num_train / fewer}
    best = {}
    for name, rows in sets.items():
        expected, *best[name] = scores(planted.generated, planted.images[rows], settings)
        if name == "heldout":
            expected = means(expected, planted, controls, settings)
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
    assert results["metric"] == ("l2" if settings["features"] == L2["features"] else "cosine")
    assert results["cost"] == {**COST, "synthetic_evaluations": 0}
    assert summary["hits"] == results["calibrated"][0]["train"]["count"]
    rules_equal_the_formulas(planted, results, settings, sets)
    calibrated_equals_the_formula(planted, results, settings, controls, best)


def means(first, planted, controls, settings):
    """Scores of the first held-out set, but means over all of them where results.json has means."""
    every = [scores(planted.generated, planted.images[rows], settings)[0] for rows in controls]
    bands = {
        name: {
            **numbers,
            **{
                score: pytest.approx(np.mean([one["bands"][name][score] for one in every]))
                for score in ("count", "ams", "ums_nearest")
            },
        }
        for name, numbers in first["bands"].items()
    }
    return {**first, "bands": bands, "ams": pytest.approx(np.mean([x["ams"] for x in every], 0))}


def euclidean(a, b, settings):
    """The distance that the rules are about."""
    gamma = gamma_of(settings)(a, b)
    return gamma if settings["features"] == L2["features"] else math.sqrt(max(0, 2 - 2 * gamma))


def rules_equal_the_formulas(planted, results, settings, sets):
    rules, big = results["rules"], min(map(len, sets.values())) >= 50
    assert ("adaptive" in rules) == big
    for name, rows in sets.items():
        images = planted.images[rows]
        pairs = np.array([[euclidean(g, d, settings) for d in images] for g in planted.generated])
        closest = np.sort(pairs, axis=1)
        index = pairs.argmin(1)
        groups = groups_of(images, results, settings)
        if big:
            hits = closest[:, 0] <= 0.5 * closest[:, :50].mean(1)
            assert rules["adaptive"][name] == {
                "count": hits.sum(),
                "unique": len(set(groups[index[hits]])),
            }
        unique = np.unique(groups)
        assert rules["ratio"][f"num_unique_{name}"] == len(unique)
        closest = np.sort(pairs[:, unique], axis=1)
        hits = closest[:, 0] < closest[:, 1] / 3
        assert rules["ratio"][name] == {
            "count": hits.sum(),
            "unique": len(set(groups[index[hits]])),
        }


def groups_of(images, results, settings):
    encoder = build(settings["features"])
    threshold = results["calibrated"][0]["threshold"]
    return near_duplicate_groups(encoder.encode(images), encoder.metric, threshold)


def test_duplicates_in_the_training_set_do_not_hide_a_copy_from_the_ratio_rule(planted):
    planted.images[planted.train[51]] = planted.images[planted.train[50]]
    planted.plant(np.arange(60, 64), planted.train[[50] * 4], noise=5)
    ratio = load(run(planted)[0])["rules"]["ratio"]
    assert ratio["num_unique_train"] == 63
    assert ratio["train"] == {"count": 30 + 4, "unique": 12 + 1}
    assert ratio["heldout"] == {"count": 0, "unique": 0}


def calibrated_equals_the_formula(planted, results, settings, controls, best):
    similar = settings["features"] == COSINE["features"]
    real = planted.images[planted.unseen]
    _, unseen_best, _ = scores(real, planted.images[planted.train], settings)
    rates = settings["false_positive_rates"]
    scale = results["control"]["scale"]
    train_groups = groups_of(planted.images[planted.train], results, settings)
    found = [scores(planted.generated, planted.images[rows], settings)[1:] for rows in controls]
    assert [row["false_positive_rate"] for row in results["calibrated"]] == rates
    for row in results["calibrated"]:
        threshold = row["threshold"]

        def reached(gammas, threshold=threshold):
            return gammas >= threshold if similar else gammas <= threshold

        passing = reached(unseen_best)
        assert passing.sum() == int(row["false_positive_rate"] * len(real) + 1e-9)
        assert row["num_real"] == len(real)
        assert row["real_passing"] == passing.sum()
        low, high = row["true_rate_interval"]
        assert low <= passing.mean() <= high
        gammas, index = best["train"]
        hits = reached(gammas)
        assert row["train"]["count"] == hits.sum()
        assert row["train"]["ams"] == hits.mean()
        assert row["train"]["unique"] == len(set(train_groups[index[hits]]))
        heldout = [reached(gammas) for gammas, _ in found]
        assert row["heldout"]["sets"] == [some.sum() for some in heldout]
        assert row["heldout"]["count"] == pytest.approx(np.mean(row["heldout"]["sets"]))
        assert row["heldout"]["ams"] == pytest.approx(np.mean(heldout))
        different = []
        for rows, (_, index), some in zip(controls, found, heldout, strict=True):
            images = planted.images[rows[np.unique(index[some])]]
            groups = groups_of(images, results, settings) if len(images) else []
            different.append(len(set(groups)))
        assert row["heldout"]["unique"] == pytest.approx(np.mean(different))
        scaled = 1 - (1 - np.mean(heldout)) ** scale
        assert row["heldout"]["scaled"] == pytest.approx(60 * scaled)
        assert row["excess"]["share"] == pytest.approx(hits.mean() - scaled)
        for interval, share in (
            (row["train"]["interval"], hits.mean()),
            (row["heldout"]["interval"], scaled),
            (row["excess"]["interval"], hits.mean() - scaled),
        ):
            assert interval[0] < share + 1e-12
            assert interval[1] > share - 1e-12


def test_held_out_hits_are_the_mean_over_all_disjoint_sets_that_unseen_images_allow(tmp_path):
    planted = Planted(tmp_path)  # of 150 unseen images two sets of 64
    planted.plant(np.arange(7), planted.unseen[50:57], noise=5)  # within the first
    planted.plant(np.arange(7, 12), planted.unseen[64:69], noise=5)  # within the second
    planted.plant(np.arange(12, 15), planted.unseen[128:131], noise=5)  # in neither
    planted.calibrate(noise=30)
    results = load(run(planted)[0])
    assert results["control"] == {"num_sets": 2, "scale": 1.0}
    assert results["calibrated"][0]["heldout"]["sets"] == [7, 5]
    for found in (results["bands"]["high"], results["calibrated"][0]):
        assert found["train"]["count"] == 0
        assert found["heldout"]["count"] == 6
        assert found["excess"]["share"] == pytest.approx(-6 / 200)


def test_too_few_real_images_are_refused_before_anything_is_encoded(tmp_path, monkeypatch):
    planted = Planted(tmp_path, num_unseen=20)
    planted.write()
    planted.reference(L2["features"])
    monkeypatch.setattr(PixelsL2, "encode", None)
    reference = planted.folder / "reference_PixelsL2"
    for name in ("unseen_rows", "real_gamma"):
        np.save(reference / f"{name}.npy", np.load(reference / f"{name}.npy")[:19])
    with pytest.raises(ValueError, match=r"that nothing was trained on must be >= 20, .* got 19"):
        run(planted)


@SETTINGS
@pytest.mark.parametrize(
    ("asked", "used"),
    [([0.001, 0.1], [1 / 150, 0.1]), ([0.001, 0.002], [1 / 150]), ([0.01], [0.01])],
)
def test_a_small_set_is_judged_at_the_smallest_rate_that_it_allows(
    planted, settings, asked, used, caplog
):
    with caplog.at_level(logging.WARNING):
        folder, summary = run(planted, settings, false_positive_rates=asked)
    results = load(folder)
    assert [row["false_positive_rate"] for row in results["calibrated"]] == used
    assert results["asked_false_positive_rates"] == asked
    assert summary["hits"] == 30
    assert ("150 held-out images are too few" in caplog.text) == (asked != used)


@SETTINGS
def test_copies_among_the_unseen_images_are_never_quietly_no_hits(planted, settings):
    planted.images[planted.unseen[60:62]] = planted.images[planted.train[:2]]
    planted.write()
    planted.reference(settings["features"])  # made for a rate that lets these pass
    one, two = planted.unseen[60], planted.train[0]
    message = rf"2 of 150 unseen images are exact copies .* pair is {one:04d}.png and {two:04d}.png"
    with pytest.raises(ValueError, match=message):
        run(planted, settings, false_positive_rates=[0.1, 0.01])


def test_near_copies_among_the_unseen_images_are_in_the_results(tmp_path):
    planted = Planted(tmp_path)
    planted.plant(COPIES, planted.train[np.arange(30) % 12], noise=8)
    planted.images[planted.unseen[60:63]] = planted.noisy(planted.train[:3], 3)
    results = load(run(planted)[0])
    assert results["near_duplicates"]["count"] == 3
    assert results["calibrated"][0]["train"]["count"] == 0  # which is why they must be told of


def test_hits_are_logged_beside_the_sizes_they_are_out_of(tmp_path, caplog):
    planted = Planted(tmp_path, num_train=64, num_unseen=20)
    planted.plant(np.arange(6), planted.train[[0, 0, 1, 2, 40, 50]], noise=5)
    planted.calibrate(noise=30)
    planted.plant([6], planted.unseen[[0]], noise=5)
    with caplog.at_level(logging.INFO, "sidepipe"):
        folder, _ = run(planted, false_positive_rates=[0.05])
    assert caplog.messages[1:3] == [
        "hits: 6 of 200 generated images hit one of 64 training images, 5 different ones",
        "held-out hits: 1 of 200 generated images hit one of 20 held-out images "
        "(held-out sets: 1, with 1 to 1 hits); "
        "scaled to 64 images, 3.2 times as many: 3.18",
    ]
    said = (
        r"excess at 5 % held-out false positives: 3 of 200 images, 1.41 % \(95 % interval (.*) %\)"
    )
    ends = list(map(float, re.fullmatch(said, caplog.messages[0])[1].split(" to ")))
    (interval,) = [at["excess"]["interval"] for at in load(folder)["calibrated"]]
    assert ends == pytest.approx([100 * end for end in interval], abs=0.006)


def test_hits_whose_training_image_the_synthetic_images_hit_are_not_new(planted):
    known = np.unique(planted.source)[:5]
    planted.synthetic[:10] = planted.noisy(np.repeat(known, 2), noise=8)
    folder, _ = run(planted)
    seen = np.isin(planted.source, known)
    assert load(folder)["novelty"] == {
        "synthetic_unique": 5,
        "synthetic_hits": 10,
        "seen": {"count": int(seen.sum()), "unique": 5},
        "new": {"count": int((~seen).sum()), "unique": 7},
    }
    new = [i for i, row in enumerate(table(folder)) if row["new"] == "1"]
    assert new == COPIES[~seen].tolist()


def write_label(planted):
    """The artifact of nine labels, as if the attack had aimed at them."""
    label = planted.behind / "label" / "label"
    label.mkdir(parents=True)
    (label / "clusters.csv").write_text(
        "cluster,size,cohesion,kept,label,labeled\n"
        + "".join(f"{k},9,{0.9 - k / 20},1,{k},9\n" for k in range(9))
    )
    write_manifest(label, {"inputs": {}})
    return label


def test_labels_are_listed_with_what_aiming_at_them_gave(planted):
    write_label(planted)
    folder, _ = run(planted)
    rows = load_labels(folder)
    assert [row["label"] for row in rows] == list(range(9))
    assert sum(row["images"] for row in rows) == 200
    for row in rows:
        of = planted.targets[COPIES] == row["label"]
        assert row["images"] == (planted.targets == row["label"]).sum()
        assert row["hits"] == row["new"] == of.sum()
        assert row["unique"] == len(set(planted.source[of]))
        assert row["cohesion"] == pytest.approx(0.9 - row["label"] / 20)


def test_labels_of_rounds_are_listed_with_the_cohesion_that_each_had_in_its_round(planted):
    write_label(planted)
    planted.write()
    np.save(planted.folder / "extract" / "cohesion.npy", np.linspace(0.5, 0.9, 18))
    np.save(planted.folder / "extract" / "targets.npy", np.arange(200) % 18)
    rows = load_labels(run(planted)[0])
    assert [row["label"] for row in rows] == list(range(18))
    assert [row["cohesion"] for row in rows] == pytest.approx(np.linspace(0.5, 0.9, 18), abs=1e-6)


def test_who_learned_from_real_images_is_not_judged_by_them_but_by_the_same_threshold(planted):
    """Copies of the attacker's own images are no hits on held-out ones."""
    own = planted.unseen[20:50]
    planted.plant(np.arange(60, 90), own, noise=8)
    before = load(run(planted, name="before")[0])
    write_manifest(write_label(planted), {"inputs": {"original": "original"}})
    original = planted.behind / "original" / "original"
    original.mkdir(parents=True)
    np.save(original / "rows.npy", own)
    manifest = {"summary": {**COST, "num_targets": 9, "num_images": 200}}
    write_manifest(
        planted.folder / "extract", {**manifest, "inputs": {"label": "label", "generate": "none"}}
    )
    after = load(run(planted, name="after")[0])
    assert before["calibrated"][0]["heldout"]["sets"] == [30, 0]
    assert after["calibrated"][0]["heldout"]["sets"] == [0]
    assert after["num_reference"]["heldout"] == 64
    for results in (before, after):
        assert results["calibrated"][0]["train"]["count"] == 30
    assert after["calibrated"][0]["threshold"] == before["calibrated"][0]["threshold"]
    assert after["cost"] == {**COST, "synthetic_evaluations": 0}


def test_synthetic_images_are_part_of_the_cost_of_an_attack_that_learned_from_them(planted):
    generate = planted.behind / "generate" / "generate"
    generate.mkdir(parents=True)
    write_manifest(generate, {"summary": {"unet_forwards": 777}, "inputs": {}})
    assert load(run(planted)[0])["cost"] == {**COST, "synthetic_evaluations": 777}


def test_trials_of_a_tuned_attack_are_listed_with_the_hits_that_tuning_did_not_see(planted):
    assert load(run(planted, name="untuned")[0])["trials"] == []
    tune, tried = planted.behind / "tune" / "tune", [{"t_min": 0}, {"t_min": 200}]
    copies = (planted.noisy(planted.train[[3, 3, 9]], noise=8), planted.random(0))
    for i, (row, some) in enumerate(zip(tried, copies, strict=True)):
        folder = tune / "trials" / f"{i:03d}"
        write_shard(folder, 0, np.concatenate([planted.random(7), some]))
        (folder / "trial.json").write_text(json.dumps({**row, "score": 0.1 * i}))
    manifest = {"summary": {**COST, "num_targets": 9, "num_images": 200}}
    write_manifest(planted.folder / "extract", {**manifest, "inputs": {"tune": "tune"}})
    assert load(run(planted)[0])["trials"] == [
        {"t_min": 0, "score": 0.0, "images": 10, "hits": 3, "unique": 2},
        {"t_min": 200, "score": 0.1, "images": 7, "hits": 0, "unique": 0},
    ]


def test_an_attack_without_labels_lists_none(planted):
    assert load_labels(run(planted)[0]) == []


def test_the_blind_ranking_finds_what_is_repeated_and_truth_says_how_well(planted):
    folder, _ = run(planted)
    blind = load(folder)["blind"]
    # Twelve training images, each generated two or three times; all else once.
    assert blind["groups"] == 12
    assert blind["largest"] == 3
    assert blind["num_candidates"] == 200 - 30 + 12
    assert blind["precision_at"]["10"] == 1
    assert blind["auc"] == 1
    images, rows = load_candidates(folder)
    assert len(images) == len(rows) == 60
    assert [row["hit"] for row in rows[:13]] == [1] * 12 + [0]
    assert [row["rank"] for row in rows] == list(range(1, 61))
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(image, planted.generated[row["index"]])


def test_without_truth_the_images_are_ranked_alike_and_nothing_else_is_read(planted):
    with_truth, _ = run(planted, name="with")
    for name in ("data", "dpm", "generate", "reference_PixelsL2"):
        shutil.rmtree(planted.folder / name)
    folder = planted.folder / "without"
    folder.mkdir()
    stage = Evaluate(**{**L2, "truth": "none"})
    assert stage.inputs() == ("extract",)
    summary = stage.run(Job(folder, {"extract": planted.folder / "extract"}, RUNTIME))
    assert summary["groups"] == 12
    results = load(folder)
    known = load(with_truth)["blind"]
    assert results["blind"] == {name: known[name] for name in results["blind"]}
    assert set(known) - set(results["blind"]) == {"base_rate", "precision_at", "auc", "roc"}
    images, rows = load_candidates(folder)
    assert "hit" not in rows[0]
    np.testing.assert_array_equal(images, load_candidates(with_truth)[0])


def test_a_trained_descriptor_is_an_input_and_one_of_a_folder_is_not():
    target = "sidepipe.features.copydet.CopyDet"
    ours = Evaluate(**{**COSINE, "features": {"_target_": target, "path": None}})
    assert ours.inputs() == ("data", "generate", "descriptor", "reference", "extract")
    theirs = Evaluate(**{**COSINE, "features": {"_target_": target, "path": "somewhere"}})
    assert theirs.inputs() == ("data", "generate", "reference", "extract")


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


def test_results_are_plain_json_with_null_for_an_open_end(planted):
    folder, _ = run(planted)

    def no_constant(name):
        raise AssertionError(name)

    text = (folder / "results.json").read_text()
    results = json.loads(text, parse_constant=no_constant)
    assert results["bands"]["high"]["band"] == [None, 0.075]
    assert results == load(folder)


@SETTINGS
@pytest.mark.parametrize("truth", ["train", "none"])
@pytest.mark.parametrize("what", ["one image", "three images", "a single color", "copies"])
def test_a_collapsed_model_is_named_and_warned_about(planted, caplog, settings, truth, what):
    different = {"three images": 3}.get(what, 1)
    images = planted.images[planted.train[:1]] if what == "copies" else planted.random(different)
    planted.generated = images[np.arange(60) % different]
    planted.targets = planted.targets[:60]
    if what == "a single color":
        planted.generated = np.broadcast_to(planted.random(60)[:, :1, :1], (60, 8, 8, 1))
    caplog.set_level("INFO", logger="sidepipe")
    folder, _ = run(planted, settings, truth=truth)
    found = load(folder)["collapse"]
    assert (found["images"], found["of"]) == (60, 60)
    # By brightness they may be alike too; what is constant is named first.
    assert found["kind"] == ("constant" if what == "a single color" else "alike")
    assert found["different"] == (None if what == "a single color" else different)
    [warning] = [r for r in caplog.records if r.message.startswith("the model gives")]
    assert warning.levelname == "WARNING"
    # Exact copies of a training image are a finding, which only the truth can tell.
    exact = what == "copies" and truth == "train"
    assert warning.message.endswith(": no finding") != exact
    copies = "exact copies: 60 of 60 generated images, of 1 different training images"
    assert any(copies == r.message for r in caplog.records) == exact


@SETTINGS
def test_a_model_that_repeats_a_few_images_among_others_has_not_collapsed(planted, settings):
    assert load(run(planted, settings)[0])["collapse"] is None


def test_a_duplicate_of_a_training_image_is_no_different_image_anywhere(planted):
    """Eight of the twelve copied images lie three times in the training set."""
    for again in (44, 52):
        planted.images[planted.train[again : again + 8]] = planted.noisy(planted.train[:8], 4)
    planted.plant(np.arange(60, 76), planted.train[44:60], noise=4)
    planted.synthetic[:5] = planted.noisy(planted.train[44:49], noise=4)  # duplicates of five
    write_label(planted)
    folder, summary = run(planted)
    results, rows = load(folder), table(folder)
    near = {row["train_index"] for row in rows if row["hit"] == "1"}
    assert len(near) > 20  # as they lie in the data
    assert summary["unique"] == 12
    assert results["num_different"] == len(planted.train) - 16
    assert results["rarefaction"]["observed"]["unique"] == 12
    assert results["novelty"]["synthetic_unique"] == 5
    assert results["novelty"]["seen"]["unique"] == 5
    assert results["novelty"]["new"]["unique"] == 7
    assert len({row["train_group"] for row in rows if row["hit"] == "1"}) == 12
    assert len([row for row in load_gallery(folder)[1] if row["hit"]]) == 12
    for row in load_labels(folder):
        of = [r for r in rows if r["hit"] == "1" and int(r["target"]) == row["label"]]
        assert row["unique"] == len({r["train_group"] for r in of})


# Settings


def upstream(num_train_images=100, train_partitions=None, num_images=200):
    return {
        "extract": Extract(**{**EXTRACT, "num_images": num_images}),
        "dpm": PretrainedDPM(
            path="someone/model",
            revision=None,
            variant=None,
            num_train_images=num_train_images,
            train_partitions=train_partitions,
            subset_seed=0,
        ),
    }


def test_a_model_trained_on_all_of_data_is_refused_at_the_start():
    with pytest.raises(
        ValueError, match=r"held-out images.*remedy.*dpm.train_partitions=\[train\]"
    ):
        checked(Evaluate(**L2), upstream(None, None), RUNTIME)
    checked(Evaluate(**L2), upstream(100, None), RUNTIME)
    checked(Evaluate(**L2), upstream(None, ["train"]), RUNTIME)


def test_without_truth_a_model_trained_on_all_of_data_is_fine():
    checked(Evaluate(**{**L2, "truth": "none"}), upstream(None, None), RUNTIME)


def test_too_few_images_for_a_percentile_are_refused_at_the_start():
    with pytest.raises(ValueError, match=r"extract.num_images must be >= 20, .* got 19"):
        checked(Evaluate(**L2), upstream(num_images=19), RUNTIME)


def test_bands_of_another_metric_are_refused_at_the_start():
    for settings, other in ((L2, COSINE), (COSINE, L2)):
        checked(Evaluate(**settings), upstream(), RUNTIME)
        mixed = Evaluate(**{**settings, "features": other["features"]})
        with pytest.raises(ValueError, match=r"evaluate.bands.high must be the closest band of pi"):
            checked(mixed, upstream(), RUNTIME)


@pytest.mark.parametrize(
    ("settings", "high", "end"),
    [(COSINE, [0.9, 1.0], "second"), (L2, [0.001, 0.075], "first")],
    ids=["cosine", "l2"],
)
def test_a_high_band_without_exact_copies_is_refused_at_the_start(settings, high, end):
    bands = {**settings["bands"], "high": high}
    if settings is L2:
        bands = {"high": high}
    message = rf"bands.high must be a band with exact copies, got .*; set its {end} end"
    with pytest.raises(ValueError, match=message):
        checked(Evaluate(**{**settings, "bands": bands}), upstream(), RUNTIME)
    for end in ([0.0, 0.075], [-1.0, 0.075]) if settings is L2 else ([0.9, 1.01],):
        checked(Evaluate(**{**settings, "bands": {"high": end}}), upstream(), RUNTIME)


def test_missing_weights_of_the_features_are_noticed_at_the_start(tmp_path):
    sscd = {
        "_target_": "sidepipe.features.encoders.SSCD",
        "path": str(tmp_path / "absent"),
        "sha256": "0",
    }
    with pytest.raises(FileNotFoundError, match="must be a file"):
        checked(Evaluate(**{**COSINE, "features": sscd}), upstream(), RUNTIME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bands": {"low": [0, 1]}},
            r"bands must be bands, one of them named high, got \['low'\]",
        ),
        ({"bands": {"high": [0.2, 0.1]}}, r"evaluate.bands.high must be .* low < high.*0.2, 0.1"),
        ({"bands": {"high": [0.1, 0.1]}}, r"evaluate.bands.high must be .* low < high"),
        ({"bands": {"high": 0.6}}, r"evaluate.bands.high must be \[low, high\).* got 0.6"),
        ({"bands": {"high": [0.6]}}, r"evaluate.bands.high must be \[low, high\).* got \[0.6\]"),
        ({"curve": [0, 1]}, r"evaluate.curve must be \[start, stop, count\].* got \[0, 1\]"),
        ({"curve": [1, 0, 9]}, r"evaluate.curve must be .* start < stop"),
        ({"curve": [0, 1, 1]}, r"evaluate.curve must be .* count >= 2"),
        ({"false_positive_rates": [0.1, 0]}, r"false_positive_rates must be in \(0, 1\), got 0"),
        ({"false_positive_rates": [1]}, r"false_positive_rates must be in \(0, 1\), got 1"),
        ({"false_positive_rates": []}, r"false_positive_rates must be at least one rate, got \[\]"),
        ({"gallery_pairs": -1}, r"evaluate.gallery_pairs must be >= 0, got -1"),
    ],
)
def test_a_wrong_setting_is_refused_by_name_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        Evaluate(**{**L2, **changes})
