"""A W&B run per artifact: opening it, sending measurements, closing it with its stage.

The files on disk are the result: errors of W&B are warnings and never fail a stage. No image is
sent unless `tracking.images` is true, as images may show faces of people.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sidepipe.base.interruption import Preempted

log = logging.getLogger(__name__)

# The x axis of training metrics: optimizer steps.
GLOBAL_STEP = "trainer/global_step"
_SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "init_timeout": 20,
    "login_timeout": 20,
    "x_transaction_log_flush_interval": 1,  # a killed run loses a second, not fifteen
    # What was installed and run is in the manifest, where it belongs to the artifact.
    "x_disable_meta": True,
    "x_save_requirements": False,
}

Mode = Literal["offline", "online"]


@dataclass(frozen=True)
class Content:
    """The content that a finished artifact sends to W&B.

    summary: single values by key. curves: of each x axis, rows that hold it and what is drawn over
    it. pictures: images or files of them by key. files: of the artifact's folder, by name; a
    reference with its checksum is sent, never the file.
    """

    summary: Mapping[str, float | str] = field(default_factory=dict)
    curves: Mapping[str, list[dict[str, float]]] = field(default_factory=dict)
    pictures: Mapping[str, list[Any]] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)


class Tracked:
    """An open run; this one goes nowhere."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Sends metrics of a training after `step` optimizer steps."""

    def send(self, measure: Callable[[bool], Content]) -> None:
        """Sends what `measure(images)` finds in the finished artifact."""

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        """Closes the run."""


class _WandbTracked(Tracked):
    def __init__(self, run: Any, stage: str, images: bool) -> None:
        self.run, self.stage, self.images, self.works = run, stage, images, True
        self._try(self.run.define_metric, GLOBAL_STEP)
        self._try(lambda name: run.define_metric(name, step_metric=GLOBAL_STEP), f"{stage}/*")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        named = {f"{self.stage}/{name}": value for name, value in metrics.items()}
        self._try(self.run.log, {**named, GLOBAL_STEP: step})

    def send(self, measure: Callable[[bool], Content]) -> None:
        self._try(lambda images: self._send(measure(images)), self.images)

    def _send(self, content: Content) -> None:
        for axis, rows in content.curves.items():
            self._define(axis, rows)
            for row in rows:
                self.run.log(row)
        self.run.summary.update(dict(content.summary))
        import wandb

        for key, pictures in content.pictures.items():
            shown = [wandb.Image(str(p) if isinstance(p, Path) else p) for p in pictures]
            self.run.log({key: shown})
        artifact = wandb.Artifact(f"{self.stage}-{self.run.id}", self.stage)
        for name, path in content.files.items():
            artifact.add_reference(path.resolve().as_uri(), name=name, checksum=True)
        self.run.log_artifact(artifact)

    def _define(self, axis: str, rows: list[dict[str, float]]) -> None:
        """Draws a curve over its axis; the last row of several is no summary of the run."""
        alone = {} if len(rows) == 1 else {"summary": "none"}
        self.run.define_metric(axis, **alone)
        for name in rows[0]:
            if name != axis:
                self.run.define_metric(name, step_metric=axis, **alone)

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        if preempted:
            self._try(lambda _: self.run.mark_preempting(), None)
        self.works = True  # a run that could not log may still be closed
        self._try(self.run.finish, exit_code)

    def _try(self, function: Callable[[Any], Any], content: Any) -> None:
        if not self.works:
            return
        try:
            function(content)
        except Preempted:
            raise  # a signal came in the middle of it
        except Exception as error:  # wandb raises many kinds, and none may fail the stage
            self.works = False  # one warning, not one every few steps
            log.warning("W&B stopped tracking: %s; results are on disk all the same", error)


# The run of the stage at work; the metrics logger of its trainer writes here too.
current: list[Tracked] = [Tracked()]


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where runs are tracked: `none`, `offline` (files in `folder`) or `online`. Never in a key.

    group, tags: the command line fills in its sweep and its experiment where the config has null.
    images: whether sample grids and pairs are sent too.
    """

    mode: Literal["none", "offline", "online"] = "none"
    project: str = "sidepipe"
    group: str | None = None
    tags: list | None = None
    folder: str = "outputs/wandb"
    images: bool = False

    @contextmanager
    def run(self, stage: str, key: str, config: Mapping[str, Any]) -> Iterator[Tracked]:
        """Tracks a stage's artifact as one run whose id is its key.

        A stage that raises is recorded as failed, one that a signal stops as preempted.
        """
        tracked = self._open(stage, key, config)
        current.append(tracked)
        try:
            yield tracked
        except BaseException as error:
            tracked.finish(exit_code=1, preempted=isinstance(error, Preempted))
            raise
        else:
            tracked.finish(exit_code=0)
        finally:
            current.pop()

    def _open(self, stage: str, key: str, config: Mapping[str, Any]) -> Tracked:
        if self.mode == "none":
            return Tracked()
        keep_beside(Path(self.folder).expanduser().resolve())
        modes: list[Mode] = ["online", "offline"] if self.mode == "online" else ["offline"]
        for mode in modes:
            try:
                return self._started(mode, stage, key, config)
            except Preempted:
                raise
            except Exception as error:  # as above: tracking may fail, the stage may not
                instead = "results are on disk all the same" if mode == "offline" else "now offline"
                log.warning(
                    "W&B is not tracking %s %s %s: %s; %s", stage, key, mode, error, instead
                )
        return Tracked()

    def _started(self, mode: Mode, stage: str, key: str, config: Mapping[str, Any]) -> Tracked:
        folder = Path(self.folder).expanduser().resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if mode == "offline":
            os.environ["WANDB_MODE"] = "offline"  # read once, at the import
            # Online it is the user's own: it names the server of `wandb login`.
            os.environ["WANDB_CONFIG_DIR"] = str(folder / "config_dir")
        import wandb

        run = wandb.init(
            id=key,
            name=" ".join(filter(None, (stage, config.get("attack"), key))),
            job_type=stage,
            resume="allow",  # a resumed run appends to its history
            project=self.project,
            group=self.group,
            tags=self.tags,
            dir=str(folder),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(**_SETTINGS),
        )
        return _WandbTracked(run, stage, self.images)


def keep_beside(folder: Path) -> None:
    """Makes wandb keep its staged files next to the runs in `folder`, not at home.

    Before wandb is imported, which reads this once. Uploading needs the staged files again.
    """
    for name in ("DATA_DIR", "CACHE_DIR"):
        os.environ[f"WANDB_{name}"] = str(folder / name.lower())
    os.environ["WANDB_ERROR_REPORTING"] = "false"
