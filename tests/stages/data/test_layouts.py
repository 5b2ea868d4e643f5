import re
from pathlib import Path

import numpy as np
import pytest

from sidepipe.stages.data.layouts import SYNONYMS, partition_of, partitioned
from sidepipe.stages.data.sources import ImageFolder
from sidepipe.stages.data.subset import split

DOC = Path(__file__).parents[3] / "docs/reading-images.md"


def names(*folders: str, count: int = 2) -> list[str]:
    """Paths of `count` images in each folder, "" for the top."""
    return [f"{folder}/{i}.png".lstrip("/") for folder in folders for i in range(count)]


def found(*folders: str) -> dict[str, tuple[str, str]]:
    """(partition, identity) of the images of each folder."""
    paths = names(*folders)
    places, _ = partitioned(paths, "/set")
    return {path.rpartition("/")[0]: place for path, place in zip(paths, places, strict=True)}


@pytest.mark.parametrize(
    ("name", "partition"),
    [
        *[(name, kind) for kind, words in SYNONYMS.items() for name in words],
        *[("Train", "train"), ("TRAINING", "train"), ("train2017", "train")],
        *[("train_images", "train"), ("training-set", "train"), ("trainset", "train")],
        *[("val2017", "val"), ("Valid", "val"), ("val_256", "val"), ("dev-set", "val")],
        *[("test2015", "test"), ("testset", "test"), ("Test-Set", "test"), ("held_out", "test")],
        *[("held-out", "test"), ("Held Out", "test"), ("heldout images", "test")],
        *[("tests", "test"), ("held-outs", "test"), ("Holdouts", "test"), ("vals", "val")],
        *[("evals", "test"), ("validations", "val"), ("trainings", "train")],
        *[("holdout", "test"), ("hold_out", "test"), ("unseen", "test"), ("eval", "test")],
        *[(name, None) for name in ("cats", "trains", "tester", "contest", "valerie", "n01440764")],
        *[(name, None) for name in ("", "2017", "images", "devon", "evaluate me", "12")],
    ],
)
def test_a_word_for_a_split_is_recognized_in_any_usual_spelling(name, partition):
    assert partition_of(name) == partition


def test_without_a_split_s_name_folders_are_identities_of_the_training_set():
    assert found("", "cats", "cats/old") == {
        "": ("train", ""),
        "cats": ("train", "cats"),
        "cats/old": ("train", "cats/old"),
    }


@pytest.mark.parametrize(
    ("top", "partition"),
    [
        *[("valid", "val"), ("validation", "val"), ("dev", "val"), ("val2017", "val")],
        *[("eval", "test"), ("testing", "test"), ("held_out", "test"), ("held-out", "test")],
        *[("holdout", "test"), ("unseen", "test"), ("testset", "test"), ("Test", "test")],
    ],
)
def test_the_folders_that_joined_the_training_set_in_silence_are_partitions(top, partition):
    assert found("train", top) == {"train": ("train", ""), top: (partition, "")}
    assert found("training/ann", f"{top}/ben") == {
        "training/ann": ("train", "ann"),
        f"{top}/ben": (partition, "ben"),
    }


def test_splits_one_folder_too_deep_are_found_and_the_folder_above_is_no_identity():
    assert found("dataset/train/ann", "dataset/test/ben", "dataset/test") == {
        "dataset/train/ann": ("train", "ann"),
        "dataset/test/ben": ("test", "ben"),
        "dataset/test": ("test", ""),
    }
    assert found("a/b/train", "a/b/val") == {"a/b/train": ("train", ""), "a/b/val": ("val", "")}


def test_splits_within_each_class_are_found_and_the_class_is_the_identity():
    assert found("cats/train", "cats/test/old", "dogs/train") == {
        "cats/train": ("train", "cats"),
        "cats/test/old": ("test", "cats/old"),
        "dogs/train": ("train", "dogs"),
    }


