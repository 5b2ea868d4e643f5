"""Canaries in the split and in the epochs of an unconditional model."""

from tests.tiny import CANARY_DIGITS, RUNTIME, SETTINGS

from sidepipe.engine.stage import Job
from sidepipe.stages.data.stage import load_canaries
from sidepipe.stages.dpm.trained import TrainDPM


def test_an_epoch_has_canaries_as_often_as_they_repeat(tmp_path):
    CANARY_DIGITS.run(Job(tmp_path, {}, RUNTIME))
    dpm = TrainDPM(**SETTINGS)
    train, unseen = dpm.split(tmp_path, RUNTIME)
    assert len(train) == 20 + 4
    canaries = load_canaries(tmp_path)["repeats"]
    assert set(canaries.index[canaries == 0]) <= set(unseen.tolist())
    epoch = dpm._epoch(Job(tmp_path, {"data": tmp_path}, RUNTIME), train)
    times = {row: int((epoch == row).sum()) for row in train.tolist()}
    assert times == {row: int(canaries.get(row, 1)) for row in train.tolist()}
    assert sum(times.values()) == 20 + 2 * 2 + 2 * 30
