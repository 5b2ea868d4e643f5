"""Runs told to a module in wandb's place: what it hears, and that its failures harm nobody."""

import os
import sys
from types import SimpleNamespace

import pytest
from tests.composing import composed

from sidepipe.base.interruption import Preempted
from sidepipe.engine.plan import plan
from sidepipe.tracking import Content, MetricsCSV, Tracking
from sidepipe.tracking.content import GLOBAL_STEP, history


class FakeRun:
    """Keeps what it is told; a call named in `broken` raises instead."""

    def __init__(self, key="0123456789ab"):
        self.id, self.broken, self.calls, self.exit_code = key, (), [], None
        self.entity, self.project = "lab", "faces"
        self.logged, self.metrics, self.summarized, self.artifacts = [], {}, {}, []
        self.summary = SimpleNamespace(update=self.update)

    def call(self, name):
        self.calls.append(name)
        if name in self.broken:
            raise OSError(f"{name}: the service is gone")

    def define_metric(self, name, step_metric=None, summary=None):
        self.call("define_metric")
        self.metrics[name] = (step_metric, summary)

    def log(self, content):
        self.call("log")
        self.logged.append(content)

    def update(self, content):
        self.call("update")
        self.summarized |= content

    def log_artifact(self, artifact):
        self.call("log_artifact")
        self.artifacts.append(artifact)

    def mark_preempting(self):
        self.call("mark_preempting")

    def finish(self, exit_code):
        self.call("finish")
        self.exit_code = exit_code


class FakeArtifact:
    def __init__(self, name, kind, metadata):
        self.name, self.type, self.metadata = name, kind, metadata


@pytest.fixture
def wandb(monkeypatch):
    """The run to come, and the arguments of each `init`; modes in `unreachable` raise."""
    fake = SimpleNamespace(run=FakeRun(), inits=[], unreachable=())
    fake.Settings = lambda **settings: settings
    fake.Artifact, fake.Image = FakeArtifact, lambda picture: ("picture", picture)

    def init(**arguments):
        fake.inits.append(arguments)
        if arguments["mode"] in fake.unreachable:
            raise OSError("no server answers")
        return fake.run

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def tracking(folder, mode="offline", **changes):
    return Tracking(mode=mode, folder=str(folder / "wandb"), **changes)


# the options


@pytest.mark.parametrize("mode", ["none", "offline", "online"])
def test_an_option_is_named_as_its_mode_and_sends_no_images(mode):
    chosen = plan(composed(f"tracking={mode}", "runtime.outputs=there")).tracking
    assert chosen == Tracking(mode=mode, folder="there/wandb", images=False)


# no tracking


