"""Numbers as words."""

import pytest

from sidepipe.stages.report.words import DASH, decimals, percent, rate, rate_interval, with_interval


@pytest.mark.parametrize(
    ("share", "num_images", "text"),
    [
        (0.126, 2000, "12.60"),
        (0.126, 100, "13"),
        (1 / 50_000, 50_000, "0.002"),
        (0, 10, "0"),
        (-0.0001, 100, "0"),
        (-0.02, 100, "-2"),
    ],
)
def test_percent_has_as_many_digits_as_one_image_makes(share, num_images, text):
    assert percent(share, num_images) == text


def test_a_rate_has_no_more_digits_than_it_needs():
    assert rate(0.001) == "0.1\N{NO-BREAK SPACE}%"
    assert rate_interval([1.64e-5, 0.00361]) == "0.0016 to 0.36\N{NO-BREAK SPACE}%"


def test_what_is_unknown_is_a_dash():
    assert with_interval(None, None) == decimals(None) == DASH
    assert with_interval(1234.4, [1000, 2000]) == "1,234 (1,000 to 2,000)"
