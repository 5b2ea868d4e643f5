"""The Python API: arrays in, dataclasses out; no Hydra, and no files unless requested.

`sidepipe` exports these names and imports them at their first use.
"""

from sidepipe.api.comparing import compare as compare
from sidepipe.api.model import Model as Model
from sidepipe.api.model import load as load
from sidepipe.api.model import load_split as load_split
from sidepipe.api.result import Estimate as Estimate
from sidepipe.api.result import Pair as Pair
from sidepipe.api.result import Result as Result
