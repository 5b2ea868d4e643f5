"""Running the graph: only what is missing, each artifact once, states told truly."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from tests.composing import composed

from sidepipe.base import files
from sidepipe.base.interruption import Preempted
from sidepipe.engine import artifacts, locks, pipeline, status
from sidepipe.engine.attempts import save_seconds
from sidepipe.engine.graph import Node, Plan
from sidepipe.engine.plan import plan
from sidepipe.engine.stage import Job, NoMaterial, Runtime, Stage
from sidepipe.tracking import Tracking

RAN: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Numbers(Stage):
    name: ClassVar[str] = "data"
    count: int = 3
    changed: bool = False

    def source_changed(self, summary: Any, runtime: Runtime) -> str | None:
        return "the files changed" if self.changed else None

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {"count": settings["count"]}

    def run(self, job: Job) -> dict[str, Any]:
        RAN.append("numbers")
        (job.folder / "numbers.json").write_text(json.dumps(list(range(self.count))))
        return {"count": self.count}


@dataclass(frozen=True, kw_only=True)
class Total(Stage):
    name: ClassVar[str] = "dpm"
    fail: bool = False
    error: BaseException = ValueError("no total today")
    space: int = 0

    def num_bytes(self, upstream: Any) -> int:
        return self.space

    def inputs(self) -> tuple[str, ...]:
        return ("data",)

    def key_settings(self, settings: dict[str, Any]) -> dict[str, Any]:
        return {}

    def run(self, job: Job) -> dict[str, Any]:
        RAN.append("total")
        if self.fail:
            raise self.error
        return {"total": sum(json.loads((job.inputs["data"] / "numbers.json").read_text()))}


@pytest.fixture(autouse=True)
def _forget() -> None:
    RAN.clear()


def make_plan(outputs: Path, fail: bool = False, changed: bool = False) -> Plan:
    data = Node(Numbers(changed=changed), {"count": 3})
    total = Node(Total(fail=fail), {}, {"data": data})
    nodes = {data.key: data, total.key: total}
    attacks = {"all": ["only"], data.key: ["only"], total.key: ["only"]}
    return Plan(nodes, attacks, Runtime(outputs=str(outputs)), Tracking())


def states(plan: Plan) -> list[str]:
    return [line.split("  ")[-1] for line in status.table(plan).splitlines()]


def test_a_stage_runs_what_it_needs_and_a_second_run_makes_nothing(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    (goal,) = pipeline.run(plan, "dpm")
    assert RAN == ["numbers", "total"]
    manifest = artifacts.read_manifest(goal.folder(plan.runtime))
    assert manifest is not None
    assert manifest["summary"] == {"total": 3}
    pipeline.run(make_plan(tmp_path), "dpm")
    assert RAN == ["numbers", "total"]


def test_only_the_stage_asked_for_and_its_inputs_run(tmp_path: Path) -> None:
    pipeline.run(make_plan(tmp_path), "data")
    assert RAN == ["numbers"]


def test_a_failed_stage_leaves_no_manifest_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no total today"):
        pipeline.run(make_plan(tmp_path, fail=True), "dpm")
    plan = make_plan(tmp_path)
    assert states(plan)[0].startswith("done")
    assert states(plan)[1].startswith("failed: no total today; log: ")
    (log,) = tmp_path.glob("dpm/*/log.txt")
    assert "no total today" in log.read_text()
    assert "Traceback" in log.read_text()
    pipeline.run(plan, "dpm")
    assert RAN == ["numbers", "total", "total"]
    assert states(plan)[1].startswith("done")


def test_status_tells_missing_from_running(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    assert states(plan) == ["missing", "missing"]
    data = next(iter(plan.nodes.values()))
    folder = data.folder(plan.runtime)
    folder.mkdir(parents=True)
    content = {"step": 7, "total": 9, "unit": "image", "seconds_left": 61.0}
    files.write_json(folder / artifacts.PROGRESS, content)
    with locks.locked(folder):
        assert "running on" in states(plan)[0]
        assert states(plan)[0].endswith(" at image 7/9, 0:01:01 left")
    assert states(plan)[0] == "unfinished at image 7/9: the same command resumes"


def test_a_source_that_changed_is_an_error_with_the_artifact_to_delete(tmp_path: Path) -> None:
    """Results would silently be of the old files."""
    plan = make_plan(tmp_path)
    pipeline.run(plan, "data")
    changed = make_plan(tmp_path, changed=True)
    folder = re.escape(str(changed.goals("data")[0].folder(changed.runtime)))
    with pytest.raises(ValueError, match=f"the files changed: {folder}$"):
        pipeline.run(changed, "data")
    assert RAN == ["numbers"]


def test_an_edited_result_is_an_error_before_it_is_printed(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    pipeline.run(plan, "data")
    numbers = plan.goals("data")[0].folder(plan.runtime) / "numbers.json"
    numbers.write_text(numbers.read_text().replace("2", "3"))
    with pytest.raises(ValueError, match=r"numbers.json is damaged: its content has changed"):
        pipeline.run(plan, "data")


def test_an_unknown_stage_is_refused_with_the_closest_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'evalute'.*did you mean 'evaluate'"):
        pipeline.run(make_plan(tmp_path), "evalute")


def test_a_stage_that_no_attack_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs the stage 'label'; remedy: extract\.surrogate"):
        pipeline.run(make_plan(tmp_path), "label")


def test_a_stage_alone_is_refused_while_what_it_reads_is_not_finished(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    data, total = plan.nodes.values()
    with pytest.raises(FileNotFoundError, match=f"dpm {total.key} reads data {data.key}: not"):
        pipeline.make(total, plan)
    assert RAN == []
    assert pipeline.make(data, plan)
    assert pipeline.make(total, plan)
    assert not pipeline.make(total, plan)
    assert RAN == ["numbers", "total"]


def test_a_stage_that_was_asked_to_stop_has_not_failed(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, fail=True)
    data, total = plan.nodes.values()
    pipeline.make(data, plan)
    with pytest.raises(ValueError, match="no total"):
        pipeline.make(total, plan)
    object.__setattr__(total.stage, "error", Preempted("stopped by a signal"))
    with pytest.raises(Preempted):
        pipeline.make(total, plan)
    assert states(plan)[1].startswith("unfinished")


# Damage


def first_file(plan: Plan) -> Path:
    data = next(iter(plan.nodes.values()))
    return data.folder(plan.runtime) / "numbers.json"


def test_an_input_that_changed_stops_its_reader_before_it_runs(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    pipeline.run(plan, "data")
    first_file(plan).write_text("[9, 9, 9]")  # as many bytes
    with pytest.raises(
        ValueError, match=r"numbers\.json is damaged: .*; remedy: restore it, or del"
    ):
        pipeline.run(plan, "dpm")
    assert RAN == ["numbers"]
    assert states(plan)[0].startswith("done"), "sizes are those of the manifest"
    assert states(plan)[1] == "missing"


def test_an_input_of_another_size_is_damaged_in_the_status_too(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    pipeline.run(plan, "dpm")
    first_file(plan).write_text("[]")
    assert states(plan)[0].startswith(f"damaged: {first_file(plan)} is damaged: it has 2 bytes")
    assert states(plan)[1].startswith("done")
    with pytest.raises(ValueError, match="it has 2 bytes where the manifest has 9"):
        pipeline.run(plan, "dpm")


def test_a_deleted_file_of_a_finished_artifact_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = make_plan(tmp_path)
    (goal,) = pipeline.run(plan, "data")
    manifest = artifacts.read_manifest(goal.folder(plan.runtime))
    first_file(plan).unlink()
    assert states(plan)[0] == "damaged: numbers.json missing; the same command makes it again"
    pipeline.run(plan, "data")
    assert RAN == ["numbers", "numbers"]
    assert f"data {goal.key} has lost numbers.json and is made again" in caplog.text
    again = artifacts.read_manifest(goal.folder(plan.runtime))
    assert manifest is not None
    assert again is not None
    assert again["files"]["numbers.json"] == manifest["files"]["numbers.json"]
    assert again["seconds"] >= manifest["seconds"], "of both times together"
    assert states(plan)[0].startswith("done")


def test_an_artifact_that_comes_out_otherwise_when_made_again_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Numbers.run

    def with_weights(self: Any, job: Job) -> dict[str, Any]:
        np.save(job.folder / "weights.npy", np.array([len(RAN)]))
        return run(self, job)

    monkeypatch.setattr(Numbers, "run", with_weights)
    plan = make_plan(tmp_path)
    for _ in range(2):
        pipeline.run(plan, "data")
        first_file(plan).unlink()
    assert "weights.npy differ from the earlier files" in caplog.text


def test_making_a_deleted_file_again_does_not_hide_that_another_changed(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    (goal,) = pipeline.run(plan, "data")
    first_file(plan).unlink()
    lineage = goal.folder(plan.runtime) / "lineage.json"
    lineage.write_text(lineage.read_text().replace("data", "atad"))
    with pytest.raises(ValueError, match=r"lineage\.json is damaged"):
        pipeline.run(plan, "data")
    assert RAN == ["numbers"]
    assert artifacts.read_manifest(goal.folder(plan.runtime)) is not None


BROKEN = ["{}", "[", "", '{"files": ["a.npy"]}', '{"files": {"a.npy": 5}}', '{"files": {}}']


@pytest.mark.parametrize("text", BROKEN)
def test_one_broken_manifest_does_not_stop_the_status_of_the_others(
    tmp_path: Path, text: str
) -> None:
    plan = make_plan(tmp_path)
    pipeline.run(plan, "dpm")
    manifest = first_file(plan).with_name("manifest.json")
    manifest.write_text(text)
    assert states(plan)[0].startswith(f"damaged: {manifest} is damaged: ")
    assert f"delete {manifest.parent}" in states(plan)[0]
    assert states(plan)[1].startswith("done")
    with pytest.raises(ValueError, match=f"{manifest} is damaged"):
        pipeline.run(plan, "dpm")


def test_a_manifest_that_cannot_be_read_does_not_stop_the_status_of_the_others(
    tmp_path: Path,
) -> None:
    plan = make_plan(tmp_path)
    pipeline.run(plan, "dpm")
    manifest = first_file(plan).with_name("manifest.json")
    manifest.unlink()
    manifest.mkdir()
    assert states(plan)[0].startswith("damaged: ")
    assert str(manifest) in states(plan)[0]
    assert states(plan)[1].startswith("done")


def test_a_run_killed_while_it_reopens_an_artifact_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left seconds.json beside the manifest, which every later run refused."""
    plan = make_plan(tmp_path)
    (goal,) = pipeline.run(plan, "data")
    folder = goal.folder(plan.runtime)
    first_file(plan).unlink()
    with monkeypatch.context() as killed:
        killed.setattr(pipeline, "save_seconds", killed_after(save_seconds))
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(plan, "data")
    assert artifacts.read_manifest(folder) is not None
    pipeline.run(plan, "data")
    assert RAN == ["numbers", "numbers"]
    assert states(plan)[0].startswith("done")
    assert not (folder / artifacts.SECONDS).exists()


