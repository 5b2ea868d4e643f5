import os
import sys
from types import SimpleNamespace

import pytest
from tests.tiny import DIGITS, RUNTIME, SETTINGS

from sidepipe.dpm.stage import TrainDPM
from sidepipe.tracking import MetricsCSV, Tracking

ENVIRONMENT = [
    *("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"),
    *("WANDB_ERROR_REPORTING", "WANDB_MODE"),
]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """As it was, afterwards; and nothing said beforehand."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, "")  # so that its absence is restored
        monkeypatch.delenv(name)


class FakeRun:
    """Keeps what it is told; a call named in `broken` raises instead."""

    def __init__(self, broken=()):
        self.broken, self.logged, self.exit_code, self.metrics = broken, [], None, []
        self.calls, self.summary = [], SimpleNamespace(update=self.update)

    def call(self, name):
        self.calls.append(name)
        if name in self.broken:
            raise OSError(f"{name}: the service is gone")

    def define_metric(self, name, step_metric=None):
        self.call("define_metric")
        self.metrics.append((name, step_metric))

    def log(self, content):
        self.call("log")
        self.logged.append(content)

    def update(self, content):
        self.call("update")
        self.summarised = content

    def finish(self, exit_code):
        self.call("finish")
        self.exit_code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place: the run to come, and the arguments of `init`."""
    fake = SimpleNamespace(run=FakeRun(), arguments={}, Settings=lambda **settings: settings)

    def init(**arguments):
        fake.arguments = arguments
        return fake.run

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def tracking(folder, mode="offline", **changes):
    return Tracking(mode=mode, folder=str(folder / "wandb"), **changes)


# metrics on disk