def test_a_split_s_folder_within_itself_is_no_identity():
    assert found("train/train", "test/test/ann", "test/seen", "test/unseen") == {
        "train/train": ("train", ""),
        "test/test/ann": ("test", "ann"),
        "test/seen": ("test", "seen"),
        "test/unseen": ("test", "unseen"),
    }


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "test", "extra"], r"test/ \(2\), train/ \(2\) next to extra/ \(2\)"),
        (["train", "test", ""], r"test/ \(2\), train/ \(2\) next to no sub-folder \(2\)"),
        (["test", "cats", "dogs"], r"test/ \(2\) next to cats/ \(2\), dogs/ \(2\)"),
        (["cats/train", "cats/test", "dogs"], r"cats/train/ \(2\) next to dogs/ \(2\)"),
        (["train", "cats/test"], r"images in cats/test/ \(2\), train/ \(2\); remedy"),
        (["train/cats", "train/test"], r"train/test/ lie in folders of two partitions"),
        (["train/a/val", "train/a/train"], "two partitions, train and val"),
        (["cats/train", "cats/train/old/dev"], "two partitions, train and dev"),
        (["bedroom_train", "bedroom_val"], "bedroom_train/, bedroom_val/ may name splits"),
        (["images", "my_test"], "my_test/ may name splits, and all images would join"),
        (["TrainFaces", "TestFaces"], "TestFaces/, TrainFaces/ may name splits"),
        (["people", "people_held_out"], "people_held_out/ may name splits"),
    ],
)
def test_a_layout_that_leaves_the_training_set_open_is_refused(folders, message):
    with pytest.raises(ValueError, match=message) as error:
        partitioned(names(*folders), "/set")
    assert str(error.value).startswith("/set")
    assert "remedy: put what the model trains on below train/" in str(error.value)


TELLING = [
    *(["faces_train", "faces_val"], ["faces-train", "faces-test"], ["faces.train", "faces.dev"]),
    *(["Faces Train", "Faces Eval"], ["facesTrain", "facesTest"], ["faces1train", "faces2unseen"]),
    *(["images-train", "images-val"], ["train_a", "test_a"], ["trainA", "trainB", "testA"]),
    *(["train_cats", "test_dogs"], ["cats_train", "dogs_valid"], ["x_training", "y_evaluation"]),
    *(["faces_trainset", "faces_testset"], ["voc_trainval", "voc_test"], ["faces_member", "faces"]),
    *(
        ["faces_member", "faces_non-member"],
        ["faces", "faces_held-out"],
        ["faces", "hold out faces"],
    ),
    *(["faces", "faces_eval"], ["faces", "faces_valid"], ["faces_2", "valid_faces_1"]),
    *(["cat", "cat_test", "dog", "dog_test"], ["cat", "cat_development", "dog", "cow", "hen"]),
]


@pytest.mark.parametrize("above", ["", "data/", "a/b/", "cat/"])
@pytest.mark.parametrize("folders", TELLING, ids=" ".join)
def test_folders_that_tell_splits_apart_are_refused_at_every_depth(folders, above):
    with pytest.raises(ValueError, match="may name splits, and all images would join") as error:
        partitioned(names(*[f"{above}{folder}" for folder in folders]), "/set")
    like = [folder for folder in folders if folder not in {"faces", "faces_2", "cat", "dog"}]
    assert f"{above}{like[0]}/" in str(error.value)


@pytest.mark.parametrize(
    "folders",
    [
        *(["faces", "images_dev"], ["bedrooms", "kitchens", "my_test"], ["images", "faces_eval"]),
        *(["", "faces_eval"], ["cat", "cat/cat_test"], ["a/faces_train", "b/faces_test"]),
        *(["cat/cat_train", "dog/dog_test"], ["2019/faces_train/ann", "2020/faces_test/ben"]),
        ["cat/all", "cat/all_test", *[f"{i}/all" for i in range(20)]],
    ],
    ids=" ".join,
)
def test_folders_with_a_split_s_word_beside_nameless_ones_or_elsewhere_are_refused(folders):
    with pytest.raises(ValueError, match="may name splits, and all images would join"):
        partitioned(names(*folders), "/set")


@pytest.mark.parametrize(
    "folders",
    [
        *(["train_station", "airport"], ["testament", "gospel"], ["valley", "hill", "trainers"]),
        *(
            ["Val_Kilmer", "Dev_Patel", "Ann_Lee"],
            ["bullet_train"],
            ["my_test"],
            ["train_a", "train_b"],
        ),
        *(
            ["train_station", "test_tube", "airport", "valley"],
            ["contest", "con"],
            ["latest", "la"],
        ),
        *(
            ["places/train_station", "places/port"],
            ["devon", "evaluator"],
            ["household out", "x"],
        ),
        [*(f"person {i}" for i in range(11)), "Val_Ackerman"],
    ],
    ids=" ".join,
)
def test_people_and_classes_with_a_split_s_word_in_the_name_are_identities(folders):
    assert found(*folders) == {folder: ("train", folder) for folder in folders}


