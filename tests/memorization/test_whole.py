import numpy as np
import pytest
from scipy.stats import ttest_1samp

from sidepipe.memorization.comparison import compare
from sidepipe.memorization.real import Encoded, real_images
from sidepipe.memorization.whole import distance_gap, quality


def comparison(num_images=150, num_train=120, num_unseen=260, d=6, copied=0):
    rng = np.random.default_rng(0)
    train, unseen, images = (rng.normal(size=(n, d)) for n in (num_train, num_unseen, num_images))
    images[:copied] = train[:copied] + rng.normal(0, 0.1, (copied, d))
    train, unseen, images = (x.astype(np.float32) for x in (train, unseen, images))
    sets = Encoded(np.arange(num_train), train), Encoded(np.arange(num_unseen), unseen)
    return compare(images, images[:2], real_images(*sets, "l2"), "l2")


def nearest(images, among):
    return np.linalg.norm(images[:, None].astype(float) - among, axis=2).min(1)


def test_the_distance_gap_is_over_the_mean_of_all_held_out_sets():
    c = comparison(copied=30)
    unseen = [control.features for control in c.controls]
    assert [len(some) for some in unseen] == [120, 120]
    gap = nearest(c.queries, c.train.features)
    gap = gap - np.mean([nearest(c.queries, some) for some in unseen], axis=0)
    found = distance_gap(c)
    assert found["mean"] == pytest.approx(gap.mean(), abs=1e-5)
    # Student's interval, of 150 images that are independent.
    low, high = ttest_1samp(gap, 0).confidence_interval(0.95)
    assert found["interval"] == pytest.approx([low, high], abs=0.01 * (high - low))
    assert found["interval"][1] < 0


@pytest.mark.parametrize("sizes", [(150, 120, 260), (100, 100, 100)])
def test_enough_images_have_fid_and_kid(sizes):
    found = quality(comparison(*sizes))
    assert found["left_out"] == []
    assert all(len(found[name]) == 2 for name in ("fid", "kid", "mifid"))


@pytest.mark.parametrize(
    ("sizes", "d", "missing", "reason"),
    [
        ((60, 120, 260), 6, {"kid"}, "KID: 60 images, fewer than 100"),
        ((150, 120, 99), 6, {"kid"}, "KID: 99 images, fewer than 100"),
        (
            (150, 120, 260),
            120,
            {"fid", "mifid"},
            "FID and MiFID: 120 images, not more than the 120",
        ),
        ((3, 120, 260), 6, {"fid", "kid", "mifid"}, "KID: 3 images, fewer than 100"),
    ],
)
def test_too_few_images_have_no_fid_or_kid_and_the_reason_says_how_many(sizes, d, missing, reason):
    """KID of three images was -175 with a deviation of 922."""
    found = quality(comparison(*sizes, d=d))
    assert {name for name in ("fid", "kid", "mifid") if found[name] is None} == missing
    assert any(said.startswith(reason) for said in found["left_out"])
