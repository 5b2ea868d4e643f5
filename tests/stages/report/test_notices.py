"""What limits the numbers comes first, and only where there is such a limit."""

from types import SimpleNamespace
from typing import Any

import pytest

from sidepipe.stages.report.notices import notices
from sidepipe.stages.report.words import NBSP

DATA = {"summary": {"skipped": []}}
DUPLICATES = {"across": 0, "across_exact": 0, "dropped": 0, "within": 0, "within_exact": 0}


def dpm(**found: int) -> dict[str, Any]:
    duplicates = {**DUPLICATES, **found}
    numbers = {"num_train_images": 60, "num_heldout_images": 1403}
    return {"summary": {**numbers, "duplicates": duplicates}}


def attack(asked=(0.001, 0.01), used=(0.001, 0.01), num_real=1403, near=0, passing=1) -> Any:
    rows = [{"false_positive_rate": r, "num_real": num_real, "real_passing": passing} for r in used]
    results = {"asked_false_positive_rates": list(asked), "calibrated": rows}
    results |= {"near_duplicates": {"count": near, "train_distance": 0.1, "unseen_distance": 0.1}}
    results |= {"transform": "sscd-320-v1"}
    facts = {"num_images": 200, "excess_interval": (0.01, 0.03), "inconclusive": False}
    return SimpleNamespace(name="flux", has_truth=True, results=results, collapse=None, **facts)


def said(*arguments: Any) -> list[str]:
    return [sentence.replace(NBSP, " ") for sentence in notices(DATA, *arguments)]


def test_without_limits_nothing_is_said():
    assert said(dpm(), [attack()], {"threshold": 0.5}) == []


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"across": 3}, "3 of 1,403 held-out images duplicate training images and were kept: "),
        ({"across": 3, "dropped": 3}, "3 held-out images duplicate training images and are left"),
        (
            {"within": 12},
            "12 of 60 training images duplicate other training images; they are counted once "
            "where they are as close as a hit.",
        ),
        ({"across": 1}, "1 of 1,403 held-out images duplicates training images and was kept: "),
        ({"across": 1, "dropped": 1}, "1 held-out image duplicates training images and is left "),
        (
            {"repeated": 2},
            "2 held-out images have the pixels of another held-out image: they count twice in ",
        ),
        ({"within": 1}, "1 of 60 training images duplicates other training images; they "),
    ],
)
def test_duplicates_are_said(found, expected):
    [sentence] = said(dpm(**found), [])
    assert sentence.startswith(expected)


def test_heldout_images_of_another_kind_are_said():
    far = attack()
    far.results["near_duplicates"] |= {"train_distance": 0.1, "unseen_distance": 0.3}
    [sentence] = said(dpm(), [far, far])
    assert sentence.startswith("Held-out images are 3.0 times as far from training images as ")
    far.results["near_duplicates"]["unseen_distance"] = 0.12
    assert said(dpm(), [far]) == []


def test_rates_that_were_not_asked_for_are_said_once_for_all_attacks():
    few = attack(used=(0.0125,), num_real=80)
    assert said(dpm(), [few, few]) == [
        "80 held-out images are too few for a false positive rate of 0.1 % and 1 %; used: 1.25 %."
    ]


def test_near_duplicates_to_the_encoder_are_said_where_they_set_the_threshold():
    assert said(dpm(), [attack(near=1)]) == []
    [sentence] = said(dpm(), [attack(near=2)])
    assert sentence.startswith(
        "2 of 1,403 held-out images are near duplicates of training images (sscd-320-v1) and set"
    )


@pytest.mark.parametrize(("metric", "side"), [("l2", "at most"), ("cosine", "at least")])
def test_the_floor_of_a_latent_model_is_said_once_for_all_attacks(metric, side):
    limited = attack()
    limited.metric, limited.threshold, limited.gamma_in_words = metric, 0.0543, "RMS difference"
    limited.results["floor"] = {"median": 0.0412, "most": 0.0621, "within_threshold": 0.876}
    assert said(dpm(), [limited, limited]) == [
        "The autoencoder alone puts training images at 0.0412 from themselves (RMS difference, "
        f"median; {side} 0.0621 for 95 %), and a memorized code decodes no closer: 87.6 % "
        "of them are within the threshold of a hit, 0.0543, and only these can be found."
    ]


def test_samples_that_are_no_images_are_said_first():
    model = dpm(across=3)
    model["summary"] |= {"code_deviation": 0.975, "sampled_code_deviation": 3.15}
    first, second = said(model, [])
    assert first.startswith(
        "Sampled codes have a standard deviation of 3.15, and those of training"
    )
    assert second.startswith("3 of 1,403 held-out images duplicate")


