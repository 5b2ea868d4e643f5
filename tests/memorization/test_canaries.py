"""Exposure against its definition, and the fewest repeats that leak."""

import numpy as np
import pandas as pd
import pytest

from sidepipe.memorization.canaries import by_repeats, exposure, exposure_by_chance, leaks_from


def test_exposure_is_the_logarithm_of_candidates_by_rank():
    others = np.arange(1.0, 256.0)
    assert exposure(0.5, others) == (1, 8.0)
    assert exposure(2.5, others) == (3, pytest.approx(8 - np.log2(3)))
    assert exposure(999.0, others) == (256, 0.0)


def test_equal_losses_rank_the_canary_last():
    assert exposure(1.0, np.ones(7)) == (8, 0.0)


def test_chance_is_the_mean_over_all_ranks():
    others = np.arange(1.0, 64.0)
    every = [exposure(rank - 0.5, others)[1] for rank in range(1, 65)]
    assert exposure_by_chance(64) == pytest.approx(np.mean(every))


def rows_of(shares):
    rows = [
        {"repeats": repeats, "share": share, "exposure": 1.0}
        for repeats, some in shares.items()
        for share in some
    ]
    return by_repeats(pd.DataFrame(rows))


def test_a_canary_with_one_copy_is_extracted_and_intervals_decide():
    # 8 of 8 is at least 63 %, 0 of 16 controls at most 21 %, 4 of 8 at least 16 %.
    rows = rows_of({0: [0.0] * 16, 4: [0.1] * 4 + [0.0] * 4, 16: [0.1] * 8, 64: [1.0] * 8})
    counts = [(row["repeats"], row["extracted"]["count"]) for row in rows]
    assert counts == [(0, 0), (4, 4), (16, 8), (64, 8)]
    assert rows[2]["images"]["mean"] == pytest.approx(0.1)
    assert leaks_from(rows) == 16


def test_where_controls_are_extracted_as_often_nothing_leaks():
    assert leaks_from(rows_of({0: [1.0] * 16, 64: [1.0] * 8})) is None
