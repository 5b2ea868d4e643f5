import itertools

import numpy as np
import pytest

from sidepipe.evaluate import rarefaction as r

# Spiders of the canopy-girdled plots of Ellison et al. (2010): 26 species, 168 individuals; what
# iNEXT prints of them is the oracle.
SPIDERS = np.array([46, 22, 17, 15, 15, 9, 8, 6, 6, 4] + [2] * 4 + [1] * 12)


def test_chao1_and_coverage_are_what_inext_prints():
    estimate, low, high = r.chao1(SPIDERS, 168)
    assert (round(estimate, 3), round(low, 3), round(high, 2)) == (43.893, 30.511, 96.97)
    assert r.coverage(SPIDERS, 168) == pytest.approx(0.9289, abs=1e-4)


def test_up_to_the_images_made_the_curve_is_the_mean_over_all_subsets():
    images = [0, 0, 0, 1, 1, 2, -1, -1, -1]  # the training image that each hit, -1 for none
    counts = np.array([3, 2, 1])
    sizes = range(1, len(images) + 1)
    expected = [
        np.mean([len(set(some) - {-1}) for some in itertools.combinations(images, size)])
        for size in sizes
    ]
    np.testing.assert_allclose(r.expected_unique(counts, len(images), sizes), expected, rtol=1e-9)


def test_the_curve_goes_on_from_what_was_found_and_ends_at_the_bound():
    found = r.expected_unique(SPIDERS, 168, [168, 169, 10**6])
    assert found[0] == pytest.approx(26)
    # One more image: the probability that it is a first hit, as coverage says.
    assert found[1] - found[0] == pytest.approx(1 - r.coverage(SPIDERS, 168))
    assert found[2] == pytest.approx(r.chao1(SPIDERS, 168)[0])


def test_fitted_probabilities_keep_the_rate_of_hits_and_leave_room_for_the_unseen():
    k = r.hit_probabilities(SPIDERS, 400)
    assert k.sum() == pytest.approx(168 / 400)
    assert len(k) - len(SPIDERS) == np.ceil(r.unseen(SPIDERS, 400))
    assert (k[: len(SPIDERS)] <= SPIDERS / 400).all()
    assert k[0] == pytest.approx(46 / 400, rel=1e-6)  # of what is hit often nothing is taken
    unseen = (1 - r.coverage(SPIDERS, 400)) * 168 / 400
    assert k[len(SPIDERS) :].sum() == pytest.approx(unseen)
    assert (k > 0).all()


def drawn(rng, k, num_images):
    """The training image that each of num_images images hit, -1 for none."""
    shares = np.append(k, 1 - k.sum())
    images = rng.choice(len(shares), num_images, p=shares)
    return np.where(images == len(k), -1, images)


def hits(images):
    return images[images >= 0]


def test_the_growth_to_four_times_the_images_is_predicted_with_an_interval_that_holds():
    rng = np.random.default_rng(0)
    k = 0.2 * rng.dirichlet(np.full(60, 0.5))
    covers, errors = 0, []
    for _ in range(60):
        images = drawn(rng, k, 2000)
        observed = len(np.unique(hits(images)))
        counts = np.unique(hits(images[:500]), return_counts=True)[1]
        [predicted] = r.expected_unique(counts, 500, [2000])
        [low], [high] = r.interval(counts, 500, [2000])
        covers += low <= observed <= high
        errors.append(predicted / observed - 1)
    assert covers >= 54
    assert abs(np.mean(errors)) < 0.1


def test_chao1_is_a_lower_bound_of_what_can_be_hit():
    rng = np.random.default_rng(1)
    k = 0.2 * rng.dirichlet(np.full(60, 0.3))
    estimates = []
    for _ in range(200):
        counts = np.unique(hits(drawn(rng, k, 400)), return_counts=True)[1]
        estimates.append(r.chao1(counts, 400)[0])
        assert len(counts) <= estimates[-1]
    assert np.mean(estimates) <= 60


def test_coverage_estimates_the_share_of_hits_to_come_that_are_known():
    rng = np.random.default_rng(2)
    k = 0.3 * rng.dirichlet(np.full(80, 0.5))
    differences = []
    for _ in range(50):
        seen, counts = np.unique(hits(drawn(rng, k, 300)), return_counts=True)
        differences.append(r.coverage(counts, 300) - k[seen].sum() / k.sum())
    assert abs(np.mean(differences)) < 0.02


@pytest.mark.parametrize(
    ("counts", "estimate", "covered"),
    [([], 0, 0.0), ([5, 5, 5], 3, 1.0), ([1], 1, 0.0), ([5, 1], 2, 5 / 6), ([1, 1], 3, 0.0)],
)
def test_where_there_is_nothing_to_estimate_from_it_says_what_was_seen(counts, estimate, covered):
    counts = np.array(counts, np.int64)
    low, high = r.interval(counts, 100, [50, 100, 400])
    assert (low <= high).all()
    assert np.isfinite([*low, *high]).all()
    assert r.coverage(counts, 100) == pytest.approx(covered, abs=0.02)
    bound = r.chao1(counts, 100)
    assert bound[0] == pytest.approx(estimate, abs=1)
    assert bound[1] <= bound[0] <= bound[2]


def test_the_result_is_plain_and_its_curve_rises():
    images = drawn(np.random.default_rng(3), np.full(40, 0.004), 1000)
    result = r.rarefaction(hits(images), 1000, hits(images[:250]))
    quarter = np.unique(hits(images[:250]), return_counts=True)[1]
    check = result["check"]
    assert check["num_images"] == 250
    assert check["predicted"] == r.expected_unique(quarter, 250, [1000])[0]
    assert check["observed"] == len(np.unique(hits(images)))
    assert check["relative_error"] == check["predicted"] / check["observed"] - 1
    assert result["num_images"][-1] == 4000
    assert 1000 in result["num_images"]
    at = result["num_images"].index(1000)
    assert result["unique"][at] == pytest.approx(result["observed"]["unique"])
    assert result["unique"] == sorted(result["unique"])
    for low, middle, high in zip(*(result[n] for n in ("low", "unique", "high")), strict=True):
        assert low <= middle <= high