def test_one_is_singular():
    [sentence] = said(dpm(), [attack(near=1, passing=0)])
    assert sentence.startswith(
        "1 of 1,403 held-out images is a near duplicate of training images (sscd-320-v1) and sets"
    )
    assert of_data(skipped=["a.png"]) == ["1 image file could not be read and is left out."]
    assert of_data(skipped=["a", "b"]) == ["2 image files could not be read and are left out."]


def test_the_rate_of_copies_among_the_images_of_prompts_is_said():
    labels = {"asked_false_positive_rate": 0.01, "false_positive_rate": 0.04, "num_real": 25}
    assert said(dpm(), [], labels) == [
        "25 held-out images are too few for a false positive rate of 1 %; used: 4 %."
    ]
    assert said(dpm(), [], {**labels, "false_positive_rate": 0.01}) == []


def results(**changed: Any) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(attack()), **changed})


def test_more_heldout_hits_than_hits_are_a_doubt_about_the_split():
    [sentence] = said(dpm(), [results(excess_interval=(-0.3, -0.02))])
    assert sentence == (
        "flux: there are more held-out hits than hits (excess -30.0 to -2.0 %), which chance does "
        "not explain: are training and held-out images swapped, or of different kinds?"
    )
    assert said(dpm(), [results(excess_interval=(-0.3, 0.0))]) == []


def test_generated_images_that_are_real_ones_are_named():
    changed = attack().results | {"exact_copies": {"train": 150, "heldout": 40}}
    [sentence] = said(dpm(), [results(results=changed)])
    assert sentence.startswith("flux: 150 of 200 generated images are exact copies of training")
    fewer = attack().results | {"exact_copies": {"train": 150, "heldout": 20}}
    assert said(dpm(), [results(results=fewer)]) == []


def test_a_reference_of_before_distances_is_named():
    old = attack().results | {"near_duplicates": {"count": 0}}
    [sentence] = said(dpm(), [results(results=old)])
    assert sentence.endswith("images of another kind are not noticed: re-run the command.")


def test_an_attack_without_truth_has_no_thresholds():
    assert said(dpm(), [SimpleNamespace(has_truth=False, results={}, collapse=None)]) == []


def of_data(**summary):
    return notices({"summary": summary}, {"summary": {}}, [])


def test_files_that_were_not_read_are_counted_by_kind():
    assert of_data(
        left_out=[[".heic (HEIF, which needs pillow-heif)", 10], ["without suffix", 2]]
    ) == ["12 files are not read: 10 .heic (HEIF, which needs pillow-heif), 2 without suffix."]
    assert of_data(left_out=[], skipped=[]) == of_data() == []
    both = of_data(left_out=[[".zip", 1]], skipped=["a.png"])
    assert len(both) == 2
    assert both[1] == "1 file is not read: 1 .zip."


def test_a_row_without_material_is_a_sentence():
    found = notices(
        {"summary": {}}, {"summary": {}}, [], empty={"repeats": "nothing repeats; remedy: x"}
    )
    assert found == ["repeats has no result: nothing repeats; remedy: x."]


def test_rows_without_a_result_for_one_reason_share_a_sentence():
    rows = dict.fromkeys(("one", "two"), "nothing repeats") | {"three": "no cluster is kept"}
    assert notices({"summary": {}}, {"summary": {}}, [], empty=rows) == [
        "one, two have no result: nothing repeats.",
        "three has no result: no cluster is kept.",
    ]


@pytest.mark.parametrize(
    ("stopped_at", "expected"),
    [
        (800, "Training was stopped at step 800 of 3,200, as the model memorizes: 31 of 200 "),
        (None, "Training was watched for memorization to its end, step 3,200: 31 of 200 "),
    ],
)
def test_the_alarm_of_a_training_is_said(stopped_at, expected):
    last = {"step": 800, "hits": 31, "images": 200, "different": 1, "heldout_hits": 0.4}
    alarm = {"max_steps": 3200, "stopped_at": stopped_at, "last": last, "looks": 4}
    model = dpm()
    model["summary"]["alarm"] = {**alarm, "evaluations": 14400, "seconds": 3.14}
    [sentence] = said(model, [])
    assert sentence == (
        f"{expected}refined samples were hits, on 1 training image, with 0.4 held-out hits "
        "(4 looks, 14,400 evaluations, 3.1 s)."
    )
