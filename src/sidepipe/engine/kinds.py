"""The kind of the data, images or rows of a table, and refusals of stages that take the other."""

from collections.abc import Mapping
from typing import Any

from sidepipe.base.settings import require
from sidepipe.engine.stage import Stage
from sidepipe.features.choice import is_of_rows

KINDS = {False: "images", True: "rows of a table"}


def check_kind(upstream: Mapping[str, Stage], what: str, *, of_rows: bool = False) -> None:
    """Raises ValueError unless the data are what `what` takes: images, or rows of a table."""
    data: Any = upstream.get("data")
    if data is not None:
        remedy = "data=table" if of_rows else "experiment=demo_table has choices for tables"
        rule, kind = f"{KINDS[of_rows]} for {what}", KINDS[data.is_table]
        require(data.is_table == of_rows, "data", rule, kind, remedy)


def check_features(
    upstream: Mapping[str, Stage], name: str, features: Mapping[str, Any], choice: str = "rows"
) -> None:
    """Raises ValueError unless the encoder of the setting `name` takes what the data are.

    choice: of features, for rows of a table.
    """
    data: Any = upstream.get("data")
    if data is not None:
        kind, of = features["_target_"].rpartition(".")[2], KINDS[data.is_table]
        remedy = f"features@{name}={choice}" if data.is_table else ""
        require(is_of_rows(features) == data.is_table, name, f"an encoder of {of}", kind, remedy)