def killed_after(function: Any) -> Any:
    """`function`, at whose end the process is stopped."""

    def then_killed(*args: Any) -> None:
        function(*args)
        raise KeyboardInterrupt

    return then_killed


def test_seconds_are_those_of_all_attempts(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, fail=True)
    data, total = plan.nodes.values()
    pipeline.make(data, plan)
    folder = total.folder(plan.runtime)
    folder.mkdir(parents=True)
    save_seconds(folder, 1080.0)  # of an attempt that was killed
    object.__setattr__(total.stage, "error", Preempted("stopped by a signal"))
    with pytest.raises(Preempted):
        pipeline.make(total, plan)
    plan = make_plan(tmp_path)
    pipeline.run(plan, "dpm")
    manifest = artifacts.read_manifest(folder)
    assert manifest is not None
    assert 1080 <= manifest["seconds"] < 1090
    assert "seconds.json" not in manifest["files"]
    assert not (folder / "seconds.json").exists()


# Disks


def test_a_full_disk_is_one_line_that_names_the_folder_and_the_same_command_resumes(
    tmp_path: Path,
) -> None:
    plan = make_plan(tmp_path, fail=True)
    _, total = plan.nodes.values()
    object.__setattr__(total.stage, "error", OSError(28, "No space left on device"))
    folder = total.folder(plan.runtime)
    with pytest.raises(
        OSError, match=f"{folder} cannot be written: its disk .* remedy: free space"
    ):
        pipeline.run(plan, "dpm")
    assert states(plan)[1].startswith(f"failed: {folder} cannot be written")
    plan = make_plan(tmp_path)
    pipeline.run(plan, "dpm")
    assert states(plan)[1].startswith("done")


