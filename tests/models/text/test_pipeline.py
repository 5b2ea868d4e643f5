"""Folders that are no text-conditional pipeline say why before anything is loaded."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.text.tiny import tiny_stable_diffusion

from sidepipe.base.pretrained import fingerprint
from sidepipe.models.text.checks import check_pipeline
from sidepipe.models.text.pipeline import load_model


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
    with pytest.raises(ValueError, match=r"^dpm must be pretrained for .*; set dpm=pretrained$"):
        check_pipeline(folder)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("unet/config.json", {"time_cond_proj_dim": 256}, "distilled for one guidance scale"),
        (
            "unet/config.json",
            {"addition_embed_type": "text_time"},
            "the UNet of SDXL belongs to a StableDiffusionXLPipeline",
        ),
        ("unet/config.json", {"in_channels": 9}, r"equal, got \[9, 4\]"),
        ("unet/config.json", {"_class_name": "SD3Transformer2DModel"}, "a UNet2DConditionModel"),
        ("model_index.json", {"text_encoder_2": ["a", "b"]}, "got .*text_encoder_2"),
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
    with pytest.raises(
        ValueError, match=r"one with betas at discrete timesteps, .* got .FlowMatchEuler"
    ):
        check_pipeline(folder)


def test_pickled_weights_of_every_part_are_read_with_a_warning(folder, caplog):
    expected = load_model(folder).state_dict()
    for part, name in FILES.items():
        path = folder / part / name
        stem = "pytorch_model" if part == "text_encoder" else path.stem
        torch.save(load_file(path), path.with_name(f"{stem}.bin"))
        path.unlink()
    check_pipeline(folder)
    found = load_model(folder).state_dict()
    assert all(found[name].equal(value) for name, value in expected.items())
    assert "vae/diffusion_pytorch_model.bin is a pickle; it is read with weights_o" in caplog.text


def test_a_pickle_of_other_things_than_tensors_is_not_read(folder):
    path = folder / "unet" / FILES["unet"]
    torch.save({"conv_in.weight": folder}, path.with_suffix(".bin"))
    path.unlink()
    with pytest.raises(ValueError, match=r"unet/.*.bin cannot be read as weights: UnpicklingError"):
        load_model(folder)


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


# weights

FILES = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


def rewritten(folder, part, change):
    """The part's weights, changed; copies, since tensors of a file written over are lost."""
    path = folder / part / FILES[part]
    save_file(change({name: value.clone() for name, value in load_file(path).items()}), path)


def spoiled(value, dtype=torch.float32):
    def change(weights):
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        weights[min(weights)].view(-1)[0] = value
        return weights

    return change


@pytest.mark.parametrize("part", list(FILES))
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_known_prefixes_are_stripped_from_every_part(folder, part, prefix):
    expected = load_model(folder).state_dict()
    rewritten(folder, part, lambda weights: {prefix + k: v for k, v in weights.items()})
    check_pipeline(folder)
    found = load_model(folder).state_dict()
    assert found.keys() == expected.keys()
    assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_weights_that_do_not_fit_are_refused_before_they_are_read(folder, part):
    rewritten(folder, part, lambda weights: dict(sorted(weights.items())[2:]))
    with pytest.raises(ValueError, match=rf"{part}/.* must fit the network .* got 2 missing"):
        check_pipeline(folder)
    with pytest.raises(ValueError, match=rf"{part}/.* must fit the network .* got 2 missing"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: dict(sorted(w.items())[2:]), "2 missing"),
        (lambda w: {**w, "text_projection.extra": torch.zeros(2, 2)}, "1 unexpected"),
        (lambda w: {**w, max(w): torch.zeros(3, 5)}, "mismatch|size|shape"),
    ],
)
def test_a_text_encoder_that_does_not_fit_is_refused(folder, change, message):
    rewritten(folder, "text_encoder", change)
    with pytest.raises(ValueError, match=rf"text_encoder/model.safetensors.*({message})") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_a_text_encoder_of_old_with_position_ids_is_taken(folder):
    expected = load_model(folder).state_dict()
    ids = torch.arange(77)[None]
    name = "text_model.embeddings.position_ids"
    rewritten(
        folder,
        "text_encoder",
        lambda w: {
            **{k if k.startswith("text_model.") else f"text_model.{k}": v for k, v in w.items()},
            name: ids,
        },
    )
    found = load_model(folder).state_dict()
    assert all(found[name].equal(value) for name, value in expected.items())


