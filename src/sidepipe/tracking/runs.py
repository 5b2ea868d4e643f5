"""A W&B run per artifact: opening it, sending measurements, closing it with its stage.

The files on disk are the result: errors of W&B are warnings and never fail a stage. No image is
sent unless `tracking.images` is true, as images may show faces of people.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sidepipe.base.interruption import Preempted
from sidepipe.tracking.content import GLOBAL_STEP, Content

log = logging.getLogger(__name__)

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


class Tracked:
    """An open run; this one goes nowhere."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Sends metrics of a training after `step` optimizer steps."""

    def send(self, measure: Callable[[bool], Content]) -> None:
        """Sends what `measure(images)` finds in the finished artifact."""

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        """Closes the run."""


class _WandbTracked(Tracked):
    def __init__(self, run: Any, stage: str, key: str, tracking: "Tracking") -> None:
        self.run, self.stage, self.key, self.tracking = run, stage, key, tracking
        self.works, self.is_sent = True, False
        self._try(lambda run: define_training(run, stage), run)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        named = {f"{self.stage}/{name}": value for name, value in metrics.items()}
        self._try(self.run.log, {**named, GLOBAL_STEP: step})

    def send(self, measure: Callable[[bool], Content]) -> None:
        def send_measured(images: bool) -> None:
            send(self.run, stage=self.stage, key=self.key, content=measure(images))

        self._try(send_measured, self.tracking.images)
        self.is_sent = self.works

    def finish(self, exit_code: int, preempted: bool = False) -> None:
        if preempted:
            self._try(lambda _: self.run.mark_preempting(), None)
        worked, self.works = self.works, True  # a run that could not log may still be closed
        self._try(self.run.finish, exit_code)
        if self.is_sent and worked and self.works and self.tracking.mode == "online":
            mark = sent_mark(self.tracking.resolved, self.run.entity, self.run.project, self.run.id)
            self._try(note_sent, mark)

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


def define_training(run: Any, stage: str) -> None:
    """Draws the metrics of the stage over optimizer steps."""
    run.define_metric(GLOBAL_STEP)
    run.define_metric(f"{stage}/*", step_metric=GLOBAL_STEP)


def send(run: Any, *, stage: str, key: str, content: Content) -> None:
    """Sends the content of a finished artifact to its open run."""
    for axis, rows in content.curves.items():
        for name in [axis, *(name for name in rows[0] if name != axis)]:
            # The last row of a curve is no summary of the run.
            last = {} if name in content.summary else {"summary": "none"}
            run.define_metric(name, step_metric=None if name == axis else axis, **last)
        for row in rows:
            run.log(row)
    run.summary.update(dict(content.summary))
    import wandb

    for key, pictures in content.pictures.items():
        shown = [wandb.Image(str(p) if isinstance(p, Path) else p) for p in pictures]
        run.log({key: shown})
    files = {"files": dict(content.files)}
    run.log_artifact(wandb.Artifact(f"{stage}-{key}", stage, metadata=files))


def sent_mark(folder: Path, entity: str, project: str, run: str) -> Path:
    """The file below a `tracking.folder` that exists once the server has the whole run."""
    return folder / "sent" / entity / project / run


def note_sent(mark: Path) -> None:
    """Makes the mark of a run."""
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


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
        try:
            run = self.start(self.mode, stage, key, config)
        except Preempted:
            raise
        except Exception as error:  # as above: tracking may fail, the stage may not
            log.warning(
                "W&B is not tracking %s %s %s: %s; results are on disk all the same, and make sync "
                "sends them",
                stage,
                key,
                self.mode,
                error,
            )
            return Tracked()
        return _WandbTracked(run, stage, key, self)

    @property
    def resolved(self) -> Path:
        """The folder, absolute."""
        return Path(self.folder).expanduser().resolve()

    def run_id(self, key: str) -> str:
        """The id of an artifact's run; each group has runs of its own of what it shares."""
        return f"{self.group}-{key}" if self.group else key

    def start(
        self, mode: Mode, stage: str, key: str, config: Mapping[str, Any], **settings: Any
    ) -> Any:
        """The opened W&B run of an artifact; a repeated call resumes it.

        settings: of W&B, further ones. Raises errors of many kinds where W&B cannot open it.
        """
        keep_beside(self.resolved)
        self.resolved.mkdir(parents=True, exist_ok=True)
        if mode == "offline":
            os.environ["WANDB_MODE"] = "offline"  # read once, at the import
            # Online it is the user's own: it names the server of `wandb login`.
            os.environ["WANDB_CONFIG_DIR"] = str(self.resolved / "config_dir")
        import wandb

        return wandb.init(
            id=self.run_id(key),
            name=" ".join(filter(None, (stage, config.get("point"), key))),
            job_type=stage,
            resume="allow",  # a resumed run appends to its history
            project=self.project,
            group=self.group,
            tags=self.tags,
            dir=str(self.resolved),
            config=dict(config),
            mode=mode,
            settings=wandb.Settings(**_SETTINGS, **settings),
        )


def keep_beside(folder: Path) -> None:
    """Makes wandb keep its staged files next to the runs in `folder`, not at home.

    Before wandb is imported, which reads this once.
    """
    for name in ("DATA_DIR", "CACHE_DIR"):
        os.environ[f"WANDB_{name}"] = str(folder / name.lower())
    os.environ["WANDB_ERROR_REPORTING"] = "false"