def test_room_for_all_images_is_asked_for_before_anything_runs(tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    _, total = plan.nodes.values()
    object.__setattr__(total.stage, "space", 10**15)
    most = rf"1,000,000\.000 GB of them of dpm {total.key}"
    rule = rf"must have 1,100,000\.000 GB free for images, {most}"
    with pytest.raises(OSError, match=rule):
        pipeline.run(plan, "dpm")
    assert RAN == []
    pipeline.run(plan, "data")
    with pytest.raises(OSError, match=rule):
        pipeline.make(total, plan)
    assert RAN == ["numbers"]


def test_outputs_that_are_not_writable_are_named_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    rule = f"{tmp_path} is not writable, data cannot be made; remedy: set runtime.outputs"
    with pytest.raises(PermissionError, match=rule):
        pipeline.run(make_plan(tmp_path), "dpm")
    assert not list(tmp_path.iterdir())


MANY = 10**12


@pytest.mark.parametrize(
    "overrides",
    [
        (f"generate.num_images={MANY}",),
        (f"extract.num_images={MANY}",),
        (f"generate.num_images={MANY}", "generate.shard_size=1"),
        ("attacks=tuned", f"tune.num_images={MANY}"),
    ],
    ids=["generate", "extract", "shards of one image", "tune"],
)
def test_a_trillion_images_are_refused_before_they_are_counted_out(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """They hung for minutes: the disk was asked after lists of all shards had been made."""
    the_plan = plan(composed(f"runtime.outputs={tmp_path}/outputs", *overrides))
    with pytest.raises(OSError, match=r"GB free for images, .* remedy: free space, set runtime"):
        pipeline.run(the_plan, "all")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "/deeper/still"])
