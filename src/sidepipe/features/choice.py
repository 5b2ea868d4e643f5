"""Facts about a choice of features from its settings alone, before the encoder is built."""

from collections.abc import Mapping
from typing import Any

COPYDET = "sidepipe.features.copydet.CopyDet"
OF_ROWS = {f"sidepipe.features.encoders.{name}" for name in ("Rows", "RowDirections")}


def is_of_this_run(features: Mapping[str, Any]) -> bool:
    """Whether the encoder is the descriptor that this run trains, an input then."""
    return features["_target_"] == COPYDET and features.get("path") is None


def is_of_rows(features: Mapping[str, Any]) -> bool:
    """Whether the encoder takes rows of a table, not images."""
    return features["_target_"] in OF_ROWS


def descriptor_input(features: Mapping[str, Any]) -> tuple[str, ...]:
    """The stage whose artifact has the encoder, for `inputs`; none where it is not of this run."""
    return ("descriptor",) if is_of_this_run(features) else ()
