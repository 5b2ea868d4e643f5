"""Real images are encoded once, in order, as evaluate's encoder does; a killed run goes on."""

import json
import os

import numpy as np
import pytest
from safetensors.torch import save_file
from tests.composing import composed

from sidepipe.engine.plan import plan
from sidepipe.engine.stage import Job, Runtime
from sidepipe.features.copydet import CopyNet
from sidepipe.features.encoders import Pixels, PixelsL2
from sidepipe.memorization import real
from sidepipe.stages.reference import encoding
from sidepipe.stages.reference.stage import NO_HELDOUT, Reference, load, load_limits

RUNTIME = Runtime(accelerator="cpu")
L2 = {"_target_": "sidepipe.features.encoders.PixelsL2"}
COSINE = {"_target_": "sidepipe.features.encoders.Pixels"}
COPYDET = {"_target_": "sidepipe.features.copydet.CopyDet", "path": None}


def reference(features=L2, rates=(0.05,)):
    return Reference(features=features, false_positive_rates=list(rates))


class Inputs:
    """Artifacts of random images, and of a model trained on some of them."""

    def __init__(self, folder, num_train=30, num_unseen=50):
        self.folder, rng = folder, np.random.default_rng(0)
        self.images = rng.integers(0, 256, (num_train + num_unseen, 4, 4, 1)).astype(np.uint8)
        order = rng.permutation(len(self.images))
        self.train, self.unseen = order[:num_train], order[num_train:]
        for name in ("data", "dpm", "descriptor"):
            (folder / name).mkdir()
        self.write()

    def write(self):
        np.save(self.folder / "data" / "images.npy", self.images)
        rows = "".join(f"{i},image {i},train,\n" for i in range(len(self.images)))
        (self.folder / "data" / "ids.csv").write_text(f"index,id,partition,identity\n{rows}")
        np.save(self.folder / "dpm" / "subset.npy", self.train)
        np.save(self.folder / "dpm" / "heldout.npy", self.unseen)

    def run(self, stage=None, name="reference"):
        stage, folder = reference() if stage is None else stage, self.folder / name
        folder.mkdir(exist_ok=True)
        inputs = {read: self.folder / read for read in stage.inputs()}
        return folder, stage.run(Job(folder, inputs, RUNTIME))


@pytest.fixture
def inputs(tmp_path):
    return Inputs(tmp_path)


@pytest.mark.parametrize(("features", "encoder"), [(L2, PixelsL2()), (COSINE, Pixels())])
def test_every_image_is_encoded_in_the_order_of_the_split(inputs, features, encoder):
    folder, summary = inputs.run(reference(features))
    found = load(folder)
    for images, rows in ((found.train, inputs.train), (found.unseen, inputs.unseen)):
        np.testing.assert_array_equal(images.rows, rows)
        np.testing.assert_array_equal(images.features, encoder.encode(inputs.images[rows]))
    assert summary == {
        "num_train": 30,
        "num_unseen": 50,
        "transform": encoder.transform,
        "dimensions": 16,
        "near_duplicates": load_limits(folder, 0.0, "l2")["near_duplicates"],
    }
    assert load_limits(folder, 0.0, "l2")["near_duplicates"]["count"] == 0


def test_what_no_attack_changes_comes_back_as_it_was_measured(inputs):
    found = load(inputs.run()[0])
    anew = real.real_images(found.train, found.unseen, "l2")
    np.testing.assert_array_equal(found.real_gamma, anew.real_gamma)
    assert found.other_gamma.keys() == anew.other_gamma.keys() == {"train", "heldout"}
    for name, gamma in anew.other_gamma.items():
        np.testing.assert_array_equal(found.other_gamma[name], gamma)


def test_of_fewer_unseen_images_the_equal_training_images_are_there_too(tmp_path):
    found = load(Inputs(tmp_path, 30, 25).run()[0])
    assert {name: len(gamma) for name, gamma in found.other_gamma.items()} == {
        "train": 30,
        "heldout": 25,
        "train_equal": 25,
    }


def test_features_stay_on_the_disk_until_they_are_looked_at(inputs):
    found = load(inputs.run()[0])
    for images in (found.train, found.unseen):
        assert isinstance(images.features, np.memmap)
        assert not images.features.flags.writeable


@pytest.mark.parametrize(
    ("blocks", "missing"), [(0, [7, 7, 7, 7, 2]), (1, [7, 7, 7, 2]), (4, [7, 2])]
)
def test_a_killed_run_goes_on_behind_the_blocks_that_it_has_encoded(
    inputs, monkeypatch, blocks, missing
):
    for module in (real, encoding):
        monkeypatch.setattr(module, "ENCODE_IMAGES", 7)
    whole, _ = inputs.run(name="whole")
    encoded, encode = [], PixelsL2.encode

    def killed(self, images, **options):
        # The first call is of one image, which says how many dimensions there are.
        if len(encoded) == 1 + blocks:
            raise KeyboardInterrupt
        return counted(self, images, **options)

    def counted(self, images, **options):
        encoded.append(len(images))
        return encode(self, images, **options)

    monkeypatch.setattr(PixelsL2, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        inputs.run(name="killed")
    if blocks == 4:  # killed while it wrote the fourth
        np.load(inputs.folder / "killed" / "train.npy", mmap_mode="r+")[24:] = np.nan
    encoded.clear()
    monkeypatch.setattr(PixelsL2, "encode", counted)
    folder, _ = inputs.run(name="killed")
    for path in whole.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert encoded == [*missing, 1, *[7] * 7, 1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, path.stat().st_size - 4),
        lambda path: os.truncate(path, 0),
        lambda path: np.save(path, np.load(path)[:7]),
    ],
    ids=["cut short", "empty", "fewer rows"],
)
def test_features_that_are_not_whole_are_made_again_with_a_warning(inputs, caplog, damage):
    whole, _ = inputs.run(name="whole")
    inputs.run(name="damaged")
    damage(inputs.folder / "damaged" / "train.npy")
    folder, _ = inputs.run(name="damaged")
    for path in whole.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert f"{folder / 'train.npy'}" in caplog.text
    assert "made again" in caplog.text


