"""The Python API: arrays or folders in, dataclasses out; no Hydra, and files only on request.

`sidepipe` exports these names and imports them at their first use. Models are imported
separately, so that a refusal of `compare` needs no torch.
"""

from typing import TYPE_CHECKING, Any

from sidepipe.api.comparing import compare as compare
from sidepipe.api.result import Estimate as Estimate
from sidepipe.api.result import Pair as Pair
from sidepipe.api.result import Result as Result

if TYPE_CHECKING:
    from sidepipe.api.auditing import Audit as Audit
    from sidepipe.api.auditing import audit as audit
    from sidepipe.api.loading import load as load
    from sidepipe.api.loading import load_split as load_split
    from sidepipe.api.model import Model as Model
    from sidepipe.api.table_result import Ratio as Ratio
    from sidepipe.api.table_result import TableResult as TableResult


def __getattr__(name: str) -> Any:
    if name in ("Audit", "audit"):
        from sidepipe.api import auditing as module
    elif name in ("load", "load_split"):
        from sidepipe.api import loading as module
    elif name == "Model":
        from sidepipe.api import model as module
    elif name in ("Ratio", "TableResult"):
        from sidepipe.api import table_result as module
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)
