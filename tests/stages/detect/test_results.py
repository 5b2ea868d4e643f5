"""Results: thresholds from calibration prompts alone, labels from images, what is counted."""

import numpy as np
import pandas as pd
import pytest

from sidepipe.engine.stage import NoMaterial
from sidepipe.stages.detect import tables
from sidepipe.stages.detect.replays import Truth
from sidepipe.stages.detect.results import (
    calibration_norms,
    counts,
    distributions,
    of_variant,
    scored,
)
from sidepipe.stages.detect.scores import Variant

VARIANT = Variant("norm", 2, 1, 2)


def table(memorized=None):
    """Four planted prompts, of which three are memorized, six others and ten for calibration."""
    roles = ["planted"] * 4 + ["test"] * 6 + ["calibration"] * 10
    known = [True, True, True, False] + [False] * 16 if memorized is None else memorized
    repeats = [64, 64, 4, 4] + [0] * 16
    columns = {"role": roles, "memorized": known, "repeats": repeats, "row": range(20)}
    return pd.DataFrame({"id": [f"{i}" for i in range(20)], **columns})


SCORES = np.array([9.0, 8.0, 2.0, 1.0, *[1.0] * 5, 6.0, *range(10)])


def test_the_threshold_is_the_calibration_prompts_alone_and_what_it_does_is_counted_on_the_others():
    row = of_variant(VARIANT, SCORES, table(), 0.1)
    assert row["threshold"] == 8.0
    assert row["flagged_memorized"]["count"] == 1
    assert row["flagged_memorized"]["of"] == 3
    assert row["flagged_others"]["count"] == 0
    assert row["flagged_others"]["of"] == 7
    assert row["auc"] == pytest.approx((7 + 7 + 6) / 21)
    assert row["tpr"] == pytest.approx(2 / 3)
    assert row["evaluations_per_prompt"] == 4


def test_a_calibration_prompt_that_is_memorized_does_not_raise_the_threshold():
    known = table()
    known.loc[19, "memorized"] = True
    assert of_variant(VARIANT, SCORES, known, 0.1)["threshold"] == 8.0
    assert of_variant(VARIANT, SCORES, known, 0.3)["threshold"] == 6.0
    assert of_variant(VARIANT, SCORES, table(), 0.3)["threshold"] == 6.0
    known.loc[[17, 18], "memorized"] = True
    assert of_variant(VARIANT, SCORES, known, 0.1)["threshold"] == 6.0


@pytest.mark.parametrize("label", [False, np.nan])
def test_without_labels_or_memorized_prompts_there_is_a_threshold_and_no_curve(label):
    row = of_variant(VARIANT, SCORES, table([label] * 20), 0.1)
    assert row["threshold"] == 8.0
    assert row["auc"] is None
    assert row["tpr_interval"] is None
    assert row["flagged_memorized"]["share"] is None
    found = distributions(SCORES, table([label] * 20))
    assert "roc" not in found


def test_histograms_hold_every_prompt_once():
    found = distributions(SCORES, table([True, False, np.nan, *[False] * 17]))
    kinds = ("memorized", "others", "calibration", "unlabeled")
    assert [sum(found[kind]) for kind in kinds] == [1, 8, 10, 1]
    assert len(found["edges"]) == len(found["others"]) + 1
    assert found["roc"]["tpr"][-1] == 1


def test_memorized_prompts_are_counted_by_role_and_by_repeats():
    found = counts(table())
    by_role = {row["role"]: (row["count"], row["of"]) for row in found["memorized_by"]["role"]}
    assert by_role == {"planted": (3, 4), "test": (0, 6), "calibration": (0, 10)}
    by_repeats = {row["repeats"]: row["share"] for row in found["memorized_by"]["repeats"]}
    assert by_repeats == {0: 0, 4: 0.5, 64: 1}
    assert found["num_prompts"] == {"planted": 4, "test": 6, "calibration": 10}


def test_norms_at_each_step_are_of_single_images_of_calibration_prompts():
    norms = np.zeros((20, 2, 3), np.float32)
    norms[10:] = np.arange(20).reshape(10, 2, 1)
    norms[10:, :, 2] *= 10
    norms[:10] = 1000
    found = calibration_norms(norms, table(), [40, 20, 0], 0.05)
    assert found["median"] == [9.5, 9.5, 95]
    assert found["upper"] == pytest.approx([18.05, 18.05, 180.5])
    assert found["timesteps"] == [40, 20, 0]


