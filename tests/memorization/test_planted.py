"""What the excess is of planted copies, of which the share is known: benchmarks/planted.py."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from sidepipe.memorization.results import calibrated, duplicate_groups
from sidepipe.memorization.thresholds import threshold_at_false_positive_rate

PLANTED = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "planted.py"))
CASES = {case.name: case for case in PLANTED["CASES"]}
REPETITIONS = 20


@pytest.fixture(scope="module")
def summaries():
    return {name: PLANTED["summary"](case, REPETITIONS) for name, case in CASES.items()}


def test_every_excess_is_the_planted_share(summaries):
    for name, found in summaries.items():
        error = found["deviation"] / np.sqrt(REPETITIONS)
        # A copy cannot hit by chance as well, which takes the false positive rate off its share.
        biased = CASES[name].rate * abs(CASES[name].true)
        # With 50 unseen images the bound of the scaled control is a little too large.
        slack = 0.01 if CASES[name].num_unseen == 50 else 0
        assert abs(found["excess"] - CASES[name].true) < 4 * error + biased + slack, name


def test_intervals_cover_the_planted_share(summaries):
    covered = {name: found["covers"] for name, found in summaries.items()}
    assert min(covered.values()) >= 0.75, covered  # of 20; at 95 %, one case in 3,000 has fewer
    assert np.mean(list(covered.values())) >= 0.92, covered


def test_copies_of_few_images_have_an_interval_as_narrow_as_those_of_many(summaries):
    many = summaries["15 % of all"]["width"]
    assert many == pytest.approx(2 * 1.96 * np.sqrt(0.15 * 0.85 / 400), rel=0.05)
    for name in ("15 %, by Zipf's law", "15 % of three images", "15 % at RMS 0.04"):
        assert summaries[name]["width"] == pytest.approx(many, rel=0.05)
    one = summaries["half of 2,000 of one image"]["width"]
    assert one == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 2000), rel=0.05)


def test_fewer_unseen_images_widen_the_interval_and_do_not_move_the_excess(summaries):
    found = [summaries[f"15 % of all, {n} unseen"] for n in (1041, 200, 100, 50)]
    widths = [one["width"] for one in found]
    assert widths == sorted(widths)
    assert widths[-1] < 2.5 * widths[0]
    assert all(one["excess"] > 0.12 for one in found)


def compared(split, images):
    """`calibrated` at 0.1 %, and each image's nearest training image where it is a hit."""
    c = PLANTED["comparison"](split, images)
    threshold = threshold_at_false_positive_rate(c.real_gamma, 0.001, c.metric)
    [at] = calibrated(c, [0.001], duplicate_groups(c.train, c.metric, threshold))
    return at, c.train.index[c.train.gamma <= threshold]


@pytest.mark.parametrize("seed", range(4))
def test_three_copies_of_a_training_image_are_one_different_image(seed):
    rng = np.random.default_rng(seed)
    split = PLANTED["split_digits"](rng, 1041)
    # 90 of the 256 training images are 30 images three times, with noise of about 0.01 RMS.
    split.train[30:60], split.train[60:90] = (
        PLANTED["noisy"](rng, split.train[:30], noise=2.5) for _ in range(2)
    )
    images, source = split.pool[:400].copy(), rng.integers(90, size=60)
    images[:60] = PLANTED["noisy"](rng, split.train[source], noise=2.5)
    at, nearest = compared(split, images)
    assert at["train"]["count"] >= 60
    others = np.unique(nearest[nearest >= 90])  # by chance
    assert at["train"]["unique"] == len(np.unique(source % 30)) + len(others)
    assert len(np.unique(nearest)) > 1.3 * at["train"]["unique"]  # as they lie in the data
