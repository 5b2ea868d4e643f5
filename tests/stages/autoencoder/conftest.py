"""A data artifact of scanned digits, and a tiny autoencoder of half of them."""

from pathlib import Path

import pytest
from tests.stages.autoencoder.tiny import train_autoencoder
from tests.tiny import DIGITS, RUNTIME

from sidepipe.engine.stage import Job


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    DIGITS.run(Job(folder, {}, RUNTIME))
    return folder


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """An autoencoder that has learned something, and its summary."""
    folder = tmp_path_factory.mktemp("trained")
    stage = train_autoencoder(max_steps=150, lr_warmup_steps=10, validate_every_steps=150)
    return folder, stage.run(Job(folder, {"data": data}, RUNTIME))
