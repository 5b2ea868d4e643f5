"""Images and rows of a table on the page: pictures of images, and the values of rows as text."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sidepipe.base.table_encoding import Encoding
from sidepipe.base.tables import Column
from sidepipe.engine.artifacts import Artifact
from sidepipe.stages.data.stage import load_encoding
from sidepipe.stages.report.pictures import thumbnail_uri
from sidepipe.stages.report.words import DASH


def shots(folder: Path, images: np.ndarray) -> list[str] | Mapping[str, Any]:
    """A data URI per image; of rows a mapping with their `columns` and the text of all `cells`.

    folder: of an artifact that was made from the data.
    """
    if images.dtype == np.uint8:
        return list(map(thumbnail_uri, images))
    encoding = _encoding_of(folder)
    frame = encoding.decode(images)
    texts = [[_text(column, v) for v in frame[column.name]] for column in encoding.schema.columns]
    return {"columns": encoding.schema.names, "cells": list(zip(*texts, strict=True))}


@cache
def _encoding_of(folder: Path) -> Encoding:
    """The encoding of the table that a finished artifact was made from: once for all its rows."""
    data = Artifact(folder).ancestor("data")
    assert data is not None
    return load_encoding(data.folder)


def _text(column: Column, value: Any) -> str:
    if value is None or value != value:  # nan
        return DASH
    if column.kind != "numeric":
        return str(value)
    return f"{value:.4g}" if column.decimals is None else f"{value:.{column.decimals}f}"
