import numpy as np
import pytest
from tests.tiny import DIGITS, RUNTIME

from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.original.stage import Original, load, load_rows

CELEBA = """4
5_o_Clock_Shadow Male  Smiling
000000.png -1  1 -1
000001.png  1 -1  1
000002.png -1  1  1
000003.png  1 -1 -1
"""


def original(**changes) -> Original:
    settings = {"fraction": 0.25, "attributes": None, "attribute_file": "celeba/attributes.txt"}
    return Original(**{**settings, **changes})


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Artifacts of the digits, and of a model that saw 1,000 of them."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("data", "dpm"):
        (folder / name).mkdir()
    DIGITS.run(Job(folder / "data", {}, RUNTIME))
    order = np.random.default_rng(0).permutation(1797)
    np.save(folder / "dpm" / "subset.npy", order[:1000])
    np.save(folder / "dpm" / "heldout.npy", order[1000:])
    return {name: folder / name for name in ("data", "dpm")}


def test_it_takes_the_worst_unseen_images_with_their_classes(tmp_path, digits):
    summary = original().run(Job(tmp_path, digits, RUNTIME))
    images, classes = load(tmp_path)
    unseen = np.load(digits["dpm"] / "heldout.npy")
    np.testing.assert_array_equal(load_rows(tmp_path), unseen[-199:])
    np.testing.assert_array_equal(images, load_images(digits["data"])[unseen[-199:]])
    assert images.dtype == np.uint8
    from sklearn.datasets import load_digits

    assert classes.tolist() == load_digits().target[unseen[-199:]].tolist()
    assert summary == {
        "num_images": 199,
        "num_classes": 10,
        "classes": [str(digit) for digit in range(10)],
    }


def test_it_never_sees_which_images_were_trained_on(tmp_path, digits):
    subset = np.load(digits["dpm"] / "subset.npy")
    (digits["dpm"] / "subset.npy").unlink()
    try:
        original(fraction=0.999).run(Job(tmp_path, digits, RUNTIME))
    finally:
        np.save(digits["dpm"] / "subset.npy", subset)
    assert not np.isin(load_rows(tmp_path), subset).any()


@pytest.fixture
def faces(tmp_path):
    """Four faces of no identity, all unseen but the first, with CelebA's list of attributes."""
    for name in ("data", "dpm", "celeba"):
        (tmp_path / name).mkdir()
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] + np.zeros((4, 4, 4, 1), np.uint8)
    np.save(tmp_path / "data" / "images.npy", images)
    lines = ["index,id,partition,identity", *(f"{i},00000{i}.png,train," for i in range(4))]
    (tmp_path / "data" / "ids.csv").write_text("\n".join(lines) + "\n")
    np.save(tmp_path / "dpm" / "heldout.npy", np.array([0, 3, 1, 2]))
    (tmp_path / "celeba" / "attributes.txt").write_text(CELEBA)
    return {name: tmp_path / name for name in ("data", "dpm")}, Runtime(data_root=str(tmp_path))


def test_combinations_of_attributes_are_classes(tmp_path, faces):
    inputs, runtime = faces
    for wanted, classes, names in (
        (["Smiling"], [0, 1, 1], ["", "Smiling"]),
        (["Male", "Smiling"], [0, 2, 1], ["", "Male Smiling", "Smiling"]),
    ):
        folder = tmp_path / str(len(wanted))
        folder.mkdir()
        summary = original(fraction=0.8, attributes=wanted).run(Job(folder, inputs, runtime))
        assert summary["classes"] == names
        assert load(folder)[1].tolist() == classes
        assert load_rows(folder).tolist() == [3, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"at least two classes, got \[''\]; choose original.attributes"),
        ({"attributes": ["Smile"]}, r"original.attributes does not accept 'Smile'.*'Smiling'"),
        ({"attributes": ["Male"], "attribute_file": "no.txt"}, r"no.txt, which is not there; rem"),
    ],
)
def test_classes_that_are_not_there_are_an_error_with_its_remedy(tmp_path, faces, changes, message):
    inputs, runtime = faces
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        original(fraction=0.8, **changes).run(Job(tmp_path, inputs, runtime))


def test_an_image_that_the_list_does_not_name_is_an_error(tmp_path, faces):
    inputs, runtime = faces
    file = tmp_path / "celeba" / "attributes.txt"
    file.write_text(file.read_text().replace("000001.png", "000009.png"))
    with pytest.raises(ValueError, match=r"must list every image, and does not list 000001.png"):
        original(fraction=0.8, attributes=["Male"]).run(Job(tmp_path, inputs, runtime))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0.0}, r"original.fraction must be in \(0, 1\), got 0.0"),
        ({"fraction": 1.0}, r"original.fraction must be in \(0, 1\), got 1.0"),
        ({"attributes": []}, r"original.attributes must be one name at least, or null, got \[\]"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        original(**changes)


def test_the_file_of_attributes_is_part_of_the_key_where_it_is_read():
    settings = {"fraction": 0.3, "attributes": None, "attribute_file": "x.txt"}
    assert "attribute_file" not in original().key_settings(settings)
    assert "attribute_file" in original(attributes=["Male"]).key_settings(settings)


def test_without_room_on_the_disk_nothing_is_written(tmp_path, digits, monkeypatch):
    def full(folder, num_bytes):
        raise OSError(f"{num_bytes} bytes")

    monkeypatch.setattr("sidepipe.stages.original.stage.check_disk", full)
    with pytest.raises(OSError, match=f"{199 * 8 * 8} bytes"):
        original().run(Job(tmp_path, digits, RUNTIME))
    assert list(tmp_path.iterdir()) == []
