"""The front door: arrays in, dataclasses out; no Hydra, and no files unless asked.

`import sidepipe` offers what is here without importing it before the first use.
"""

from sidepipe.api.comparing import compare as compare
from sidepipe.api.model import Model as Model
from sidepipe.api.model import load as load
from sidepipe.api.model import load_split as load_split
from sidepipe.api.result import Estimate as Estimate
from sidepipe.api.result import Pair as Pair
from sidepipe.api.result import Result as Result
