import numpy as np
import pytest
import torch

from sidepipe.stages.attack.schedule import check_points, quality_factors, schedule_factors


def test_factors_are_the_share_of_the_labels_entropy_that_the_classifier_knows():
    rows = [
        {"t_from": 0, "t_to": 3, "cross_entropy": 0.0, "label_entropy": 1.5},
        {"t_from": 3, "t_to": 5, "cross_entropy": 0.6, "label_entropy": 1.5},
        {"t_from": 5, "t_to": 6, "cross_entropy": 1.5, "label_entropy": 1.5},
        {"t_from": 6, "t_to": 8, "cross_entropy": 2.0, "label_entropy": 1.5},
    ]
    expected = torch.tensor([1, 1, 1, 0.6, 0.6, 0, 0, 0])
    torch.testing.assert_close(quality_factors(rows, 8), expected)


def test_factors_are_linear_between_points_and_constant_beyond_them():
    factors = schedule_factors([[2, 0], [6, 1], [8, 5]], [], 11)
    expected = [0, 0, 0, 0.25, 0.5, 0.75, 1, 3, 5, 5, 5]
    torch.testing.assert_close(factors, torch.tensor(expected, dtype=torch.float64))


def test_points_may_lie_beyond_the_timesteps_and_be_alone():
    np.testing.assert_allclose(schedule_factors([[0, 0], [8, 2]], [], 5), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(schedule_factors([[-2, 1], [2, 0]], [], 4), [0.5, 0.25, 0, 0])
    assert schedule_factors([[700, 0.5]], [], 4).tolist() == [0.5] * 4
    assert schedule_factors("constant", [], 4).tolist() == [1.0] * 4


def test_constant_and_points_are_schedules():
    check_points("constant")
    check_points([[0, 0], [400.5, 1], [999, 2]])
    check_points([[0, 1]])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], r"a list of points \[t, factor\] with factor >= 0, got \[\]"),
        ([0, 1], r"a list of points .* got \[0, 1\]"),
        ([[0, 1, 2]], "a list of points"),
        ([["0", 1]], "a list of points"),
        ([[0, True]], "a list of points"),
        ([[0, 1], [5, -0.1]], "with factor >= 0"),
        ([[0, float("nan")]], "with factor >= 0"),
        ([[0, float("inf")]], "with factor >= 0"),
        ([[5, 1], [5, 2]], "with ascending t"),
        ([[5, 1], [4, 2]], "with ascending t"),
    ],
)
def test_a_schedule_that_is_none_is_refused_with_the_rule(schedule, message):
    with pytest.raises(ValueError, match=rf"guidance.guidance_schedule must be .*{message}"):
        check_points(schedule)
