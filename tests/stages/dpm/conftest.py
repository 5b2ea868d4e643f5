"""A data artifact of scanned digits, and tiny models of them."""

from pathlib import Path

import pytest
from tests.tiny import DIGITS, RUNTIME, SETTINGS

from sidepipe.engine.stage import Job
from sidepipe.stages.data.stage import Data
from sidepipe.stages.dpm.trained import TrainDPM


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    DIGITS.run(Job(folder, {}, RUNTIME))
    return folder


@pytest.fixture
def train_dpm():
    """A function that makes a tiny TrainDPM; a dict as a change is laid over the setting."""

    def make(**changes) -> TrainDPM:
        settings = dict(SETTINGS)
        for name, value in changes.items():
            settings[name] = (
                {**settings.get(name, {}), **value} if isinstance(value, dict) else value
            )
        return TrainDPM(**settings)

    return make


@pytest.fixture
def digits() -> Data:
    """The data stage's settings, for checks against them."""
    return DIGITS
