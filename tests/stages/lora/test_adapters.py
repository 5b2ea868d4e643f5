import pytest
import torch
from diffusers import DDPMScheduler
from tests.models.text.tiny import tiny_text_model
from tests.tiny import UNET

from sidepipe.base.settings import build
from sidepipe.diffusion.continuous import Preconditioned, flow_levels
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.models.lora import merge_lora, trained_weights
from sidepipe.models.text.denoiser import PromptedDenoiser
from sidepipe.stages.lora.adapters import LabeledDenoiser

TARGETS = {
    "unconditional": ["to_q", "to_out.0", "conv1"],
    "flow": ["to_q", "to_out.0", "conv1"],
    "text": ["to_q", "to_v", "to_out.0"],
}
Y = torch.tensor([0, 1, 2, 3, 0])


def base(kind):
    torch.manual_seed(0)
    if kind == "text":
        return PromptedDenoiser(tiny_text_model())
    # Frozen, as adapted ones are: of weights that need no gradient torch multiplies otherwise.
    unet = build({**UNET, "add_attention": True, "attention_head_dim": 2}).requires_grad_(False)
    if kind == "flow":
        levels = flow_levels()
        network, kind = Preconditioned(unet, levels), levels.prediction_type
        return Denoiser(network, levels.alphas_cumprod, kind, (1, 8, 8))
    return Denoiser(unet, DDPMScheduler().alphas_cumprod, "v_prediction", (1, 8, 8))


def adapted(kind, rank=3):
    torch.manual_seed(1)
    return LabeledDenoiser(base(kind), 4, rank, TARGETS[kind])


def disturbed(denoiser):
    """As after training: nothing that is trained is zero."""
    generator = torch.Generator().manual_seed(2)
    for weight in trained_weights(denoiser.network).values():
        weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    return denoiser


def x_t():
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))


KINDS = pytest.mark.parametrize("kind", list(TARGETS))


@KINDS
def test_before_training_it_is_the_model_to_the_bit_whatever_the_label(kind):
    expected = base(kind).eps_fn(Y)(x_t(), 30)
    assert adapted(kind).eps_fn(Y)(x_t(), 30).equal(expected)


@KINDS
def test_trained_are_lora_and_what_labels_add_and_the_model_is_frozen(kind):
    denoiser, model = adapted(kind), base(kind)
    trained = trained_weights(denoiser.network)
    of_labels = {name for name in trained if "lora_" not in name}
    if kind == "text":
        assert of_labels == {"pseudo_tokens"}
        assert trained["pseudo_tokens"].shape == (4, 10, 8)
    else:
        name = f"unet.{'network.' if kind == 'flow' else ''}class_embedding.weight"
        assert of_labels == {name}
        assert trained[name].shape == (4, 16)
    ends = {name.split(".lora_")[0] for name in trained if "lora_" in name}
    assert all(name.endswith(tuple(f".{end}" for end in TARGETS[kind])) for name in ends)
    for end in TARGETS[kind]:
        assert any(name.endswith(f".{end}") for name in ends)
    assert sum(w.numel() for w in denoiser.network.parameters()) == sum(
        w.numel() for w in [*model.unet.parameters(), *trained.values()]
    )


@KINDS
def test_a_loss_reaches_all_that_is_trained_and_nothing_else(kind):
    denoiser = disturbed(adapted(kind))
    t = torch.tensor([0, 20, 40, 60, 90])
    denoiser.network(x_t(), t, Y).square().mean().backward()
    for weight in denoiser.network.parameters():
        assert (weight.grad is not None) == weight.requires_grad
        assert weight.grad is None or weight.grad.abs().max() > 0


@KINDS
def test_sampling_keeps_no_graph(kind):
    assert not disturbed(adapted(kind)).eps_fn(Y)(x_t(), 30).requires_grad


@KINDS
def test_images_follow_their_own_labels(kind):
    denoiser = disturbed(adapted(kind))
    together = denoiser.eps_fn(Y)(x_t(), 30)
    for i, y in enumerate(Y.tolist()):
        alone = denoiser.eps_fn(torch.tensor([y]))(x_t()[i : i + 1], 30)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    other = denoiser.eps_fn((Y + 1) % 4)(x_t(), 30)
    assert (together - other).flatten(1).norm(dim=1).min() > 1e-3


@KINDS
def test_merged_it_predicts_what_it_predicted(kind):
    denoiser = disturbed(adapted(kind))
    expected = denoiser.eps_fn(Y)(x_t(), 30)
    assert not expected.equal(base(kind).eps_fn(Y)(x_t(), 30))
    merge_lora(denoiser.network)
    found = denoiser.eps_fn(Y)(x_t(), 30)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_names_that_no_layer_has_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"names \['to_w'\], .* layers end with .*'to_q'"):
        LabeledDenoiser(base("text"), 4, 3, ["to_q", "to_w"])
