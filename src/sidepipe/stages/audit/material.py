"""The images that an audit compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidepipe.features.encoders import Encoder
    from sidepipe.memorization.audit import Images
    from sidepipe.memorization.real import Encoded


@dataclass(frozen=True)
class Material:
    """data: all images. sets: those of each kind. threshold: gamma of a hit, by the encoder."""

    data: Images
    sets: Mapping[str, Encoded]
    encoder: Encoder
    threshold: float
