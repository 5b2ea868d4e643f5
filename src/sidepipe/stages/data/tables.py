"""Tables as data: rows of a file, of scikit-learn or of a public table become encoded vectors."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidepipe.base.records import csv_lines
from sidepipe.base.settings import require, require_known
from sidepipe.base.table_checks import doubts
from sidepipe.base.table_encoding import Encoding
from sidepipe.base.table_kinds import Kinds, schema_of
from sidepipe.base.tables import Schema, conform, frame_of, read_table, write_csv
from sidepipe.stages.data.published_tables import PUBLISHED
from sidepipe.stages.data.sources import digest

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

EMBEDDED = ("diabetes", "breast_cancer", "wine")


@dataclass(frozen=True)
class Table:
    """Rows of one table.

    file: a CSV or Parquet file, whose rows are the partition train. heldout_file: rows that no
    model may see, the partition test. name: without a file, a table of scikit-learn (`EMBEDDED`),
    or a public one, whose files lie in `folder` (`PUBLISHED`). target: the column to predict; for a
    named table its own. kinds: of columns, see `schema_of`.
    """

    name: str
    file: str | None
    heldout_file: str | None
    folder: str
    target: str | None
    kinds: dict[str, Any]

    def __post_init__(self) -> None:
        if self.file is None:
            require_known("data.source.name", self.name, [*EMBEDDED, *PUBLISHED])
            remedy = "set data.source.file as well"
            no_file = self.heldout_file is None
            require(no_file, "data.source.heldout_file", "null", self.heldout_file, remedy)
            return
        other = self.heldout_file is None or Path(self.file) != Path(self.heldout_file)
        rule, remedy = "another file than data.source.file", "set null without held-out rows"
        require(other, "data.source.heldout_file", rule, self.heldout_file, remedy)

    def check_target(self) -> None:
        """Raises ValueError where the target is no column, as far as a header is read at once."""
        if self.target is None or (self.file is None and self.name in EMBEDDED):
            return
        names = PUBLISHED[self.name].names if self.file is None else _header(Path(self.file))
        if names is not None:
            require_known("data.source.target", self.target, names)

    def frames(self) -> tuple[dict[str, pd.DataFrame], str | None, Kinds]:
        """The rows of each partition as they are, the target and the kinds."""
        if self.file is not None:
            return {n: read_table(p) for n, p in self._files().items()}, self.target, self.kinds
        if self.name in EMBEDDED:
            frame, target = _embedded(self.name)
            return {"train": frame}, self.target or target, self.kinds
        table = PUBLISHED[self.name]
        frames = table.read(Path(self.folder))
        return frames, self.target or table.target, {**table.kinds, **self.kinds}

    def listing(self) -> str:
        """A short digest of the files, which differs once they change."""
        files = self._files()
        if not files:
            return f"the table {self.name} of scikit-learn"
        return digest({path.name: path.stat().st_size for path in files.values()})

    def _files(self) -> dict[str, Path]:
        """The file of each partition; FileNotFoundError where one is missing."""
        if self.file is None:
            return {} if self.name in EMBEDDED else PUBLISHED[self.name].files(Path(self.folder))
        files = {"train": Path(self.file)}
        if self.heldout_file is not None:
            files["test"] = Path(self.heldout_file)
        for path in files.values():
            if not path.is_file():
                raise FileNotFoundError(
                    f"{path} is missing; remedy: data.source.file=... or runtime.data_root=..."
                )
        return files


def _header(path: Path) -> Sequence[str] | None:
    """The names of the columns of a file in UTF-8; None where its first line does not have them."""
    if path.suffix.lower() == ".parquet" or not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = next((line for line in file if line.strip()), "")
    except UnicodeDecodeError:
        return None
    if line.count('"') % 2:  # a name has a line break
        return None
    _, names = next(csv_lines(path, line), (0, []))
    return [name.strip() for name in names]


def _embedded(name: str) -> tuple[pd.DataFrame, str]:
    """A table of scikit-learn in its original units, with names for its classes."""
    from sklearn import datasets

    options = {"scaled": False} if name == "diabetes" else {}
    bunch: Any = getattr(datasets, f"load_{name}")(as_frame=True, **options)
    frame = bunch.frame
    if name == "diabetes":  # 1 and 2 in the file
        return frame.assign(sex=np.array(["1", "2"])[frame["sex"].astype(int) - 1]), "target"
    return frame.assign(target=bunch.target_names[frame["target"]]), "target"


def write(folder: Path, source: Table) -> dict[str, Any]:
    """Writes the rows of a table, and returns their part of the summary.

    images.npy has the encoded rows, float32 (n, 1, 1, d); table.csv the rows as text.
    """
    import pandas as pd

    frames, target, kinds = source.frames()
    schema = schema_of(frames, target=target, kinds=kinds)
    parts = {partition: conform(partition, frame, schema) for partition, frame in frames.items()}
    for text in doubts(parts, schema, kinds):
        log.warning("%s", text)
    encoding = Encoding.fit(parts["train"], schema)
    whole = pd.concat(parts.values(), ignore_index=True)
    rows = encoding.encode(whole)
    np.save(folder / "images.npy", rows[:, None, None, :])
    encoding.save(folder)
    write_csv(folder / "table.csv", whole, schema)
    _write_ids(folder / "ids.csv", parts, schema)
    counts = Counter(column.kind for column in schema.columns)
    found = {
        "target": schema.target,
        "columns": dict(counts),
        "missing_values": int(whole.isna().to_numpy().sum()),
        "duplicate_rows": int(whole.duplicated().sum()),
    }
    columns = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    log.info("%d rows; columns: %s", len(whole), columns)
    if found["duplicate_rows"]:
        log.info("%d rows are equal to an earlier row", found["duplicate_rows"])
    return {
        "num_images": len(whole),
        "shape": [1, 1, rows.shape[1]],
        "partitions": {partition: len(part) for partition, part in parts.items()},
        "table": found,
    }


def _write_ids(path: Path, parts: Mapping[str, pd.DataFrame], schema: Schema) -> None:
    """Row numbers by partition; the identity is the class, where the target has classes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "id", "partition", "identity"])
        index = 0
        for partition, part in parts.items():
            labels = part[schema.target] if schema.has_classes else [""] * len(part)
            for row, label in enumerate(labels):
                writer.writerow([index, f"{partition} row {row + 1}", partition, label or ""])
                index += 1


def load_encoding(folder: Path) -> Encoding:
    """The encoding of the rows of a finished artifact."""
    return Encoding.load(folder)


def load_table(folder: Path) -> pd.DataFrame:
    """The rows of a finished artifact, in the form of `conform`."""
    schema = Schema.from_json(json.loads((folder / "schema.json").read_text()))
    path = folder / "table.csv"
    return conform(str(path), frame_of(path, path.read_text(encoding="utf-8")), schema)
