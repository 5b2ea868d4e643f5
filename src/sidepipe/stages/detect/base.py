"""The facts of the stage `detect`, which both of its variants share."""

from dataclasses import dataclass
from typing import ClassVar

from sidepipe.engine.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Detect(Stage):
    """Finds what a model has memorized; `DetectPrompts` and `DetectLabels` are its variants."""

    name: ClassVar[str] = "detect"
    needed_by: ClassVar[str] = "detect=prompts, of models with captions, or detect=labels"
    reported: ClassVar[bool] = True
