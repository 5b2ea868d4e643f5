"""The setting for near duplicates: two images that look like one."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sidepipe.base.settings import build

if TYPE_CHECKING:
    from sidepipe.features.encoders import Encoder


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """Two images are near duplicates if the gamma of their features reaches the threshold."""

    features: dict[str, Any]  # an encoder
    threshold: float  # gamma: a similarity or a distance, by the encoder's metric

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder that `features` describe."""
        return build(self.features)
