import numpy as np
import pytest

from sidepipe.stages.data.subset import split

# Twelve images: five to train on, four to validate with, three to test with, in no order.
PARTITIONS = np.array(["train", "val", "test"] * 3 + ["train", "val", "train"])
TRAIN = np.flatnonzero(PARTITIONS == "train")


def splits(num_train_images=None, train_partitions=None, seed=0, partitions=PARTITIONS):
    return split(partitions, num_train_images, train_partitions, seed)


def test_smaller_subsets_are_prefixes_of_larger_ones():
    everyone = np.full(50, "train")
    largest = splits(40, partitions=everyone)[0]
    for count in (1, 7, 39):
        np.testing.assert_array_equal(splits(count, partitions=everyone)[0], largest[:count])


@pytest.mark.parametrize("train_partitions", [None, ["train"], ["val", "train"]])
@pytest.mark.parametrize("num_train_images", [1, 3, 5, None])
def test_every_image_is_trained_on_or_held_out_once(num_train_images, train_partitions):
    train, heldout = splits(num_train_images, train_partitions)
    assert sorted([*train, *heldout]) == list(range(len(PARTITIONS)))
    assert train.dtype == heldout.dtype == np.int64


def test_without_a_number_the_pool_is_the_subset():
    train, heldout = splits(train_partitions=["train"])
    assert set(train) == set(TRAIN)
    assert set(PARTITIONS[heldout]) == {"val", "test"}
    assert len(splits()[0]) == len(PARTITIONS)
    assert len(splits()[1]) == 0


def test_the_subset_comes_from_the_pool_alone():
    for seed in range(20):
        assert set(PARTITIONS[splits(3, ["val", "test"], seed)[0]]) <= {"val", "test"}


def test_held_out_are_first_the_rest_of_the_pool_in_its_order():
    """Images of the training partition are held-out images like the trained ones: the best."""
    pool = splits(None, ["train"])[0]
    train, heldout = splits(2, ["train"])
    np.testing.assert_array_equal(train, pool[:2])
    np.testing.assert_array_equal(heldout[:3], pool[2:])
    assert set(PARTITIONS[heldout[3:]]) == {"val", "test"}


def test_subset_and_held_out_images_are_shuffled_and_depend_on_the_seed():
    everyone = np.array(["train"] * 100 + ["test"] * 100)
    train, heldout = splits(50, ["train"], partitions=everyone)
    # In the order on disk, 49 of 49 neighbors would rise.
    for order in (train, heldout[:50], heldout[50:]):
        assert 10 < (np.diff(order) > 0).sum() < len(order) - 10
    assert set(splits(50, ["train"], seed=1, partitions=everyone)[0]) != set(train)
    np.testing.assert_array_equal(splits(50, ["train"], partitions=everyone)[0], train)


def test_a_partition_without_images_is_refused_with_those_that_have():
    with pytest.raises(ValueError, match=r"names 'training', .* are \['test', 'train', 'val'\]"):
        splits(1, ["train", "training"])


@pytest.mark.parametrize("count", [0, -1, 6])
def test_a_number_the_pool_has_not_is_refused_with_the_pool(count):
    with pytest.raises(ValueError, match=rf"must be in \[1, 5\].* got {count}; remedy: lower it"):
        splits(count, ["train"])


def test_without_images_nothing_is_split():
    train, heldout = split(np.array([], str), None, None, 0)
    assert len(train) == len(heldout) == 0
    assert train.dtype == heldout.dtype == np.int64
