import itertools

import numpy as np
import pytest

from sidepipe.memorization import rarefaction as r

# Spiders of the canopy-girdled plots of Ellison et al. (2010): 26 species, 168 individuals; what
# iNEXT prints of them is the oracle.
SPIDERS = np.array([46, 22, 17, 15, 15, 9, 8, 6, 6, 4] + [2] * 4 + [1] * 12)
MANY = 10**6  # training images, so that their number bounds nothing


def test_chao1_and_coverage_are_what_inext_prints():
    assert 26 + r.unseen(SPIDERS, 168, MANY) == pytest.approx(43.893, abs=1e-3)
    assert r.coverage(SPIDERS, 168, MANY) == pytest.approx(0.9289, abs=1e-4)


def test_the_bound_is_the_one_sided_end_of_estimates_interval():
    a = 167 / 168
    more = a * 12 * 11 / (2 * 5)
    variance = more + a**2 * 12 * 23**2 / (4 * 5**2) + a**2 * 12**2 * 4 * 11**2 / (4 * 5**4)
    end = 26 + more / np.exp(1.645 * np.sqrt(np.log(1 + variance / more**2)))
    assert end == pytest.approx(30.25, abs=0.01)
    assert r.at_least(SPIDERS, 168, MANY) == 30


def test_up_to_the_images_made_the_curve_is_the_mean_over_all_subsets():
    images = [0, 0, 0, 1, 1, 2, -1, -1, -1]  # the training image that each hit, -1 for none
    counts = np.array([3, 2, 1])
    sizes = range(1, len(images) + 1)
    expected = [
        np.mean([len(set(some) - {-1}) for some in itertools.combinations(images, size)])
        for size in sizes
    ]
    np.testing.assert_allclose(
        r.expected_unique(counts, len(images), sizes, MANY), expected, rtol=1e-9
    )


def test_the_curve_goes_on_from_what_was_found_and_ends_at_the_bound():
    found = r.expected_unique(SPIDERS, 168, [168, 169, 10**6], MANY)
    assert found[0] == pytest.approx(26)
    # One more image: the probability that it is a first hit, as coverage says.
    assert found[1] - found[0] == pytest.approx(1 - r.coverage(SPIDERS, 168, MANY))
    assert found[2] == pytest.approx(26 + r.unseen(SPIDERS, 168, MANY))


def test_fitted_probabilities_keep_the_rate_of_hits_and_leave_room_for_the_unseen():
    k = r.hit_probabilities(SPIDERS, 400, MANY)
    assert k.sum() == pytest.approx(168 / 400)
    assert len(k) - len(SPIDERS) == np.ceil(r.unseen(SPIDERS, 400, MANY))
    assert (k[: len(SPIDERS)] <= SPIDERS / 400).all()
    assert k[0] == pytest.approx(46 / 400, rel=1e-6)  # of what is hit often nothing is taken
    unseen = (1 - r.coverage(SPIDERS, 400, MANY)) * 168 / 400
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
        [predicted] = r.expected_unique(counts, 500, [2000], 60)
        [low], [high] = r.interval(counts, 500, [2000], 60)
        covers += low <= observed <= high
        errors.append(predicted / observed - 1)
    assert covers >= 54
    assert abs(np.mean(errors)) < 0.1


def norm(weight, total):
    return total * weight / weight.sum()


RANKS = np.arange(1, 257)
RATES = {
    "equal .05": norm(np.ones(256), 0.05),
    "Zipf .05": norm(1 / RANKS, 0.05),
    "equal .6": norm(np.ones(256), 0.6),
    "log-normal .6": norm(np.random.default_rng(0).lognormal(0, 1, 256), 0.6),
    "equal .2": norm(np.ones(256), 0.2),
}


@pytest.mark.parametrize("name", RATES)
def test_the_bound_is_below_what_can_be_hit_in_nineteen_of_twenty_cases(name):
    k, rng = RATES[name], np.random.default_rng(1)
    bounds = []
    for counts in rng.multinomial(2000, np.append(k, 1 - k.sum()), 1000)[:, :-1]:
        counts = counts[counts > 0]
        bounds.append(r.at_least(counts, 2000, MANY))
        assert bounds[-1] >= len(counts)
        assert r.at_least(counts, 2000, 256) == min(bounds[-1], 256)
    # Three standard errors of a share of 1,000 below 95 %.
    assert np.mean(np.array(bounds) <= 256) > 0.93


def test_nothing_exceeds_the_training_images_there_are():
    """The demo: 85 hits, 59 images once and 10 twice, had `at least 403 (207 to 883)` of 256."""
    counts = np.array([1] * 59 + [2] * 10 + [3] * 2)
    assert 71 + r.unseen(counts, 2000, MANY) > 240
    for most in (100, 71):
        result = r.rarefaction(np.repeat(np.arange(71), counts), 2000, np.arange(10), most)
        assert result["at_least"] <= most
        for name in ("unique", "low", "high"):
            assert max(result[name]) <= most
        assert result["check"]["predicted"] <= most
        assert result["check"]["interval"][1] <= most
    assert result["at_least"] == 71
    assert result["coverage"] == 1


def test_coverage_estimates_the_share_of_hits_to_come_that_are_known():
    rng = np.random.default_rng(2)
    k = 0.3 * rng.dirichlet(np.full(80, 0.5))
    differences = []
    for _ in range(50):
        seen, counts = np.unique(hits(drawn(rng, k, 300)), return_counts=True)
        differences.append(r.coverage(counts, 300, 80) - k[seen].sum() / k.sum())
    assert abs(np.mean(differences)) < 0.02


@pytest.mark.parametrize(
    ("counts", "covered"),
    [([], 0.0), ([5, 5, 5], 1.0), ([1], 0.0), ([5, 1], 5 / 6), ([1, 1], 0.0)],
)
def test_where_there_is_nothing_to_estimate_from_it_says_what_was_seen(counts, covered):
    counts = np.array(counts, np.int64)
    low, high = r.interval(counts, 100, [50, 100, 400], MANY)
    assert (low <= high).all()
    assert np.isfinite([*low, *high]).all()
    assert r.coverage(counts, 100, MANY) == pytest.approx(covered, abs=0.02)
    assert r.at_least(counts, 100, MANY) == len(counts)


def test_the_result_is_plain_and_its_curve_rises():
    images = drawn(np.random.default_rng(3), np.full(40, 0.004), 1000)
    result = r.rarefaction(hits(images), 1000, hits(images[:250]), 40)
    quarter = np.unique(hits(images[:250]), return_counts=True)[1]
    check = result["check"]
    assert check["num_images"] == 250
    assert check["predicted"] == r.expected_unique(quarter, 250, [1000], 40)[0]
    assert check["observed"] == len(np.unique(hits(images)))
    assert check["relative_error"] == check["predicted"] / check["observed"] - 1
    assert result["num_images"][-1] == 4000
    assert 1000 in result["num_images"]
    at = result["num_images"].index(1000)
    assert result["unique"][at] == pytest.approx(result["observed"]["unique"])
    assert result["unique"] == sorted(result["unique"])
    for low, middle, high in zip(*(result[n] for n in ("low", "unique", "high")), strict=True):
        assert low <= middle <= high
