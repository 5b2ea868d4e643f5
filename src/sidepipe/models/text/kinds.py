"""The families of text-conditional models, by the class of their pipelines."""

from pathlib import Path

from sidepipe.models.families import require_family
from sidepipe.models.text.flow import Flux, StableDiffusion3
from sidepipe.models.text.model import TextModel
from sidepipe.models.text.sdxl import StableDiffusionXL

OPTION = "stable_diffusion"  # of dpm
KINDS: dict[str, type[TextModel]] = {
    kind.kind: kind for kind in (TextModel, StableDiffusionXL, StableDiffusion3, Flux)
}


def kind_of(folder: Path) -> type[TextModel]:
    """The family of the pipeline in `folder`; ValueError where it is none of text."""
    return KINDS[require_family(folder, OPTION).pipelines[0]]
