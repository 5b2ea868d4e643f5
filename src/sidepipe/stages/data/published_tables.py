"""The tables of papers on synthetic tables, by the names and layouts of their public files.

Fang et al., arXiv 2412.11044, and Zhang et al. (TabSyn), arXiv 2310.09656, use these six.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sidepipe.base.records import text_in
from sidepipe.base.tables import frame_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Published:
    """train: file names of which one is there. test: of the authors' own held-out rows.

    names: of the columns, where files have no header. without: columns that number or name rows.
    """

    train: tuple[str, ...]
    target: str
    test: str | None = None
    names: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)

    def read(self, folder: Path) -> dict[str, pd.DataFrame]:
        """The rows of each partition."""
        return {partition: self._frame(path) for partition, path in self.files(folder).items()}

    def files(self, folder: Path) -> dict[str, Path]:
        """The file of each partition; FileNotFoundError without the training rows."""
        there = [folder / name for name in self.train if (folder / name).is_file()]
        if not there:
            raise FileNotFoundError(
                f"{folder} must hold {' or '.join(self.train)}; remedy: put the public file there, "
                "or set data.source.folder or runtime.data_root"
            )
        files = {"train": there[0]}
        if self.test is not None and (folder / self.test).is_file():
            files["test"] = folder / self.test
        return files

    def _frame(self, path: Path) -> pd.DataFrame:
        # adult.test begins with a comment, and its classes end with a full stop.
        lines = [line for line in text_in(path).split("\n") if not line.startswith("|")]
        frame = frame_of(path, "\n".join(lines), self.names)
        if path.name == self.test:
            frame[self.target] = frame[self.target].str.rstrip(".")
        return frame.drop(columns=[name for name in self.without if name in frame.columns])


def _categorical(text: str) -> dict[str, str]:
    return dict.fromkeys(text.split(), "categorical")


ADULT = (
    "age workclass fnlwgt education education-num marital-status occupation relationship race sex "
    "capital-gain capital-loss hours-per-week native-country income"
)
MAGIC = "fLength fWidth fSize fConc fConc1 fAsym fM3Long fM3Trans fAlpha fDist class"
PUBLISHED = {
    "adult": Published(("adult.data",), "income", "adult.test", tuple(ADULT.split())),
    "default": Published(
        ("UCI_Credit_Card.csv", "default of credit card clients.csv"),
        "default.payment.next.month",
        without=("ID",),
        kinds=_categorical("SEX EDUCATION MARRIAGE"),
    ),
    "shoppers": Published(
        ("online_shoppers_intention.csv",),
        "Revenue",
        kinds=_categorical("OperatingSystems Browser Region TrafficType"),
    ),
    "magic": Published(("magic04.data",), "class", names=tuple(MAGIC.split())),
    "beijing": Published(
        ("PRSA_data_2010.1.1-2014.12.31.csv",), "pm2.5", without=("No",), kinds={"day": "numeric"}
    ),
    "news": Published(("OnlineNewsPopularity.csv",), "shares", without=("url", "timedelta")),
}