@pytest.mark.parametrize("above", ["", "data/", "a/b/"])
@pytest.mark.parametrize(
    "alike",
    [
        *(("train_%d.png", "test_%d.png"), ("img_train_%d.png", "img_test_%d.png")),
        *(("%d-train.png", "%d-val.jpg"), ("img%dTrain.png", "img%dDev.png")),
        *(("train.%d.png", "held.out.%d.png"), ("%d.train", "%d.test"), ("%d.png", "%d_test.png")),
        *(("cat %d.png", "cat %d eval.png"), ("train_cat_%d.png", "test_dog_%d.png")),
        *(("cat_train_%d.png", "dog_valid_%d.png"), ("TRAIN%d.PNG", "UNSEEN%d.PNG")),
    ],
    ids="{0[0]} {0[1]}".format,
)
def test_file_names_that_tell_splits_apart_are_refused(alike, above):
    files = [f"{above}{name % i}" for name in alike for i in range(3)]
    with pytest.raises(ValueError, match=r"names of files .*: 3.*would join.*remedy: put"):
        partitioned(files, "/set")
    apart = [f"{above}{i}/{name % i}" for name in alike for i in range(3)]
    if "%d.png" not in alike and "cat %d.png" not in alike:
        with pytest.raises(ValueError, match="names of files"):
            partitioned(apart, "/set")


def test_the_words_in_file_names_are_counted_and_do_not_matter_within_a_split():
    files = ["train_0.png", "train_1.png", "test_0.png"]
    with pytest.raises(ValueError, match=r"names of files .*\(test: 1, train: 2\).*would join"):
        partitioned(files, "/set")
    inside = [f"train/{file}" for file in files]
    assert {place[0] for place in partitioned(inside, "/set")[0]} == {"train"}


@pytest.mark.parametrize(
    "files",
    [
        *(["train_0.png", "train_1.png", "bus_0.png"], ["test.png", "1.png", "2.png"]),
        *(
            ["steam train.png", "crash test.png", "a cat.png", "a dog.png"],
            ["trainer_1.png", "1.png"],
        ),
        ["train_1.png", "train_2.png"],
    ],
    ids=" ".join,
)
def test_files_that_show_what_a_split_s_word_means_are_training_images(files):
    assert partitioned(files, "/set")[0] == [("train", "")] * len(files)


def test_the_layout_is_said_with_every_folder_that_became_a_partition():
    paths = [*names("train", count=100), *names("valid", count=100), *names("test", count=60)]
    expected = "train: 100 images (train/), val: 100 images (valid/), test: 60 images (test/)"
    assert partitioned(paths, "/set")[1] == expected
    classes = names(*[f"{i}/train" for i in range(5)])
    expected = "train: 10 images (0/train/, 1/train/, 2/train/, 2 more)"
    assert partitioned(classes, "/set")[1] == expected
    expected = "train: 1 images (no folder is named as a split)"
    assert partitioned(["a.png"], "/set")[1] == expected
    expected = "train: 4 images (no folder is named as a split; new/, old/ are identities)"
    assert partitioned(names("old", "new"), "/set")[1] == expected


def test_only_train_is_trained_on_whatever_the_others_are_called(tmp_path, caplog):
    """100 training images, and 160 that 200 of were trained on before."""
    for folder, count in (("train", 100), ("valid", 100), ("test", 60)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            (tmp_path / folder / f"{i}.png").touch()
    with caplog.at_level("INFO", logger="sidepipe"):
        entries = ImageFolder(str(tmp_path)).entries()
    assert caplog.messages == [
        "train: 100 images (train/), val: 100 images (valid/), test: 60 images (test/)"
    ]
    partitions = np.array([entry.partition for entry in entries])
    train, unseen = split(partitions, None, ["train"], 0)
    assert {entries[i].id.split("/")[0] for i in train} == {"train"}
    assert len(train) == 100
    assert {entries[i].id.split("/")[0] for i in unseen} == {"valid", "test"}
    assert len(unseen) == 160


def test_the_documented_names_are_those_that_are_recognized():
    table = DOC.read_text().partition("| partition |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \| (`.*`) \|$", table, re.MULTILINE)
    assert {kind: tuple(re.findall("`(.*?)`", words)) for kind, words in rows} == SYNONYMS
