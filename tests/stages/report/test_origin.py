"""Every artifact behind the page: those of prompts too, where one stage can come twice."""

import shutil

import pytest

from sidepipe.engine import artifacts
from sidepipe.stages.report.origin import origin


def artifact(folder, stage, key, **inputs):
    made = folder / stage / key
    made.mkdir(parents=True)
    settings = {"source": {"_target_": "x.Digits"}} if stage == "data" else {"number": key}
    content = {"stage": stage, "key": key, "inputs": inputs, "settings": settings}
    artifacts.write_manifest(made, content)
    return made


@pytest.fixture
def rows(tmp_path):
    """Prompts found on one model, and mitigation in the training of another."""
    artifact(tmp_path, "data", "da")
    artifact(tmp_path, "dpm", "base", data="da")
    artifact(tmp_path, "dpm", "filtered", data="da")
    detect = artifact(tmp_path, "detect", "de", data="da", dpm="base")
    inputs = {"data": "da", "detect": "de"}
    plain = artifact(tmp_path, "mitigate", "m0", **inputs, dpm="base")
    other = artifact(tmp_path, "mitigate", "m1", **inputs, dpm="filtered")
    return {"detect": detect, "mitigate none": plain, "mitigate filter": other}


def test_every_artifact_comes_once_with_the_rows_that_need_it_stage_by_stage(rows):
    found = origin(rows)
    assert found["rows"] == list(rows)
    assert found["dpm"]["key"] == "base"
    assert [(x["stage"], x["key"], names) for names, x in found["artifacts"]] == [
        ("data", "da", list(rows)),
        ("dpm", "base", list(rows)),
        ("dpm", "filtered", ["mitigate filter"]),
        ("detect", "de", list(rows)),
        ("mitigate", "m0", ["mitigate none"]),
        ("mitigate", "m1", ["mitigate filter"]),
    ]


def test_what_is_not_finished_is_refused(rows, tmp_path):
    shutil.rmtree(tmp_path / "dpm" / "filtered")
    with pytest.raises(FileNotFoundError, match="is not a finished artifact"):
        origin(rows)
