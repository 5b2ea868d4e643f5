"""Dataset inference on images of several subjects, where the truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from sidepipe.memorization.inference import FEWEST
from sidepipe.stages.audit import tables as audit_tables

NUM_SUBJECTS, NUM_IMAGES = 20, 20


def inference(table, seed):
    found = audit_tables.inference(table, seed)
    assert found is not None
    return found


def scored(rng, shift=0.0, num_subjects=NUM_SUBJECTS):
    """Scores that the subject sets more than the image does; `shift`: what training adds."""
    parts = []
    for kind, add in (("train", shift), ("heldout", 0.0)):
        subject = np.repeat(np.arange(num_subjects), NUM_IMAGES)
        scores = {
            name: rng.normal(size=num_subjects)[subject] + rng.normal(size=len(subject)) + by
            for name, by in (("gamma", add), ("error", -add), ("recall_60", 0.0))
        }
        ids = [f"{kind}_{number}" for number in subject]
        parts.append(pd.DataFrame({"kind": kind, "subject": ids, **scores}))
    return pd.concat(parts, ignore_index=True)


def test_the_p_value_is_uniform_where_subjects_have_many_images():
    rng = np.random.default_rng(0)
    tables = [scored(rng) for _ in range(60)]
    found = [inference(table, seed) for seed, table in enumerate(tables)]
    p = np.array([one["p_value"] for one in found])
    assert np.mean(p < 0.05) <= 0.1
    assert kstest(p, "uniform").pvalue > 0.01
    # The reason for subjects: as independent images, they are found in most trials.
    alone = [inference(table.drop(columns="subject"), 0)["p_value"] for table in tables[:20]]
    assert np.mean(np.array(alone) < 0.05) > 0.5


def test_subjects_that_were_trained_on_are_found_and_counted_once():
    table = scored(np.random.default_rng(1), shift=2.0)
    found = inference(table, 0)
    assert found["p_value"] < 0.001
    assert found["unit"] == "subject"
    assert (found["num_suspects"], found["num_control"]) == (10, 10)
    assert [row["size"] for row in found["power"]] == [5, 10]
    assert found["power"][-1]["power"] == 1
    alone = inference(table.drop(columns="subject"), 0)
    assert (alone["unit"], alone["num_suspects"]) == ("image", 200)


@pytest.mark.parametrize("num_subjects", [FEWEST - 1, FEWEST])
def test_few_subjects_have_no_p_value_however_many_images_they_have(num_subjects):
    table = scored(np.random.default_rng(2), num_subjects=num_subjects)
    assert (audit_tables.inference(table, 0) is None) == (num_subjects < FEWEST)
