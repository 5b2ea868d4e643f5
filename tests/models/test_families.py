"""A pipeline that is not supported is refused by its name, with those that are."""

import json

import diffusers
import pytest

from sidepipe.models.families import FAMILIES, OTHERS, require_family

UNET = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}


def indexed(folder, **index):
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("StableDiffusionXLInpaintPipeline", "SDXL for another task"),
        ("KolorsPipeline", "SDXL with another text encoder"),
        ("StableDiffusion3InpaintPipeline", "Stable Diffusion 3 or Flux for another task"),
        ("FluxKontextPipeline", "Stable Diffusion 3 or Flux for another task"),
        ("SanaPipeline", "a rectified flow model"),
        ("PixArtAlphaPipeline", "a transformer with a T5 text encoder"),
        ("KandinskyV22Pipeline", "a model of several stages"),
        ("IFPipeline", "a model of several stages"),
        ("UnCLIPPipeline", "a model of several stages"),
        ("StableUnCLIPPipeline", "a model of several stages"),
        ("StableDiffusionUpscalePipeline", "an upscaler"),
        ("IFSuperResolutionPipeline", "an upscaler"),
        ("LatentConsistencyModelPipeline", "a model distilled for a few steps"),
        ("ConsistencyModelPipeline", "a model distilled for a few steps"),
    ],
)
@pytest.mark.parametrize("option", ["pretrained", "stable_diffusion"])
def test_a_known_pipeline_of_another_family_is_refused_by_name(tmp_path, kind, what, option):
    with pytest.raises(ValueError, match=r"must be one of DDPMPipeline, .*") as error:
        require_family(indexed(tmp_path, _class_name=kind, **UNET), option)
    assert f"FluxPipeline, got '{kind} ({what})'; sample it with" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_pipeline_belongs_to_a_family_by_its_parts(tmp_path):
    assert (
        require_family(indexed(tmp_path, _class_name="Mine", **UNET), "pretrained").name == "image"
    )
    more = {**UNET, "prior": ["mine", "Prior"]}
    with pytest.raises(ValueError, match=r"'Mine \(its parts are prior, scheduler, unet\)'"):
        require_family(indexed(tmp_path, _class_name="Mine", **more), "pretrained")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f"{f.name} {sorted(f.parts)}")
def test_a_family_of_another_option_is_sent_to_it(tmp_path, family):
    parts = {part: ["diffusers", "X"] for part in family.parts}
    folder = indexed(tmp_path, _class_name=family.pipelines[0], **parts)
    assert require_family(folder, family.option) == family
    message = rf"^dpm must be {family.option} .*; set dpm={family.option}$"
    with pytest.raises(ValueError, match=message):
        require_family(folder, "other")


def test_every_name_is_the_beginning_of_a_pipeline_of_diffusers():
    known = [name for name in dir(diffusers) if name.endswith("Pipeline")]
    gone = {"PNDMPipeline", "ExactPipeline", "TablePipeline"}  # from present versions; of sidepipe
    for starts in [*(p for f in FAMILIES for p in f.pipelines), *sum(OTHERS.values(), ())]:
        assert starts in gone or any(name.startswith(starts) for name in known), starts
