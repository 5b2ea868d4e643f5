"""W&B, off by default: runs, their content, and a training's metrics on disk."""

from typing import TYPE_CHECKING, Any

from sidepipe.tracking.content import Content
from sidepipe.tracking.runs import Tracked, Tracking

if TYPE_CHECKING:
    from sidepipe.tracking.metrics import MetricsCSV

__all__ = ["Content", "MetricsCSV", "Tracked", "Tracking"]


def __getattr__(name: str) -> Any:
    # This import is lazy: uploads and dashboards answer without loading torch.
    if name == "MetricsCSV":
        from sidepipe.tracking.metrics import MetricsCSV

        return MetricsCSV
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