def test_without_tracking_nothing_is_written_and_wandb_not_imported(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    before = dict(os.environ)
    with tracking(tmp_path, "none").run("dpm", "0123456789ab", {"lr": 1}) as tracked:
        tracked.log({"loss": 1.0}, 1)
        tracked.send(lambda images: pytest.fail("nobody asked"))
        MetricsCSV(tmp_path / "metrics.csv").log_metrics({"loss": 1.0}, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
    assert dict(os.environ) == before
    assert not caplog.records


@pytest.mark.parametrize("mode", ["none", "offline"])
def test_an_error_is_the_stages_own(tmp_path, wandb, mode):
    with (
        pytest.raises(ValueError, match="of the stage"),
        tracking(tmp_path, mode).run("a", "b", {}),
    ):
        raise ValueError("of the stage")


# one run per artifact


def test_a_run_is_the_artifacts(tmp_path, wandb):
    config = {"stage": "evaluate", "point": "side, a=1", "dpm": {"num_train_images": 500}}
    tracked_by = tracking(tmp_path, project="faces", group="sizes", tags=["a"])
    with tracked_by.run("evaluate", "0123456789ab", config):
        pass
    [init] = wandb.inits
    settings = init.pop("settings")
    assert init == {
        "id": "sizes-0123456789ab",
        "name": "evaluate side, a=1 0123456789ab",
        "job_type": "evaluate",
        "resume": "allow",
        "project": "faces",
        "group": "sizes",
        "tags": ["a"],
        "dir": str(tmp_path / "wandb"),
        "config": config,
        "mode": "offline",
    }
    assert settings["console"] == "off"
    assert settings["init_timeout"] == 20
    assert settings["x_transaction_log_flush_interval"] == 1
    assert wandb.run.metrics == {GLOBAL_STEP: (None, None), "evaluate/*": (GLOBAL_STEP, None)}
    assert wandb.run.exit_code == 0
    assert os.environ["WANDB_MODE"] == "offline"


def test_an_online_run_is_not_made_offline(tmp_path, wandb):
    with tracking(tmp_path, "online").run("dpm", "0", {}):
        pass
    assert [init["mode"] for init in wandb.inits] == ["online"]
    assert "WANDB_MODE" not in os.environ
    assert "WANDB_CONFIG_DIR" not in os.environ, "it says which server the user logged in to"


def test_metrics_of_a_trainer_go_to_the_run_that_is_open_under_its_stage(tmp_path, wandb):
    logger = MetricsCSV(tmp_path / "metrics.csv")
    logger.log_metrics({"loss": 3.0}, 0)
    with tracking(tmp_path).run("dpm", "0", {}):
        logger.log_metrics({"loss": 2.0, "epoch": 0}, 1)
        logger.forward([(7, "val/loss", 0.5)])
    logger.log_metrics({"loss": 1.0}, 2)
    assert wandb.run.logged == [
        {"dpm/loss": 2.0, GLOBAL_STEP: 2},
        {"dpm/val/loss": 0.5, GLOBAL_STEP: 7},
    ]


def content(folder, images):
    return Content(
        summary={"evaluate/transform": "pixels", "evaluate/hits": 3, "evaluate/z": 4},
        curves={
            "evaluate/n": [{"evaluate/n": 20, "evaluate/hits": 3}],
            "evaluate/x": [{"evaluate/x": 1, "evaluate/y": 5}, {"evaluate/x": 2, "evaluate/y": 8}],
            "sweep/a": [{"sweep/a": 1, "evaluate/z": 4}, {"sweep/a": 2, "evaluate/z": 4}],
        },
        pictures={"evaluate/pairs": [folder / "a.png", "drawn"]} if images else {},
        files={"model/a.bin": {"bytes": 7, "sha256": "abc"}},
    )


def test_a_finished_artifact_sends_values_curves_over_their_axes_and_checksums(tmp_path, wandb):
    with tracking(tmp_path).run("evaluate", "0123456789ab", {}) as tracked:
        tracked.send(lambda images: content(tmp_path, images))
    run = wandb.run
    assert run.summarized == {"evaluate/transform": "pixels", "evaluate/hits": 3, "evaluate/z": 4}
    assert run.logged == [
        {"evaluate/n": 20, "evaluate/hits": 3},
        {"evaluate/x": 1, "evaluate/y": 5},
        {"evaluate/x": 2, "evaluate/y": 8},
        {"sweep/a": 1, "evaluate/z": 4},
        {"sweep/a": 2, "evaluate/z": 4},
    ]
    assert run.metrics["evaluate/hits"] == ("evaluate/n", None)
    assert run.metrics["evaluate/y"] == ("evaluate/x", "none")
    assert run.metrics["evaluate/z"] == ("sweep/a", None), "it is in the summary"
    [artifact] = run.artifacts
    assert (artifact.name, artifact.type) == ("evaluate-0123456789ab", "evaluate")
    assert artifact.metadata == {"files": {"model/a.bin": {"bytes": 7, "sha256": "abc"}}}


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("images", [False, True])
def test_pictures_are_sent_only_where_they_are_asked_for(tmp_path, wandb, mode, images):
    asked = {"images": True} if images else {}
    with tracking(tmp_path, mode, **asked).run("evaluate", "0123456789ab", {}) as tracked:
        tracked.send(lambda images: content(tmp_path, images))
    sent = [row for row in wandb.run.logged if "evaluate/pairs" in row]
    shown = [("picture", str(tmp_path / "a.png")), ("picture", "drawn")]
    assert sent == ([{"evaluate/pairs": shown}] if images else [])


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("broken", [(), ("log_artifact",), ("finish",)])
def test_only_a_run_that_arrived_whole_is_noted_as_sent(tmp_path, wandb, mode, broken):
    wandb.run.broken = broken
    with tracking(tmp_path, mode).run("evaluate", "0123456789ab", {}) as tracked:
        tracked.send(lambda images: content(tmp_path, images))
    sent = [path.relative_to(tmp_path) for path in tmp_path.glob("wandb/sent/*/*/*")]
    whole = mode == "online" and not broken
    assert list(map(str, sent)) == (["wandb/sent/lab/faces/0123456789ab"] if whole else [])


# how a run ends


def test_a_stage_that_fails_is_recorded_as_failed(tmp_path, wandb):
    with pytest.raises(ValueError, match="of the stage"), tracking(tmp_path).run("dpm", "0", {}):
        raise ValueError("of the stage")
    assert wandb.run.exit_code == 1
    assert "mark_preempting" not in wandb.run.calls
    MetricsCSV(tmp_path / "metrics.csv").log_metrics({"loss": 1.0}, 2)
    assert not wandb.run.logged, "the failed run is open no more"


def test_a_stage_that_was_asked_to_stop_is_recorded_as_preempting(tmp_path, wandb):
    with pytest.raises(Preempted), tracking(tmp_path).run("dpm", "0", {}):
        raise Preempted("SIGTERM")
    assert wandb.run.calls[-2:] == ["mark_preempting", "finish"]
    assert wandb.run.exit_code == 1


@pytest.mark.parametrize("at", ["init", "log"])
def test_a_signal_that_comes_while_wandb_is_at_work_stops_the_stage(tmp_path, wandb, at):
    def stop(*arguments, **named):
        raise Preempted("SIGTERM")

    setattr(wandb if at == "init" else wandb.run, at, stop)
    with pytest.raises(Preempted), tracking(tmp_path).run("dpm", "0", {}) as tracked:
        tracked.log({"loss": 1.0}, 1)
    assert wandb.run.calls[-1:] == ([] if at == "init" else ["finish"])


# W&B that fails


def test_a_wandb_that_is_not_there_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracking(tmp_path).run("dpm", "0", {}) as tracked:
        tracked.log({"loss": 1.0}, 1)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "W&B is not tracking dpm 0 offline: import of wandb halted" in record.message


def test_a_server_that_cannot_be_reached_is_a_warning(tmp_path, wandb, caplog):
    wandb.unreachable = ("online",)
    with tracking(tmp_path, "online").run("dpm", "0", {}) as tracked:
        tracked.log({"loss": 1.0}, 1)
    assert [init["mode"] for init in wandb.inits] == ["online"]
    assert not wandb.run.logged
    [record] = caplog.records
    assert "not tracking dpm 0 online: no server answers" in record.message
    assert "make sync sends them" in record.message


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, wandb, caplog):
    (tmp_path / "wandb").write_text("a file is in the way")
    with tracking(tmp_path).run("dpm", "0", {}):
        pass
    [record] = caplog.records
    assert "results are on disk all the same" in record.message


@pytest.mark.parametrize("broken", ["init", "Settings"])
def test_a_run_that_cannot_be_opened_is_a_warning(tmp_path, wandb, caplog, broken):
    def fail(**arguments):
        raise OSError("the server is gone")

    setattr(wandb, broken, fail)
    with tracking(tmp_path).run("dpm", "0", {}) as tracked:
        tracked.log({"loss": 1.0}, 1)
        tracked.send(lambda images: content(tmp_path, images))
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "W&B is not tracking dpm 0 offline: " in record.message


@pytest.mark.parametrize(
    "broken", ["define_metric", "log", "update", "log_artifact", "mark_preempting", "finish"]
)
def test_a_run_that_breaks_is_one_warning_and_is_still_closed(tmp_path, wandb, caplog, broken):
    wandb.run.broken = [broken]
    logger = MetricsCSV(tmp_path / "metrics.csv")

    def stage(tracked):
        for step in range(3):
            logger.log_metrics({"loss": 1.0}, step)
        tracked.send(lambda images: content(tmp_path, images))
        raise Preempted("SIGTERM")

    with pytest.raises(Preempted), tracking(tmp_path).run("dpm", "0", {}) as tracked:
        stage(tracked)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert f"W&B stopped tracking: {broken}: the service is gone" in record.message
    assert wandb.run.calls[-1] == "finish"
    assert len(logger.rows()) == 3


def test_an_artifact_that_cannot_be_read_back_is_a_warning(tmp_path, wandb, caplog):
    def fail(images):
        raise KeyError("a file of another version")

    with tracking(tmp_path).run("dpm", "0", {}) as tracked:
        tracked.send(fail)
    assert wandb.run.exit_code == 0
    assert "another version" in caplog.records[0].message


def test_an_error_of_the_stage_is_not_hidden_by_one_of_wandb(tmp_path, wandb):
    wandb.run.broken = ["finish"]
    with pytest.raises(ValueError, match="of the stage"), tracking(tmp_path).run("dpm", "0", {}):
        raise ValueError("of the stage")


def test_a_history_has_a_row_per_step_and_the_later_value_of_a_repeated_step(tmp_path):
    path = tmp_path / "metrics.csv"
    assert history("dpm", path) == []
    path.write_text("step,metric,value\n1,loss,3\n2,loss,9\n2,loss,2\n2,val/loss,5\n1,a,0\n")
    assert history("dpm", path) == [
        {GLOBAL_STEP: 1, "dpm/loss": 3.0, "dpm/a": 0.0},
        {GLOBAL_STEP: 2, "dpm/loss": 2.0, "dpm/val/loss": 5.0},
    ]