def test_metrics_are_appended_across_loggers_under_one_header(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsCSV(path).log_metrics({"loss": 0.5, "epoch": 0}, 0)
    MetricsCSV(path).log_metrics({"loss": 0.25, "val/loss": 1234567.0}, 9)
    assert path.read_text().splitlines() == [
        "step,metric,value",
        "1,loss,0.5",
        "10,loss,0.25",
        "10,val/loss,1.23457e+06",
    ]
    assert MetricsCSV(path).rows() == [
        *((1, "loss", 0.5), (10, "loss", 0.25), (10, "val/loss", 1234570.0)),
    ]


def test_a_file_that_is_not_there_has_no_rows(tmp_path):
    assert MetricsCSV(tmp_path / "metrics.csv").rows() == []


# no tracking


def test_without_tracking_nothing_is_written_and_wandb_not_imported(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    before = dict(os.environ)
    with tracking(tmp_path, "none").run("dpm", "0123456789ab", {"lr": 1}) as tracked:
        tracked.log({"loss": 1.0}, 1)
        tracked.summary({"images": 3})
        MetricsCSV(tmp_path / "metrics.csv").log_metrics({"loss": 1.0}, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]
    assert dict(os.environ) == before
    assert not caplog.records


def test_without_tracking_an_error_is_the_stages_own(tmp_path):
    with (
        pytest.raises(ValueError, match="of the stage"),
        tracking(tmp_path, "none").run("a", "b", {}),
    ):
        raise ValueError("of the stage")


# one run per artifact


def test_a_run_is_the_artifacts(tmp_path, wandb):
    settings = {"stage": "dpm", "settings": {"lr": 0.1}}
    tracked_by = tracking(tmp_path, project="faces", group="sweep", tags=["a"])
    with tracked_by.run("dpm", "0123456789ab", settings) as tracked:
        tracked.summary({"loss": 0.5, "path": "x", "quality": [1, 2], "files": {"a": "b"}})
    arguments = {k: v for k, v in wandb.arguments.items() if k != "settings"}
    assert arguments == {
        "id": "0123456789ab",
        "name": "dpm 0123456789ab",
        "job_type": "dpm",
        "resume": "allow",
        "project": "faces",
        "group": "sweep",
        "tags": ["a"],
        "dir": str(tmp_path / "wandb"),
        "config": settings,
        "mode": "offline",
    }
    assert wandb.run.metrics == [("step", None), ("*", "step")]
    assert wandb.run.summarised == {"loss": 0.5, "path": "x"}
    assert wandb.run.exit_code == 0
    assert os.environ["WANDB_MODE"] == "offline"


def test_an_online_run_is_not_made_offline(tmp_path, wandb):
    with tracking(tmp_path, "online").run("dpm", "0", {}):
        pass
    assert wandb.arguments["mode"] == "online"
    assert "WANDB_MODE" not in os.environ


def test_metrics_of_a_trainer_go_to_the_run_that_is_open(tmp_path, wandb):
    logger = MetricsCSV(tmp_path / "metrics.csv")
    logger.log_metrics({"loss": 3.0}, 0)
    with tracking(tmp_path).run("dpm", "0", {}):
        logger.log_metrics({"loss": 2.0, "epoch": 0}, 1)
        logger.forward([(7, "val/loss", 0.5)])
    logger.log_metrics({"loss": 1.0}, 2)
    assert wandb.run.logged == [{"loss": 2.0, "step": 2}, {"val/loss": 0.5, "step": 7}]


def test_a_stage_that_fails_is_recorded_as_failed(tmp_path, wandb):
    with pytest.raises(ValueError, match="of the stage"), tracking(tmp_path).run("dpm", "0", {}):
        raise ValueError("of the stage")
    assert wandb.run.exit_code == 1
    MetricsCSV(tmp_path / "metrics.csv").log_metrics({"loss": 1.0}, 2)
    assert not wandb.run.logged, "the failed run is open no more"


# W&B that fails


def test_a_wandb_that_is_not_there_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracking(tmp_path).run("dpm", "0", {}) as tracked:
        tracked.log({"loss": 1.0}, 1)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "W&B is not tracking dpm 0: import of wandb halted" in record.message


@pytest.mark.parametrize("broken", ["init", "Settings", "define_metric"])
def test_a_run_that_cannot_be_opened_is_a_warning(tmp_path, wandb, caplog, broken):
    def fail(**arguments):
        raise OSError("the server is gone")

    wandb.run.broken = [broken]
    if broken != "define_metric":
        setattr(wandb, broken, fail)
    with tracking(tmp_path).run("dpm", "0", {}) as tracked:
        tracked.log({"loss": 1.0}, 1)
        tracked.summary({"loss": 1.0})
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "W&B is not tracking dpm 0: " in record.message


@pytest.mark.parametrize("broken", ["log", "update", "finish"])
def test_a_run_that_breaks_is_one_warning_and_is_still_closed(tmp_path, wandb, caplog, broken):
    wandb.run.broken = [broken]
    logger = MetricsCSV(tmp_path / "metrics.csv")
    with tracking(tmp_path).run("dpm", "0", {}) as tracked:
        for step in range(3):
            logger.log_metrics({"loss": 1.0}, step)
        tracked.summary({"loss": 1.0})
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert f"W&B stopped tracking: {broken}: the service is gone" in record.message
    assert wandb.run.calls[-1] == "finish"
    assert len(logger.rows()) == 3


def test_an_error_of_the_stage_is_not_hidden_by_one_of_wandb(tmp_path, wandb):
    wandb.run.broken = ["finish"]
    with pytest.raises(ValueError, match="of the stage"), tracking(tmp_path).run("dpm", "0", {}):
        raise ValueError("of the stage")


# the real one


@pytest.mark.slow
def test_an_offline_run_stays_in_its_folder_and_holds_no_images(tmp_path, monkeypatch):
    home, outputs, work = (tmp_path / name for name in ("home", "outputs", "work"))
    for folder in (home, work, outputs / "data", outputs / "dpm"):
        folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    DIGITS.run(outputs / "data", {}, RUNTIME)
    with tracking(outputs).run("dpm", "0123456789ab", {"lr": 0.1}) as tracked:
        summary = TrainDPM(**SETTINGS).run(outputs / "dpm", {"data": outputs / "data"}, RUNTIME)
        tracked.summary(summary)
    assert not list(home.iterdir())
    assert not list(work.iterdir())
    assert sorted(p.name for p in outputs.iterdir()) == ["data", "dpm", "wandb"]
    [run] = (outputs / "wandb").rglob("run-0123456789ab.wandb")
    content = run.read_bytes()
    for name in (b"val/loss_heldout", b"num_heldout_images"):
        assert name in content
    files = [p for p in (outputs / "wandb").rglob("*") if p.is_file()]
    assert not [p for p in files if p.suffix in (".png", ".jpg", ".npy", ".safetensors", ".ckpt")]
    assert sum(p.stat().st_size for p in files) < 500_000
