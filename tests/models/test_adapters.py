"""LoRA of diffusers, PEFT and Kohya: fused, a model is the one that diffusers fuses."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tests.models.text.tiny import tiny_sdxl, tiny_stable_diffusion
from tests.tiny import UNET

from sidepipe.base.settings import build
from sidepipe.models.adapters import adapter_file, fuse_adapter
from sidepipe.models.text.checks import check_pipeline
from sidepipe.models.text.pipeline import load_model

# A warning of peft: diffusers passes it the layers of the file.
pytestmark = pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")

CONFIGS = {
    "unet": LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["to_q", "to_out.0", "proj_in", "conv1", "conv_in"],
        init_lora_weights=False,
    ),
    "text_encoder": LoraConfig(
        r=3, lora_alpha=2, target_modules=["q_proj", "fc1"], init_lora_weights=False
    ),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapted(base):
    """The pipeline with random adapters of its UNet and text encoder, not fused."""
    torch.manual_seed(1)
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    for part, config in CONFIGS.items():
        getattr(pipeline, part).add_adapter(config)
    return pipeline


def layers_of(pipeline, with_metadata):
    """Both adapters as `save_lora_weights` takes them, in PEFT's names and with its settings.

    Without settings they have older names, which diffusers reads of attention layers alone.
    """
    layers = {part: get_peft_model_state_dict(getattr(pipeline, part)) for part in CONFIGS}
    if with_metadata:
        settings = {f"{part}_lora_adapter_metadata": c.to_dict() for part, c in CONFIGS.items()}
        return settings | {f"{part}_lora_layers": found for part, found in layers.items()}
    layers["unet"] = {k: v for k, v in layers["unet"].items() if ".to_" in k}
    converted = {part: convert_state_dict_to_diffusers(found) for part, found in layers.items()}
    assert any("lora.down" in name for name in converted["unet"])
    return {f"{part}_lora_layers": found for part, found in converted.items()}


def fused(base, path):
    model = load_model(base)
    fuse_adapter(model.networks, path)
    return model


def assert_as_fused_by_diffusers(base, path, model, parts=tuple(CONFIGS)):
    """To 1e-6 in every weight."""
    pipeline = StableDiffusionPipeline.from_pretrained(base, safety_checker=None)
    before = {k: v.clone() for k, v in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for part in parts:
        expected, found = getattr(pipeline, part).state_dict(), getattr(model, part).state_dict()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)
    changed = [k for k, v in before.items() if not v.equal(pipeline.unet.state_dict()[k])]
    assert len(changed) > 5


@pytest.mark.parametrize("with_metadata", [True, False])
def test_an_adapter_of_diffusers_is_fused_as_diffusers_does(tmp_path, base, adapted, with_metadata):
    """With its alpha in the file's metadata; without, alpha is the rank in both."""
    StableDiffusionPipeline.save_lora_weights(tmp_path, **layers_of(adapted, with_metadata))
    path = adapter_file(base, str(tmp_path))
    assert path == tmp_path / "pytorch_lora_weights.safetensors"
    assert_as_fused_by_diffusers(base, path, fused(base, path))


def kohya_of(pipeline):
    """The adapters in the names of kohya-ss/sd-scripts, with an alpha for each layer."""
    tensors = {}
    for part, prefix in (("unet", "lora_unet"), ("text_encoder", "lora_te_text_model")):
        for name, value in get_peft_model_state_dict(getattr(pipeline, part)).items():
            layer, _, side = name.removesuffix(".weight").rpartition(".")
            layer = f"{prefix}_{layer.replace('.', '_')}"
            side = {"lora_A": "lora_down", "lora_B": "lora_up"}[side]
            tensors[f"{layer}.{side}.weight"] = value.contiguous()
            tensors[f"{layer}.alpha"] = torch.tensor(float(CONFIGS[part].lora_alpha))
    return tensors


def test_an_adapter_of_kohya_is_fused_as_diffusers_does(tmp_path, base, adapted):
    path = tmp_path / "kohya.safetensors"
    save_file(kohya_of(adapted), path)
    model = fused(base, path)
    assert_as_fused_by_diffusers(base, path, model, parts=["unet"])
    # diffusers 0.42 does not find the layers of transformers 5's encoder by these names.
    adapted.fuse_lora()
    adapted.unload_lora_weights()
    for name, value in adapted.text_encoder.state_dict().items():
        found = model.text_encoder.state_dict()[name]
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6)


