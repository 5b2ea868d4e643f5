"""Which prompts are looked at further."""

import numpy as np
import pandas as pd
import pytest

from sidepipe.stages.detect.groups import grouped


def prompts(**changes):
    table = pd.DataFrame(
        {
            "id": list("abcdefg"),
            "role": ["planted", "planted", "train", "test", "test", "calibration", "calibration"],
            "memorized": [True, False, True, False, False, True, False],
            "flagged": [False, True, False, False, True, True, False],
        }
    )
    return table.assign(**changes)


def test_memorized_prompts_and_as_many_others_are_chosen_and_none_that_calibrates():
    found = grouped(prompts(), ["test"], None, 0)
    assert found["id"].tolist() == ["a", "c", "d", "e"]
    assert found["group"].tolist() == ["memorized"] * 2 + ["other"] * 2
    one = grouped(prompts(), ["planted", "train"], 1, 0)
    assert one["group"].tolist() == ["memorized", "other"]
    assert one["id"][1] == "b"


def test_where_nothing_is_known_those_that_the_threshold_flags_are_taken_for_memorized():
    unknown = prompts(memorized=np.nan)
    assert grouped(unknown, ["test"], None, 0)["id"].tolist() == ["b", "e", "d"]
    with pytest.raises(ValueError, match="detect found no memorized prompt; remedy: train"):
        grouped(unknown.assign(flagged=False), ["test"], None, 0)
