"""A file that holds a whole model is refused by what it is, with the command that converts it."""

import pytest
import torch
from safetensors.torch import save_file

from sidepipe.base.pretrained import folder_or_hub_id
from sidepipe.base.single_file import conversion

UNET = "model.diffusion_model.input_blocks.0.0.weight"
ENCODERS = {
    "StableDiffusionPipeline": "cond_stage_model.transformer.text_model.final_layer_norm.bias",
    "StableDiffusionXLPipeline": "conditioner.embedders.1.model.positional_embedding",
}
SD3 = "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"
HEADER = (3).to_bytes(8, "little")
CLIP, T5 = "text_encoders.clip_l.transformer.x", "text_encoders.t5xxl.transformer.x"


def written(file, *names):
    save_file({name: torch.zeros(1) for name in names}, file)
    return file


def command_in(text):
    """The Python code between the quotes, which must be valid."""
    code = text.split('python -c "')[1].split('", then')[0]
    compile(code, "command", "exec")
    return code


@pytest.mark.parametrize("pipeline", ENCODERS)
def test_the_command_has_the_pipeline_and_the_paths(tmp_path, pipeline):
    file = written(tmp_path / "my model.safetensors", UNET, ENCODERS[pipeline])
    with pytest.raises(FileNotFoundError, match=f"which is a file of a whole {pipeline}") as error:
        folder_or_hub_id("dpm.path", str(file))
    folder = tmp_path / "my model"
    assert command_in(str(error.value)) == (
        f"from diffusers import {pipeline} as P; "
        f"P.from_single_file('{file}').save_pretrained('{folder}')"
    )
    assert f"then dpm=stable_diffusion dpm.path={folder}; it fetches configs" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "what", "code"),
    [
        ([SD3], "the network of a StableDiffusion3Pipeline alone", "transformer=T.from_single_"),
        ([SD3, CLIP], "a whole StableDiffusion3Pipeline", "text_encoder_3=None).save_pretrained"),
        ([SD3, CLIP, T5], "a whole StableDiffusion3Pipeline", "safetensors').save_pretrained("),
        (["double_blocks.0.img_attn.qkv.weight"], "the network of a FluxPipeline", "FLUX.1-dev'"),
    ],
)
def test_of_transformers_the_parts_that_a_file_lacks_are_left_out_or_taken_from_the_base(
    tmp_path, names, what, code
):
    found = conversion(written(tmp_path / "a.safetensors", *names))
    assert found.startswith(f"a file of {what}")
    assert code in command_in(found)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["unet.x.lora_A.weight"], "a LoRA adapter; remedy: .* set dpm.adapter=.*a.safetensors"),
        ([UNET, "first_stage_model.encoder.x"], "a latent model without .*convert_ldm_original"),
        (["conv_in.weight"], "a file of weights without their config; remedy: name the folder"),
    ],
)
def test_other_files_have_their_own_remedy(tmp_path, names, message):
    written(tmp_path / "a.safetensors", *names)
    with pytest.raises(FileNotFoundError, match=message):
        folder_or_hub_id("dpm.path", str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 20, HEADER + b"abc", HEADER + b"123"])
def test_a_damaged_file_is_refused_as_one_without_a_config(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert conversion(tmp_path / "a.safetensors").startswith("a file of weights")


def test_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"not a pickle")
    found = conversion(tmp_path / "a.ckpt")
    assert found.startswith("a pickle, whose model is not known before it is opened; remedy: ")
    assert "StableDiffusionPipeline as P" in command_in(found)