def test_outputs_must_not_be_a_file(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    rule = f"runtime.outputs must be a folder .*, and {tmp_path}/file is a file, got"
    with pytest.raises(ValueError, match=rule):
        Runtime(outputs=f"{tmp_path}/file{below}")


@dataclass(frozen=True, kw_only=True)
class Rows(Stage):
    """A report's place: it runs whether or not what it reads is empty."""

    name: ClassVar[str] = "report"
    takes_empty: ClassVar[bool] = True

    def run(self, job: Job) -> dict[str, Any]:
        RAN.append("rows")
        return {name: artifacts.Artifact(path).why_empty for name, path in job.inputs.items()}


def test_a_row_without_material_is_empty_to_its_end_and_the_others_are_made(tmp_path: Path) -> None:
    data, more = Node(Numbers(), {"count": 3}), Node(Numbers(count=4), {"count": 4})
    bare = Node(Total(fail=True, error=NoMaterial("nothing repeats")), {}, {"data": data})
    reader = Node(Total(), {}, {"data": data, "dpm": bare})
    whole = Node(Total(), {}, {"data": more})
    rows = Node(Rows(), {}, {"bare": reader, "whole": whole})
    nodes = {node.key: node for node in (data, bare, reader, more, whole, rows)}
    assert len(nodes) == 6
    attacks: dict[str, list[str]] = {"all": [], **{key: [] for key in nodes}}
    plan = Plan(nodes, attacks, Runtime(outputs=str(tmp_path)), Tracking())
    pipeline.run(plan, "report")
    assert RAN == ["numbers", "total", "numbers", "total", "rows"], "an empty one's reader ran"
    for node in (bare, reader):
        assert artifacts.Artifact(node.folder(plan.runtime)).why_empty == "nothing repeats"
    manifest = artifacts.read_manifest(rows.folder(plan.runtime))
    assert manifest is not None
    assert manifest["summary"] == {"bare": "nothing repeats", "whole": None}
    pipeline.run(plan, "report")
    assert RAN[5:] == []


@dataclass(frozen=True, kw_only=True)
class OfFiles(Total):
    """A stage that reads its own summary when its artifact is finished, as `detect` does."""

    def check_artifact(self, folder: Path, summary: Any) -> None:
        assert summary["total"] >= 0

    def source_changed(self, summary: Any, runtime: Runtime) -> str | None:
        return None if summary["total"] else "the files changed"


def test_an_empty_artifact_is_not_checked_against_its_sources(tmp_path: Path) -> None:
    """Its summary holds only the reason: the second run raised KeyError."""
    data = Node(Numbers(), {"count": 3})
    for stage in (OfFiles(fail=True, error=NoMaterial("nothing repeats")), OfFiles()):
        bare = Node(stage, {}, {"data": data})
        nodes = {node.key: node for node in (data, bare)}
        attacks = {"all": ["only"], **{key: ["only"] for key in nodes}}
        plan = Plan(nodes, attacks, Runtime(outputs=str(tmp_path)), Tracking())
        pipeline.run(plan, "dpm")
        assert not pipeline.make(bare, plan)
        assert artifacts.Artifact(bare.folder(plan.runtime)).why_empty == "nothing repeats"
    assert RAN == ["numbers", "total"]