def test_without_room_on_the_disk_nothing_is_encoded(inputs, monkeypatch):
    def full(folder, num_bytes, what):
        raise OSError(f"{num_bytes} bytes")

    monkeypatch.setattr(encoding, "check_disk", full)
    with pytest.raises(OSError, match=f"{30 * 16 * 4} bytes"):
        inputs.run()


def test_images_that_the_descriptor_learned_from_are_no_control(inputs):
    folder = inputs.folder / "descriptor"
    np.save(folder / "rows.npy", inputs.unseen[:20])  # the best held-out ones
    description = {"size": 4, "widths": [8], "dimensions": 5}
    (folder / "network.json").write_text(json.dumps(description))
    save_file(CopyNet(**description).state_dict(), folder / "model.safetensors")
    stage = reference(COPYDET)
    assert stage.inputs() == ("data", "dpm", "descriptor")
    artifact, summary = inputs.run(stage)
    np.testing.assert_array_equal(load(artifact).unseen.rows, inputs.unseen[20:])
    assert summary["transform"] == "copydet-v1-4px"


def test_a_descriptor_of_a_folder_is_no_input():
    assert reference({**COPYDET, "path": "somewhere"}).inputs() == ("data", "dpm")


def test_too_few_unseen_images_are_refused_before_anything_is_encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(PixelsL2, "encode", None)
    with pytest.raises(ValueError, match=r"nothing was trained on must be >= 20, .* got 19; bring"):
        Inputs(tmp_path, num_unseen=19).run(reference(rates=(0.1, 0.001)))


def test_a_rate_that_the_unseen_images_do_not_allow_is_no_error(inputs):
    inputs.run(reference(rates=(0.001,)))


@pytest.mark.parametrize("features", [L2, COSINE])
def test_exact_copies_that_set_the_threshold_are_an_error_that_names_them(inputs, features):
    inputs.images[inputs.unseen[4:7]] = inputs.images[inputs.train[:3]]
    inputs.write()
    message = (
        r"at a false positive rate of 2 %: 3 of 50 unseen images are exact copies .*the closest "
        rf"pair is image {inputs.unseen[4]} and image {inputs.train[0]}"
    )
    with pytest.raises(ValueError, match=message):
        inputs.run(reference(features, rates=(0.5, 0.001)))
    inputs.run(reference(features, rates=(0.5,)), name="other")


@pytest.mark.parametrize("features", [L2, COSINE])
def test_near_copies_are_counted_and_said_where_they_set_the_threshold(inputs, features, caplog):
    noise = np.random.default_rng(1).integers(0, 8, (3, 4, 4, 1)).astype(np.uint8)
    inputs.images[inputs.unseen[:3]] = inputs.images[inputs.train[:3]] ^ noise
    inputs.write()
    with caplog.at_level("WARNING"):
        folder, _ = inputs.run(reference(features, rates=(0.001,)))
    assert load_limits(folder, 0.0, "l2")["near_duplicates"]["count"] == 3
    assert "3 of 50 unseen images are near duplicates of training images" in caplog.text
    caplog.clear()
    inputs.run(reference(features, rates=(0.1,)), name="lax")
    assert "near duplicates" not in caplog.text


def test_without_held_out_images_it_refuses_with_the_remedy(tmp_path):
    assert "remedy: lower dpm.num_train_images" in NO_HELDOUT
    with pytest.raises(ValueError, match="evaluate needs held-out images, and the model is"):
        Inputs(tmp_path, num_unseen=0).run()


# In the graph


COSINE_BANDS = "{low: [0.7, 0.8], mid: [0.8, 0.9], high: [0.9, null]}"


def references(*overrides):
    """Keys of the stage's artifacts by title."""
    the_plan = plan(composed("attacks=compare", *overrides))
    nodes = [node for node in the_plan.nodes.values() if node.stage.name == "reference"]
    return {the_plan.title(node): node.key for node in nodes}


def test_all_attacks_share_one_and_rates_make_no_other():
    before = references()
    assert list(before) == ["reference"]
    assert references("evaluate.false_positive_rates=[0.02]") == before
    other = references("features@evaluate.features=pixels", f"evaluate.bands={COSINE_BANDS}")
    assert list(other) == ["reference"]
    assert other != before


def test_an_attack_that_is_judged_by_other_features_has_real_images_of_its_own():
    evaluate = f"{{features: {{_target_: {COSINE['_target_']}}}, bands: {COSINE_BANDS}}}"
    found = references(f"+attacks.other={{evaluate: {evaluate}}}")
    assert set(found) == {"reference [unconditional, side]", "reference [other]"}


def test_real_images_come_before_the_attack_so_that_too_few_of_them_do():
    the_plan = plan(composed("attacks=compare"))
    stages = [node.stage.name for node in the_plan.needed("evaluate").values()]
    assert stages.index("reference") < stages.index("extract")


def test_without_truth_no_real_image_is_encoded():
    assert references("evaluate.truth=none") == {}
