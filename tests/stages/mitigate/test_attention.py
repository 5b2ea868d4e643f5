"""Attention scaling against attention by hand, and against the model that it leaves."""

import pytest
import torch
from diffusers.models.attention_processor import Attention
from tests.models.text.tiny import CAPTIONS, tiny_text_model

from sidepipe.models.text.trajectory import prompt_noise, sample
from sidepipe.stages.mitigate.attention import ScaledAttention, attention_scaled


@pytest.fixture(scope="module")
def model():
    return tiny_text_model()


def images(model, captions):
    e, e_0 = model.encode(captions), model.encode([""])
    return sample(model, prompt_noise(model, 0, range(len(captions)), 1), e, e_0, 3.0, 5)


def test_a_scale_of_1_with_every_position_seen_changes_no_image(model):
    plain = images(model, CAPTIONS[:2])
    with attention_scaled(model, [model.max_tokens] * 2, 1.0):
        assert (images(model, CAPTIONS[:2]).int() - plain.int()).abs().max() <= 1
    before = model.unet.attn_processors
    with attention_scaled(model, [2, 3], 1.25):
        assert not torch.equal(images(model, CAPTIONS[:2]), plain)
    assert model.unet.attn_processors == before
    assert torch.equal(images(model, CAPTIONS[:2]), plain)


def test_logits_are_those_of_the_paper_and_the_empty_prompts_half_is_left_alone():
    torch.manual_seed(0)
    attention = Attention(query_dim=6, cross_attention_dim=5, heads=2, dim_head=3)
    x, context = torch.randn(3, 4, 6), torch.randn(3, 7, 5)
    seen = torch.tensor([[True] * 3 + [False] * 4])
    plain = attention(x, encoder_hidden_states=context)
    attention.set_processor(ScaledAttention(seen, 1.5))
    found = attention(x, encoder_hidden_states=context)
    torch.testing.assert_close(found[:2], plain[:2])
    query = attention.to_q(x[2]).unflatten(1, (2, 3))
    key, value = (to(context[2]).unflatten(1, (2, 3)) for to in (attention.to_k, attention.to_v))
    heads = []
    for head in range(2):
        logits = query[:, head] @ key[:, head].T / 3**0.5
        logits[:, 0] *= 1.5
        weights = torch.cat([logits[:, :3].softmax(1), torch.zeros(4, 4)], dim=1)
        heads.append(weights @ value[:, head])
    torch.testing.assert_close(found[2], attention.to_out[0](torch.cat(heads, dim=1)))


def test_what_comes_after_a_prompts_words_no_longer_matters(model):
    x_t, e = prompt_noise(model, 1, [0], 1), model.encode(CAPTIONS[:1])
    other = e.clone()
    other[:, 4:] = torch.randn(1, model.max_tokens - 4, e.shape[2])
    with attention_scaled(model, [4], 1.25), torch.no_grad():
        torch.testing.assert_close(model.eps(x_t, 30, e), model.eps(x_t, 30, other))
    assert not torch.allclose(model.eps(x_t, 30, e), model.eps(x_t, 30, other))
