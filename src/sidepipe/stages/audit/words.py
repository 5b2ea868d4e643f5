"""The findings of an audit in sentences."""

from collections.abc import Mapping
from typing import Any


def in_words(results: Mapping[str, Any]) -> str:
    """The findings of results.json."""
    share, ends = results["excess"]["share"], results["excess"]["interval"]
    low, high = (f"{100 * end:.1f}" for end in ends)
    return (
        f"The model returns to {results['flagged']:,} of {results['num_train']:,} training "
        f"images and to {results['heldout_flagged']:,} of {results['num_heldout']:,} held-out "
        f"images: a difference of {100 * share:.1f} % (95 % interval {low} to {high} %), "
        f"from {results['evaluations_per_image']:,} network evaluations per image."
        f"{_expected(results['extraction'])}"
    )


def _expected(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    other, end = found["heldout_interval"]
    return (
        f" Among {found['budget']:,} refined images, hits are expected on {found['expected']:,.0f} "
        f"training images (95 % interval {low:,.0f} to {high:,.0f}) and on "
        f"{found['heldout_expected']:,.0f} held-out images ({other:,.0f} to {end:,.0f})."
    )
