"""One W&B run per artifact, off by default; metrics always go to a CSV in the artifact's folder.

The truth is on disk: W&B may fail without failing a stage. No images are ever sent: they are
people's faces.
"""

import csv
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)


class Tracked:
    """An open run; this one goes nowhere."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def summary(self, content: Mapping[str, Any]) -> None:
        pass


class _WandbTracked(Tracked):
    def __init__(self, run: Any) -> None:
        self.run, self.works = run, True

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._try(self.run.log, {**metrics, "step": step})

    def summary(self, content: Mapping[str, Any]) -> None:
        plain = {k: v for k, v in content.items() if isinstance(v, int | float | str)}
        self._try(self.run.summary.update, plain)

    def finish(self, exit_code: int) -> None:
        self.works = True  # a run that could not log may still be closed
        self._try(self.run.finish, exit_code)

    def _try(self, function: Callable[[Any], Any], content: Any) -> None:
        if not self.works:
            return
        try:
            function(content)
        except Exception as error:  # wandb raises many kinds, and none may fail the stage
            self.works = False  # one warning, not one every few steps
            log.warning("W&B stopped tracking: %s; results are on disk all the same", error)


# The run of the stage at work; the metrics logger of its trainer writes here too.
_current: list[Tracked] = [Tracked()]


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where runs are tracked: `none`, `offline` (files in `folder`) or `online`. Never in a key."""

    mode: Literal["none", "offline", "online"] = "none"
    project: str = "sidepipe"
    group: str | None = None
    tags: list | None = None
    folder: str = "outputs/wandb"

    @contextmanager
    def run(self, stage: str, key: str, config: Mapping[str, Any]) -> Iterator[Tracked]:
        """Tracks a stage's artifact as one run whose id is its key.

        A stage that raises is recorded as failed. A W&B that fails is a warning.
        """
        tracked = self._open(stage, key, config)
        _current.append(tracked)
        failed = True
        try:
            yield tracked
            failed = False
        finally:
            _current.pop()
            if isinstance(tracked, _WandbTracked):
                tracked.finish(exit_code=int(failed))

    def _open(self, stage: str, key: str, config: Mapping[str, Any]) -> Tracked:
        if self.mode == "none":
            return Tracked()
        folder = Path(self.folder).resolve()
        # Before the import: wandb reads these once. Staged files stay beside the runs, not at home.
        for name in ("DATA_DIR", "CACHE_DIR", "CONFIG_DIR"):
            os.environ.setdefault(f"WANDB_{name}", str(folder / name.lower()))
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if self.mode == "offline":
            os.environ["WANDB_MODE"] = "offline"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            import wandb

            settings = wandb.Settings(
                console="off", init_timeout=20, x_transaction_log_flush_interval=1, disable_git=True
            )
            run = wandb.init(
                id=key,
                name=f"{stage} {key}",
                job_type=stage,
                resume="allow",
                project=self.project,
                group=self.group,
                tags=self.tags,
                dir=str(folder),
                config=dict(config),
                settings=settings,
                mode=self.mode,
            )
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            return _WandbTracked(run)
        except Exception as error:  # as above: tracking may fail, the stage may not
            log.warning(
                "W&B is not tracking %s %s: %s; results are on disk all the same", stage, key, error
            )
            return Tracked()


class MetricsCSV(Logger):
    """Lightning logger that appends (step, metric, value) rows and forwards them to tracking.

    step: optimizer steps taken. Appends, so that a resumed run keeps its history; where a step was
    logged twice the later row holds. Lightning's own CSVLogger deletes the earlier file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> int:
        return 0

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass  # settings.json has them

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        taken = 0 if step is None else step + 1  # Lightning says the last step's index
        rows = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "metric", "value"])
            writer.writerows([taken, name, f"{value:.6g}"] for name, value in rows.items())
        if rows:
            _current[-1].log(rows, taken)

    def rows(self) -> list[tuple[int, str, float]]:
        """Everything logged so far, in order."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [(int(step), name, float(v)) for step, name, v in list(csv.reader(file))[1:]]

    def forward(self, rows: Sequence[tuple[int, str, float]]) -> None:
        """Sends to tracking what spawned processes logged; W&B runs live in the first process."""
        for step, name, value in rows:
            _current[-1].log({name: value}, step)
