import csv
import re
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from tests.composing import planned
from tests.tiny import checked

from sidepipe.base.files import write_json
from sidepipe.engine.shards import write_shard
from sidepipe.engine.stage import Job, NoMaterial, Runtime
from sidepipe.features.near import NearDuplicates
from sidepipe.stages.generate.stage import Generate
from sidepipe.stages.label.stage import (
    Label,
    load,
    load_cohesion,
    load_images,
    load_sizes,
    load_stage,
)

RUNTIME = Runtime(accelerator="cpu")
PIXELS = {"_target_": "sidepipe.features.encoders.Pixels"}
SYNTHETIC = Generate(
    num_images=100,
    num_inference_steps=2,
    eta=0.0,
    sampler="ddim",
    timestep_spacing="leading",
    prompts=None,
    condition_guidance_scale=1.0,
    precision="32-true",
    shard_size=60,
    seed=0,
)


def near_duplicates(threshold: float) -> NearDuplicates:
    features = {"_target_": "sidepipe.features.encoders.PixelsL2"}
    return NearDuplicates(features=features, threshold=threshold)


def label(**changes) -> Label:
    settings = {
        "features": PIXELS,
        "num_clusters": 5,
        "num_iterations": 20,
        "min_cohesion": 0.5,
        "min_cluster_size": 1,
        "assign": "all",
        "near_duplicates": near_duplicates(0.08),
        "seed": 0,
    }
    return Label(**{**settings, **changes})


@pytest.fixture
def generated(tmp_path):
    """100 synthetic images in two shards: 60 near one of three prototypes, 40 of pure noise."""
    rng = np.random.default_rng(1)
    prototypes = rng.integers(60, 190, (3, 8, 8, 1))
    planted = prototypes[np.arange(60) % 3] + rng.normal(0, 8, (60, 8, 8, 1))
    images = np.concatenate([planted, rng.integers(0, 255, (40, 8, 8, 1))]).astype(np.uint8)
    for shard, part in enumerate((images[:60], images[60:])):
        write_shard(tmp_path / "generate", shard, part)
    return {"generate": tmp_path / "generate"}


@pytest.fixture
def images(generated):
    shards = sorted((generated["generate"] / "shards").iterdir())
    return np.concatenate([np.load(path) for path in shards])


def run(tmp_path, generated, name="label", **changes):
    folder = tmp_path / name
    folder.mkdir()
    return folder, label(**changes).run(Job(folder, generated, RUNTIME))


