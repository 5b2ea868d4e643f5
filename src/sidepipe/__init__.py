"""Measure how many of its training images a diffusion model gives away.

From Python: ``sidepipe.load``, ``Model.sample``, ``Model.refine``, ``sidepipe.compare`` and
``sidepipe.audit``; see docs/api.md.

From the command line: the open implementation of SIDE (Chen et al., "SIDE: Surrogate Conditional
Data Extraction from Diffusion Models", arXiv 2410.02467) as a graph of stages; see `stages/`, in
flow order: data, dpm, generate, label, classifier, extract, evaluate, report.
"""

from typing import TYPE_CHECKING, Any

from sidepipe.base.openmp import spin_briefly

spin_briefly()

if TYPE_CHECKING:
    from sidepipe.api import Audit as Audit
    from sidepipe.api import Estimate as Estimate
    from sidepipe.api import Model as Model
    from sidepipe.api import Pair as Pair
    from sidepipe.api import Ratio as Ratio
    from sidepipe.api import Result as Result
    from sidepipe.api import TableResult as TableResult
    from sidepipe.api import audit as audit
    from sidepipe.api import compare as compare
    from sidepipe.api import load as load
    from sidepipe.api import load_split as load_split

# `__getattr__` imports these at their first use: the command line needs none of them.
_TYPES = ("Audit", "Estimate", "Model", "Pair", "Ratio", "Result", "TableResult")
_PUBLIC = (*_TYPES, "audit", "compare", "load", "load_split")


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        from sidepipe import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *_PUBLIC])
