"""The facts of the stage `detect`, which both of its variants share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sidepipe.engine.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Detect(Stage):
    """Finds what a model has memorized; `DetectPrompts` and `DetectLabels` are its variants."""

    name: ClassVar[str] = "detect"
    needed_by: ClassVar[str] = "detect=prompts, of models with captions, or detect=labels"
    reported: ClassVar[bool] = True
    required: ClassVar[Mapping[str, tuple[str, str]]] = {
        "prompts": ("a list of prompts with a column `memorized`", "/my/prompts.csv"),
        "calibration_prompts": ("a list of other prompts, none memorized", "/my/others.csv"),
    }