def table(folder):
    with (folder / "clusters.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def correlations(images):
    """Unit vectors whose cosine is the correlation of pixels, written apart from the encoder."""
    x = images.reshape(len(images), -1).astype(np.float64)
    x = x - x.mean(1, keepdims=True)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def algorithm_1(images, centroids, min_cohesion):
    """SIDE's algorithm 1 from the centroids on, one image at a time."""
    z = correlations(images)
    members = [int(np.argmin([np.linalg.norm(x - c) for c in centroids])) for x in z]
    cohesions = []
    for k, c in enumerate(centroids):
        mine = [x @ c / np.linalg.norm(c) for x, m in zip(z, members, strict=True) if m == k]
        cohesions.append(np.mean(mine))
    kept = [k for k, value in enumerate(cohesions) if value >= min_cohesion]
    labels = [int(np.argmin([np.linalg.norm(x - centroids[k]) for k in kept])) for x in z]
    return members, cohesions, kept, labels


def test_labels_cohesion_and_kept_clusters_are_those_of_algorithm_1(tmp_path, generated, images):
    folder, summary = run(tmp_path, generated)
    centroids = np.load(folder / "centroids.npy")
    assert centroids.shape == (5, 64)
    members, cohesions, kept, labels = algorithm_1(images, centroids, 0.5)
    assert 2 <= len(kept) < 5
    assert load(folder).tolist() == labels
    assert load(folder).dtype == np.int64
    np.testing.assert_allclose(load_cohesion(folder), [cohesions[k] for k in kept], atol=1e-6)
    assert load_sizes(folder).tolist() == [members.count(k) for k in kept]
    quantiles = np.quantile(cohesions, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(summary["cohesion_quantiles"], quantiles, atol=6e-4)
    assert summary["num_clusters"] == 5
    assert summary["num_labels"] == len(kept)
    assert summary["num_labeled"] == 100
    assert summary["transform"] == "pixels-centered-v1"
    for k, row in enumerate(table(folder)):
        is_kept, y = k in kept, kept.index(k) if k in kept else -1
        assert int(row["cluster"]) == k
        assert int(row["size"]) == members.count(k)
        assert float(row["cohesion"]) == pytest.approx(cohesions[k], abs=2e-6)
        assert int(row["kept"]) == is_kept
        assert int(row["label"]) == y
        assert int(row["labeled"]) == (labels.count(y) if is_kept else 0)


@pytest.fixture
def originals(tmp_path):
    """Real images of four classes of 5, 40, 30 and 25, the last of them pure noise."""
    rng = np.random.default_rng(4)
    classes = rng.permutation(np.repeat(np.arange(4), [5, 40, 30, 25]))
    images = rng.integers(60, 190, (4, 8, 8, 1))[classes] + rng.normal(0, 8, (100, 8, 8, 1))
    images[classes == 3] = rng.integers(0, 255, (25, 8, 8, 1))
    (tmp_path / "original").mkdir()
    np.save(tmp_path / "original" / "images.npy", images.astype(np.uint8))
    np.save(tmp_path / "original" / "classes.npy", classes)
    return {"original": tmp_path / "original"}


def test_the_attacker_s_own_images_are_labeled_by_their_classes(tmp_path, originals):
    images, classes = (np.load(originals["original"] / f"{n}.npy") for n in ("images", "classes"))
    settings = {"assign": "original", "min_cluster_size": 6, "min_cohesion": 0.6}
    folder, summary = run(tmp_path, originals, **settings)
    # One class has too few images, one is not cohesive: neither has a label.
    expected = np.array([-1, 0, 1, -1])[classes]
    np.testing.assert_array_equal(load(folder), expected)
    assert (summary["num_labels"], summary["num_clusters"], summary["num_labeled"]) == (2, 4, 70)
    z = correlations(images)
    for k, row in enumerate(table(folder)):
        mean = z[classes == k].mean(0)
        cohesion = (z[classes == k] @ mean / np.linalg.norm(mean)).mean()
        assert float(row["cohesion"]) == pytest.approx(cohesion, abs=2e-6)
        assert int(row["size"]) == (classes == k).sum()
    assert load_sizes(folder).tolist() == [40, 30]
    np.testing.assert_array_equal(load_images(folder, tmp_path / "nowhere"), images)


def test_groups_of_near_duplicates_are_labels_of_their_members_alone(tmp_path):
    rng = np.random.default_rng(6)
    of = rng.permutation(np.concatenate([np.repeat(np.arange(4), [7, 2, 5, 3]), 4 + np.arange(20)]))
    images = rng.integers(0, 256, (24, 8, 8, 1))[of] + rng.normal(0, 4, (37, 8, 8, 1))
    write_shard(tmp_path / "generate", 0, images.clip(0, 255).astype(np.uint8))
    inputs = {"generate": tmp_path / "generate"}
    settings = {"assign": "repeats", "min_cluster_size": 3, "num_clusters": 10**6}
    checked(label(**settings), {"generate": SYNTHETIC}, RUNTIME)
    folder, summary = run(tmp_path, inputs, **settings)
    labels = load(folder)
    assert (labels[of > 3] == -1).all()
    assert (labels[of == 1] == -1).all()  # two are too few
    assert sorted(load_sizes(folder).tolist()) == [3, 5, 7]
    for original in (0, 2, 3):
        assert len(set(labels[of == original])) == 1
    assert len(set(labels[(of < 4) & (of != 1)])) == 3
    assert (summary["num_labels"], summary["num_labeled"]) == (3, 15)
    assert load_cohesion(folder).min() > 0.95


def test_one_image_repeats_nothing():
    with pytest.raises(ValueError, match=r"label.min_cluster_size must be >= 2 .*'repeats', got 1"):
        label(assign="repeats")


def test_labels_of_synthetic_images_are_of_these(tmp_path, generated, images):
    folder, _ = run(tmp_path, generated)
    np.testing.assert_array_equal(load_images(folder, generated["generate"]), images)


def test_the_stage_is_read_from_its_artifact_and_labels_other_images_as_it_did(
    tmp_path, generated, images
):
    folder, summary = run(tmp_path, generated, num_clusters=7, seed=2)
    stage = label(num_clusters=7, seed=2)
    target = {"_target_": "sidepipe.stages.label.stage.Label"}
    settings = {**target, **asdict(stage), "min_cohesion": 0.5}
    write_json(folder / "settings.json", {"settings": settings})
    assert load_stage(folder) == stage
    again = tmp_path / "again"
    again.mkdir()
    assert load_stage(folder).label(images, again, RUNTIME) == summary
    np.testing.assert_array_equal(load(again), load(folder))


def test_real_images_need_no_clustering_and_it_is_no_part_of_their_key():
    stage = label(assign="original", num_clusters=10**6)
    assert stage.inputs() == ("original",)
    assert label().inputs() == ("generate",)
    checked(stage, {}, RUNTIME)
    settings = dict.fromkeys(vars(stage), 1)
    clustering = {"num_clusters", "num_iterations", "seed"}
    repeats = {"near_duplicates"}
    assert set(settings) - set(stage.key_settings(settings)) == clustering | repeats
    assert set(settings) - set(label().key_settings(settings)) == repeats
    of_repeats = label(assign="repeats", min_cluster_size=2).key_settings(settings)
    assert set(settings) - set(of_repeats) == clustering


def test_random_labels_leave_clusters_and_frequencies_as_they_are(tmp_path, generated):
    folders = {
        assign: run(tmp_path, generated, assign, assign=assign)[0] for assign in ("all", "random")
    }
    assert table(folders["random"]) == table(folders["all"])
    labels = {assign: load(folder) for assign, folder in folders.items()}
    assert sorted(labels["random"]) == sorted(labels["all"])
    assert (labels["random"] != labels["all"]).mean() > 0.3


def test_planted_clusters_are_kept_and_noise_is_not(tmp_path, generated):
    folder, _ = run(tmp_path, generated, num_clusters=4, seed=2)
    cohesion = load_cohesion(folder)
    assert len(cohesion) == 3
    assert (cohesion > 0.95).all()
    # 60 planted images in turn: label i of every third.
    labels = load(folder)[:60].reshape(20, 3)
    assert (labels == labels[0]).all()
    assert sorted(labels[0]) == [0, 1, 2]


def test_with_members_images_of_dropped_clusters_have_no_label(tmp_path, generated, images):
    folder, summary = run(tmp_path, generated, assign="members")
    members, _, kept, _ = algorithm_1(images, np.load(folder / "centroids.npy"), 0.5)
    expected = [kept.index(m) if m in kept else -1 for m in members]
    assert load(folder).tolist() == expected
    assert summary["num_labeled"] == sum(y >= 0 for y in expected) < 100
    for row in table(folder):
        assert int(row["labeled"]) == (int(row["size"]) if row["kept"] == "1" else 0)


def test_small_clusters_are_dropped_however_cohesive(tmp_path, generated):
    settings = {"num_clusters": 40, "min_cohesion": -1.0}
    everything, _ = run(tmp_path, generated, "everything", **settings)
    sizes = [int(row["size"]) for row in table(everything)]
    assert {row["kept"] for row in table(everything)} == {"1"}
    middle = sorted(sizes)[20]
    assert sizes.count(middle) > 0  # of exactly the smallest size that is kept
    assert min(sizes) < middle
    folder, _ = run(tmp_path, generated, min_cluster_size=middle, **settings)
    for row in table(folder):
        assert int(row["kept"]) == (int(row["size"]) >= middle)
    assert len(load_cohesion(folder)) == sum(size >= middle for size in sizes)


def test_a_tau_that_drops_every_cluster_is_no_material_with_the_quantiles_and_the_remedy(
    tmp_path, generated
):
    folder, summary = run(tmp_path, generated)
    with pytest.raises(NoMaterial, match=r"min_cohesion = 0\.9999 .* keep 0 clusters") as caught:
        run(tmp_path, generated, "refused", min_cohesion=0.9999)
    message = str(caught.value)
    assert f"are {summary['cohesion_quantiles']}" in message
    sizes = [int(row["size"]) for row in table(folder)]
    smallest, largest = min(sizes), max(sizes)
    assert re.search(rf"sizes \[{smallest}\.0, .*, {largest}\.0\]", message)
    assert "remedy: lower either, or change label.num_clusters" in message
    assert list((tmp_path / "refused").iterdir()) == []


def test_one_kept_cluster_is_no_material_for_it_guides_nowhere(tmp_path, generated):
    sizes = sorted(int(row["size"]) for row in table(run(tmp_path, generated)[0]))
    assert sizes[-1] > sizes[-2]
    with pytest.raises(NoMaterial, match="keep 1 clusters, and at least 2 are needed"):
        run(tmp_path, generated, "refused", min_cohesion=-1.0, min_cluster_size=sizes[-1])


def test_where_nothing_repeats_there_is_no_material(tmp_path, generated):
    with pytest.raises(NoMaterial, match="nothing repeats: 0 groups of near duplicates have at"):
        run(
            tmp_path,
            generated,
            assign="repeats",
            min_cluster_size=2,
            near_duplicates=near_duplicates(1e-6),
        )


def test_the_picture_shows_the_most_and_least_cohesive_clusters_by_distance_to_the_centroid(
    tmp_path, generated, images
):
    folder, _ = run(tmp_path, generated, num_clusters=12, min_cohesion=-1.0)
    members, cohesions, _, _ = algorithm_1(images, np.load(folder / "centroids.npy"), -1.0)
    with Image.open(folder / "clusters.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (8 * 66, 12 * 66)
    by_cohesion = sorted(range(12), key=lambda k: -cohesions[k])
    z, centroids = correlations(images), np.load(folder / "centroids.npy")
    for row, k in enumerate(by_cohesion[:4] + by_cohesion[-4:]):
        inside = [i for i, m in enumerate(members) if m == k]
        inside.sort(key=lambda i: np.linalg.norm(z[i] - centroids[k]))
        for column in range(12):
            top, left = row * 66, column * 66
            cell = pixels[top : top + 64 : 8, left : left + 64 : 8]
            blank = np.full((8, 8), 255)
            expected = images[inside[column], :, :, 0] if column < len(inside) else blank
            np.testing.assert_array_equal(cell, expected)


def test_the_picture_has_a_row_a_cluster_where_there_are_few(tmp_path, generated):
    folder, summary = run(tmp_path, generated)
    with Image.open(folder / "clusters.png") as picture:
        assert picture.size == (12 * 66, summary["num_labels"] * 66)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path, generated):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path, generated, name, num_clusters=20, seed=seed)
    files = ("labels.npy", "centroids.npy", "clusters.csv", "clusters.png")
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not np.array_equal(load(tmp_path / "a"), load(tmp_path / "c"))


def test_more_clusters_than_synthetic_images_are_refused_at_the_start():
    rule = r"label.num_clusters must be <= generate.num_images = 100, got 101; lower it, or"
    with pytest.raises(ValueError, match=rule):
        label(num_clusters=101).check_needed({"generate": SYNTHETIC})
    label(num_clusters=100).check_needed({"generate": SYNTHETIC})


def test_more_clusters_than_synthetic_images_are_no_error_of_rows_without_labels():
    few = ("attacks=single", "generate.num_images=40")
    assert planned(*few, "extract.surrogate=none").nodes
    rule = "label.num_clusters must be <= generate.num_images = 40"
    with pytest.raises(ValueError, match=rule):
        planned(*few, "extract.surrogate=classifier")
    with pytest.raises(ValueError, match=r"generate.num_inference_steps must be <="):
        planned(*few, "extract.surrogate=none", "generate.num_inference_steps=5000")


def test_more_clusters_than_synthetic_images_are_a_warning_of_earlier_stages(caplog):
    assert planned("generate.num_images=40", "label.num_clusters=50", "stage=dpm").nodes
    assert "dpm does not need this, but later stages do: label.num_clusters" in caplog.text


def test_features_that_are_no_unit_vectors_are_refused_at_the_start():
    stage = label(features={"_target_": "sidepipe.features.encoders.PixelsL2"})
    with pytest.raises(ValueError, match=r"label.features must be .* cosine, got 'pixels-rms-v1'"):
        checked(stage, {"generate": SYNTHETIC}, RUNTIME)


def test_a_descriptor_that_learned_from_unseen_images_is_not_for_an_attacker():
    copydet = {"_target_": "sidepipe.features.copydet.CopyDet", "path": None}
    with pytest.raises(ValueError, match=r"label.features.path must be .* folder, got None; train"):
        checked(label(features=copydet), {"generate": SYNTHETIC}, RUNTIME)


def test_missing_weights_of_the_features_are_noticed_at_the_start(tmp_path):
    sscd = {
        "_target_": "sidepipe.features.encoders.SSCD",
        "path": str(tmp_path / "no"),
        "sha256": "0",
    }
    with pytest.raises(FileNotFoundError, match="must be a file"):
        checked(label(features=sscd), {"generate": SYNTHETIC}, RUNTIME)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_clusters", 1),
        ("num_iterations", 0),
        ("min_cohesion", 1.01),
        ("min_cohesion", -1.01),
        ("min_cluster_size", 0),
        ("seed", -1),
        ("seed", 2**31),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"label.{name} must be .*got {value}"):
        label(**{name: value})