@pytest.mark.parametrize("part", list(FILES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("value", "word"), [(float("nan"), "NaN"), (float("inf"), "infinity")])
def test_weights_that_are_not_finite_are_refused_by_name(folder, part, dtype, value, word):
    rewritten(folder, part, spoiled(value, dtype))
    with pytest.raises(ValueError, match=rf"^\S+ of .*{part}.* must be finite, got {word} \(1 of"):
        load_model(folder)


def test_half_precision_of_every_part_becomes_float32(folder):
    expected = load_model(folder).state_dict()
    for part in FILES:
        rewritten(folder, part, lambda weights: {k: v.half() for k, v in weights.items()})
    changed(folder / "text_encoder/config.json", dtype="float16", torch_dtype="float16")
    check_pipeline(folder)
    for name, value in load_model(folder).state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6)


def test_the_only_variant_is_taken_and_of_two_one_is_chosen(folder):
    expected = load_model(folder).state_dict()
    for part, name in FILES.items():
        stem = name.removesuffix(".safetensors")
        (folder / part / name).rename(folder / part / f"{stem}.fp16.safetensors")
    check_pipeline(folder)
    assert load_model(folder).state_dict().keys() == expected.keys()
    shutil.copy(
        folder / "unet/diffusion_pytorch_model.fp16.safetensors",
        folder / "unet/diffusion_pytorch_model.non_ema.safetensors",
    )
    with pytest.raises(ValueError, match=r"of one variant, got \['fp16', 'non_ema'\]"):
        check_pipeline(folder)
    check_pipeline(folder, "non_ema")


# configs and the tokenizer's files


@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
    ],
)
@pytest.mark.parametrize("content", ["", "<html>", "[]", "null", "{", "\ufeff{}"])
def test_junk_in_any_config_is_refused_with_its_file(folder, file, content):
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=rf"^/.*{file} must be a JSON object") as error:
        check_pipeline(folder)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_its_files_is_refused(folder):
    for path in (folder / "tokenizer").iterdir():
        if path.name != "tokenizer_config.json":
            path.unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer must hold vocab.json and merges.txt"):
        check_pipeline(folder)


def test_a_tokenizer_that_cannot_be_read_is_one_line(folder):
    for path in (folder / "tokenizer").glob("*.json"):
        path.write_text("{}")
    with pytest.raises(ValueError, match=r"^the tokenizer .* cannot be read") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "text_encoder/config.json",
            {"hidden_size": 16},
            "hidden_size .* 8, the cross_attention_dim",
        ),
        ("vae/config.json", {"latent_channels": 3}, "latent_channels .* 4, the in_channels of the"),
        ("unet/config.json", {"sample_size": None}, 'sample_size .* write "sample_size" there'),
        ("unet/config.json", {"down_block_types": ["X", "Y"]}, "unet/config.json cannot be built"),
        ("vae/config.json", {"down_block_types": ["X", "Y"]}, "vae/config.json cannot be built"),
        ("scheduler/scheduler_config.json", {"beta_end": 2}, "scheduler_config.json must fall"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding .* be false"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "models distilled"),
        (
            "model_index.json",
            {"unet": None},
            r"the parts of .* got \['scheduler', 'text_enc",
        ),
        ("model_index.json", {"tokenizer": []}, "must be scheduler, text_encoder, tokenizer, unet"),
        (
            "model_index.json",
            {"vae": ["diffusers", "AutoencoderTiny"]},
            "must be of class AutoencoderKL",
        ),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "CLIPTextModel"),
    ],
)
def test_parts_that_do_not_fit_one_another_are_refused(folder, file, values, message):
    changed(folder / file, **values)
    with pytest.raises(ValueError, match=message) as error:
        check_pipeline(folder)
    assert "\n" not in str(error.value)


def test_latents_are_never_clipped_and_images_are_where_the_scheduler_says_so(folder):
    changed(folder / "scheduler/scheduler_config.json", clip_sample=True)
    assert load_model(folder).clip_range is None
