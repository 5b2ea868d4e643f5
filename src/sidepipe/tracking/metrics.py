"""A training's metrics: always in a CSV file of the artifact's folder, and in the run that is open.

The file is the truth; its steps are optimizer steps taken.
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from sidepipe.tracking.content import read_metrics
from sidepipe.tracking.runs import current


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
        taken = 0 if step is None else step + 1  # Lightning passes the index of the last step
        rows = {name: float(value) for name, value in metrics.items() if name != "epoch"}
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "metric", "value"])
            writer.writerows([taken, name, f"{value:.6g}"] for name, value in rows.items())
        if rows:
            current[-1].log(rows, taken)

    def drop_half_line(self) -> None:
        """Removes what a killed run, or a full disk, left of a last line."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            self.path.write_bytes(whole)

    def rows(self) -> list[tuple[int, str, float]]:
        """Everything logged so far, in order."""
        return read_metrics(self.path)

    def forward(self, rows: Sequence[tuple[int, str, float]]) -> None:
        """Sends to tracking what spawned processes logged; W&B runs live in the first process."""
        for step, name, value in rows:
            current[-1].log({name: value}, step)