def test_an_adapter_of_peft_is_fused_as_peft_merges_it(tmp_path):
    """An adapter for a UNet2DModel, with an alpha for one layer and rank-stabilized scales."""
    from peft import get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=3,
        use_rslora=True,
        alpha_pattern={"conv_in": 8},
        target_modules=["conv1", "conv_in", "time_emb_proj"],
        init_lora_weights=False,
    )
    adapted = get_peft_model(build(UNET), config)
    adapted.save_pretrained(tmp_path)
    torch.manual_seed(0)
    unet: UNet2DModel = build(UNET)
    fuse_adapter({"unet": unet}, adapter_file(tmp_path / "base", str(tmp_path)))
    expected = adapted.merge_and_unload().state_dict()
    for name, value in unet.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "unet/my_LoRA.safetensors"])
def test_an_adapter_in_the_folder_is_never_ignored(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"^dpm.adapter must be set where .* LoRA") as error:
        adapter_file(tmp_path, None)
    assert f"dpm.adapter={tmp_path / name} fuses it" in str(error.value)
    assert adapter_file(tmp_path, "none") is None
    assert adapter_file(tmp_path, str(tmp_path / name)) == tmp_path / name


def test_without_an_adapter_there_is_none_and_a_missing_one_is_refused(tmp_path, base):
    assert adapter_file(base, None) is None
    with pytest.raises(FileNotFoundError, match="neither a file nor a folder"):
        adapter_file(base, str(tmp_path / "nowhere"))
    one = r"dpm\.adapter must be a folder with one file of weights, got '.*'; it has "
    with pytest.raises(ValueError, match=rf"{one}no \.safetensors or \.bin file; name the file"):
        adapter_file(base, str(tmp_path))
    for name in ("a.bin", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{one}a\.bin, b\.safetensors; name the file of the"):
        adapter_file(base, str(tmp_path))


# Layers of the tiny UNet by their names in Stability's code, written by hand.
STABILITY = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_3_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_3_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_3_1_transformer_blocks_0_attn2_to_k": (
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    ),
    "middle_block_0_emb_layers_1": "mid_block.resnets.0.time_emb_proj",
    "middle_block_1_transformer_blocks_0_attn1_to_out_0": (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
    ),
    "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "output_blocks_1_1_transformer_blocks_0_attn1_to_v": (
        "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_v"
    ),
    "output_blocks_1_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_3_0_in_layers_2": "up_blocks.1.resnets.1.conv1",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}
ENCODERS = {
    "lora_te1_text_model_encoder_layers_1_mlp_fc1": ("text_encoder", "encoder.layers.1.mlp.fc1"),
    "lora_te2_text_model_encoder_layers_2_self_attn_q_proj": (
        *("text_encoder_2", "text_model.encoder.layers.2.self_attn.q_proj"),
    ),
}


def kohya_layer(name, module):
    """A LoRA of rank 2 with alpha 1 in Kohya's names, and the change of the weight."""
    weight = module.weight
    down = torch.randn(2, *weight.shape[1:])
    up = torch.randn(len(weight), 2, *[1] * (weight.ndim - 2))
    change = 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    sides = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return {**sides, f"{name}.alpha": torch.tensor(1.0)}, change


def test_an_adapter_of_kohya_for_sdxl_changes_both_encoders_and_the_unet(tmp_path):
    model = load_model(tiny_sdxl(tmp_path / "base"))
    targets = {f"lora_unet_{name}": ("unet", own) for name, own in STABILITY.items()} | ENCODERS
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tensors = {}
    for name, (part, own) in targets.items():
        layers, change = kohya_layer(name, getattr(model, part).get_submodule(own))
        tensors |= layers
        before[f"{part}.{own}.weight"] += change
    save_file(tensors, tmp_path / "kohya.safetensors")
    fuse_adapter(model.networks, tmp_path / "kohya.safetensors")
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-6, msg=name)


