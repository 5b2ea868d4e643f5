import numpy as np
import pytest

from sidepipe.memorization.collapse import collapse

RNG = np.random.default_rng(0)


def noise(n):
    return RNG.integers(0, 256, (n, 4, 4, 3)).astype(np.uint8)


def sizes(*groups):
    return np.array(sorted(groups, reverse=True))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([60], "gives the same image 60 of 60 times: no finding"),
        ([54, *[1] * 6], "gives the same image 54 of 60 times: no finding"),
        ([20, 20, 20], "gives only 3 different images, 60 of 60 times: no finding"),
        ([400, 400, 400, 400, 300, *[1] * 100], "gives only 5 different images, 1,900 of 2,000"),
    ],
)
def test_one_image_or_a_handful_again_and_again_is_a_collapse(groups, said):
    found = collapse(noise(sum(groups)), sizes(*groups))
    assert found["said"].startswith(said)


@pytest.mark.parametrize(
    "groups",
    [
        [1] * 60,
        [40, *[1] * 20],
        [15] * 4,  # four images of sixty: too few of each
        [1000, *[1] * 1000],  # half of the images are one memorized image, which is a finding
        [300] * 6,
        [5, 5, 5, 5],
    ],
)
def test_repeated_images_among_others_are_no_collapse(groups):
    assert collapse(noise(sum(groups)), sizes(*groups)) is None


def test_images_of_a_single_color_are_a_collapse_whatever_an_encoder_makes_of_them():
    """An encoder that subtracts the mean has a zero vector, which is near nothing."""
    images = np.repeat(RNG.integers(0, 256, (60, 1, 1, 3)).astype(np.uint8), 4, axis=1)
    images = np.repeat(images, 4, axis=2)
    images[:6] = noise(6)
    found = collapse(images, sizes(*[1] * 60))
    assert found["said"] == "gives an image of a single color 54 of 60 times: no finding"
    images[:7] = noise(7)
    assert collapse(images, sizes(*[1] * 60)) is None