def test_the_decisions_score_and_every_signals_are_in_the_table():
    norm = np.stack([np.stack([SCORES, SCORES + 2], 1), np.zeros((20, 2))], 2)
    seen = {"norm": norm, "entropy": np.stack([SCORES, SCORES], 1)}
    every = [VARIANT, Variant("norm", 1, 2, 4), Variant("entropy", 2, 1, 1)]
    found, results = scored(table(), seen, every, VARIANT, 0.1)
    np.testing.assert_allclose(found["d"], SCORES + 1)
    np.testing.assert_allclose(found["norm"], SCORES + 1)
    np.testing.assert_allclose(found["entropy"], SCORES)
    assert found["flagged"].tolist() == (SCORES > 8).tolist()
    assert [row["signal"] for row in results["signals"]] == ["norm", "norm", "entropy"]
    assert results["decision"] == results["signals"][0]
    assert set(results["distributions"]) == {"norm", "entropy"}


def test_memorized_calibration_prompts_alone_are_an_error_and_no_empty_result():
    """The pipeline would report an empty result, where it is the strongest memorization."""
    seen = {"norm": np.zeros((20, 2, 4))}
    with pytest.raises(ValueError, match="all calibration prompts count as memorized") as raised:
        scored(table([True] * 20), seen, [VARIANT], VARIANT, 0.1)
    assert not isinstance(raised.value, NoMaterial)


def truth(threshold=0.5):
    return Truth(lambda numbers, images: {}, "l2", threshold, {})


def test_a_prompt_is_memorized_where_enough_of_its_images_are_copies():
    gamma = np.full((20, 4), 0.9, np.float32)
    gamma[0, :2], gamma[1, :1], gamma[2] = 0.1, 0.1, 0.5
    rows = np.arange(80).reshape(20, 4)
    found = tables.labeled(table(), {"gamma": gamma, "nearest": rows}, truth(), 0.5)
    assert found["memorized"].tolist() == [True, False, True, *[False] * 17]
    assert found["copies"].tolist() == [2, 1, 4, *[0] * 17]
    assert found["nearest"].tolist()[:3] == [0, 4, 8]


def test_where_no_image_is_known_the_files_word_stands():
    gamma = np.full((20, 2), np.nan, np.float32)
    gamma[0] = 0.1
    rows = np.full((20, 2), -1)
    known = table([False, True, np.nan, *[False] * 17])
    found = tables.labeled(known, {"gamma": gamma, "nearest": rows}, truth(), 0.5)
    assert found["memorized"].tolist()[:2] == [True, True]
    assert found["memorized"].isna().tolist() == [False, False, True, *[False] * 17]
    without = tables.labeled(known, {}, None, 0.5)
    assert without["memorized"].tolist()[1] is True
    assert (without["nearest"] == -1).all()


def test_a_saved_table_is_ranked_and_comes_back_in_the_prompts_order(tmp_path):
    texts = {"caption": ["NA", "b, c", 'd "e"', *"f" * 17], "word": "", "cut": ""}
    written = table([True, np.nan, *[False] * 18]).assign(d=SCORES, **texts)
    tables.save(tmp_path / "prompts.csv", written)
    ranks = pd.read_csv(tmp_path / "prompts.csv")["d"]
    assert ranks.is_monotonic_decreasing
    back = tables.read(tmp_path / "prompts.csv")
    assert back["number"].tolist() == list(range(20))
    assert back["caption"].tolist()[:3] == ["NA", "b, c", 'd "e"']
    assert back["id"].tolist()[:2] == ["0", "1"]
    assert back["memorized"].tolist()[0] is True
    assert back["memorized"].isna().sum() == 1


def test_pictures_of_large_images_are_averaged_and_of_small_ones_kept():
    small = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 8, 1)).astype(np.uint8)
    np.testing.assert_array_equal(tables.pictures(small), small[:, :4])
    large = np.zeros((1, 2, 512, 512, 3), np.uint8)
    large[:, :, 0, 0] = 160
    found = tables.pictures(large)
    assert found.shape == (1, 2, 128, 128, 3)
    assert found[0, 0, 0, 0].tolist() == [10, 10, 10]