def test_an_adapter_of_kohya_for_sdxl_is_fused_as_diffusers_does(tmp_path):
    """The layers of blocks with attention have names that diffusers maps for any UNet."""
    folder = tiny_sdxl(tmp_path / "base")
    model, pipeline = load_model(folder), StableDiffusionXLPipeline.from_pretrained(folder)
    names = [name for name in STABILITY if "_1_transformer" in name or "_2_0_op" in name]
    tensors = {}
    for name in names:
        module = model.unet.get_submodule(STABILITY[name])
        tensors |= kohya_layer(f"lora_unet_{name}", module)[0]
    path = tmp_path / "kohya.safetensors"
    save_file(tensors, path)
    fuse_adapter(model.networks, path)
    before = {k: v.clone() for k, v in pipeline.unet.state_dict().items()}
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    found = model.unet.state_dict()
    for name, value in pipeline.unet.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)
    assert sum(not value.equal(before[name]) for name, value in found.items()) == len(names)


def test_an_adapter_of_diffusers_for_sdxl_is_fused_as_diffusers_does(tmp_path):
    folder = tiny_sdxl(tmp_path / "base")
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    configs = {**CONFIGS, "text_encoder_2": CONFIGS["text_encoder"]}
    for part, config in configs.items():
        getattr(pipeline, part).add_adapter(config)
    layers = {
        f"{part}_lora_layers": get_peft_model_state_dict(getattr(pipeline, part))
        for part in configs
    }
    settings = {f"{part}_lora_adapter_metadata": c.to_dict() for part, c in configs.items()}
    StableDiffusionXLPipeline.save_lora_weights(tmp_path / "lora", **layers, **settings)
    model = load_model(folder)
    fuse_adapter(model.networks, adapter_file(folder, str(tmp_path / "lora")))
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for part in configs:
        found = getattr(model, part).state_dict()
        for name, value in getattr(pipeline, part).state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6, msg=name)


def layer(name="unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q", rank=2, width=16):
    return {
        f"{name}.lora_A.weight": torch.ones(rank, width),
        f"{name}.lora_B.weight": torch.ones(width, rank),
    }


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (layer("unet.nowhere"), r"must be layers of the model .* got \['unet.nowhere'\]"),
        (layer("text_encoder_2.encoder"), "parts other than unet, text_encoder"),
        (layer(width=5), r"must be up and down for \[16, 16\], got \[\[5, 2\], \[2, 5\]\]"),
        (layer() | {"unet.x.hada_w1_a": torch.ones(1)}, r"LoHa.*got \['unet.x.hada_w1_a'\]"),
        (layer() | {"unet.x.dora_scale": torch.ones(1)}, "DoRA"),
        ({"unet.x.lora_A.weight": torch.ones(1)}, r"up and down each, got \['unet.x'\]"),
        ({"x.alpha": torch.ones(1)}, r"up and down each, got \['x'\]"),
        (
            {k: v * torch.nan for k, v in layer().items()},
            "must be finite, got NaN",
        ),
    ],
)
def test_what_is_no_lora_of_the_model_is_refused(tmp_path, base, tensors, message):
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        fused(base, path)


def test_a_config_with_dora_is_refused(tmp_path, base):
    save_file(layer(), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"use_dora": True}))
    with pytest.raises(ValueError, match="must be LoRA, got 'DoRA'; fuse it into the checkpoint"):
        fused(base, tmp_path / "adapter_model.safetensors")


def test_a_pipeline_that_was_saved_without_fusing_is_refused_and_its_remedy_works(
    tmp_path, base, adapted
):
    adapted.save_pretrained(tmp_path / "unfused")
    with pytest.raises(ValueError, match=r"got a LoRA adapter that is not fused; remedy: call"):
        check_pipeline(tmp_path / "unfused")
    adapted.text_encoder.save_pretrained(tmp_path / "encoder")
    unet = load_file(base / "unet/diffusion_pytorch_model.safetensors")
    save_file(unet, tmp_path / "unfused/unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"text_encoder has no weights of its own, but a L"):
        check_pipeline(tmp_path / "unfused")
    adapted.fuse_lora()
    adapted.unload_lora_weights()
    adapted.save_pretrained(tmp_path / "fused")
    check_pipeline(tmp_path / "fused")
    found = load_model(tmp_path / "fused").unet.state_dict()
    assert not found["conv_in.weight"].equal(unet["conv_in.weight"])
