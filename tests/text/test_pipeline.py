"""Folders that are no text-conditional pipeline say why before anything is loaded."""

import json
import shutil

import pytest
from tests.text.tiny import tiny_stable_diffusion

from sidepipe.text.pipeline import check_pipeline, fingerprint


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "sd")


def changed(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_stable_diffusions_folder_passes(folder):
    check_pipeline(folder)


def test_an_unconditional_pipeline_is_sent_to_its_own_config(folder):
    (folder / "model_index.json").write_text(
        json.dumps(
            {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
        )
    )
    with pytest.raises(ValueError, match="text_encoder, tokenizer missing; dpm=pretrained"):
        check_pipeline(folder)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"time_cond_proj_dim": 256}, "distilled for one guidance scale"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "SDXL is not supported"),
        ("unet/config.json", {"in_channels": 9}, r"equal, got \[9, 4\]"),
        ("unet/config.json", {"_class_name": "SD3Transformer2DModel"}, "a UNet2DConditionModel"),
        ("model_index.json", {"text_encoder_2": ["a", "b"]}, "SDXL is not supported"),
    ],
)
def test_models_that_cannot_be_guided_by_one_prompt_are_refused(folder, file, values, message):
    changed(folder / file, **values)
    with pytest.raises(ValueError, match=message):
        check_pipeline(folder)


def test_a_flow_models_scheduler_is_refused(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    )
    with pytest.raises(ValueError, match="flow and consistency models are not supported"):
        check_pipeline(folder)


def test_pickled_weights_are_not_read(folder):
    weights = next((folder / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileNotFoundError, match="safe_serialization=True"):
        check_pipeline(folder)


def test_a_missing_file_is_named(folder):
    (folder / "unet" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*unet/config\.json"):
        check_pipeline(folder)


def test_a_changed_weight_changes_the_fingerprint(folder):
    before = fingerprint(folder)
    weights = next((folder / "vae").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after = fingerprint(folder)
    assert {name for name in before if before[name] != after[name]} == {f"vae/{weights.name}"}
