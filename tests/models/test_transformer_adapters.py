"""LoRA of transformers (Stable Diffusion 3, Flux, DiT): fused as diffusers and PEFT do, to 1e-6."""

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxPipeline, StableDiffusion3Pipeline
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from tests.models.text.tiny import tiny_flux, tiny_sd3
from tests.models.tiny_pipelines import dit

from sidepipe.models.adapters import fuse_adapter
from sidepipe.models.checkpoint import load_checkpoint
from sidepipe.models.text.pipeline import load_model

pytestmark = pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters:RuntimeWarning")

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "proj_mlp"]


def config():
    return LoraConfig(r=2, lora_alpha=6, target_modules=LAYERS, init_lora_weights=False)


def assert_equal(expected, found, before):
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0)
    assert sum(not torch.equal(found[name], before[name]) for name in found) >= 5


@pytest.mark.parametrize(
    ("make", "kind"),
    [(tiny_sd3, StableDiffusion3Pipeline), (tiny_flux, FluxPipeline)],
    ids=["Stable Diffusion 3", "Flux"],
)
def test_an_adapter_of_diffusers_is_fused_as_diffusers_fuses_it(tmp_path, make, kind):
    make(base := tmp_path / "base")
    torch.manual_seed(1)
    adapted = kind.from_pretrained(base)
    adapted.transformer.add_adapter(settings := config())
    kind.save_lora_weights(
        tmp_path / "lora",
        transformer_lora_layers=get_peft_model_state_dict(adapted.transformer),
        transformer_lora_adapter_metadata=settings.to_dict(),
    )
    pipeline, model = kind.from_pretrained(base), load_model(base)
    before = {name: weight.clone() for name, weight in pipeline.transformer.state_dict().items()}
    pipeline.load_lora_weights(tmp_path / "lora")
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()
    fuse_adapter(model.networks, tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert_equal(pipeline.transformer.state_dict(), model.transformer.state_dict(), before)


def test_an_adapter_of_peft_for_a_dit_is_fused_as_peft_merges_it(tmp_path):
    dit(base := tmp_path / "dit")
    torch.manual_seed(1)
    network = DiTTransformer2DModel.from_pretrained(base / "transformer")
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    settings = LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "proj"],
        init_lora_weights=False,
    )
    adapted = get_peft_model(network, settings)
    adapted.save_pretrained(tmp_path / "lora")
    found = load_checkpoint(str(base), None, None, adapter=str(tmp_path / "lora"))["transformer"]
    assert_equal(adapted.merge_and_unload().state_dict(), found.state_dict(), before)


@pytest.mark.parametrize(
    ("make", "layer", "family"),
    [
        (tiny_flux, "lora_unet_double_blocks_0_img_attn_qkv", "Flux"),
        (tiny_flux, "lora_unet_single_blocks_0_linear1", "Flux"),
        (tiny_sd3, "lora_unet_joint_blocks_0_x_block_attn_qkv", "Stable Diffusion 3"),
    ],
)
def test_names_of_other_tools_are_refused_by_family(tmp_path, make, layer, family):
    make(base := tmp_path / "base")
    sides = {"down": torch.ones(2, 8), "up": torch.ones(24, 2)}
    file = tmp_path / "x.safetensors"
    save_file({f"{layer}.lora_{side}.weight": x for side, x in sides.items()}, file)
    with pytest.raises(ValueError, match=f"of diffusers for {family}, .*lora_state_dict"):
        fuse_adapter(load_model(base).networks, file)
