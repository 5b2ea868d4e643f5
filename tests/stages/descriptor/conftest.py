"""Artifacts of data (scanned digits) and of a dpm, of which only its split is read."""

from pathlib import Path

import numpy as np
import pytest
from tests.tiny import DIGITS, RUNTIME

from sidepipe.engine.stage import Job
from sidepipe.stages.data.stage import load_partitions
from sidepipe.stages.data.subset import split


@pytest.fixture(scope="session")
def inputs(tmp_path_factory) -> dict[str, Path]:
    data, dpm = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("dpm")
    DIGITS.run(Job(data, {}, RUNTIME))
    for name, rows in zip(
        ("subset", "heldout"), split(load_partitions(data), 997, None, 0), strict=True
    ):
        np.save(dpm / f"{name}.npy", rows)
    return {"data": data, "dpm": dpm}
