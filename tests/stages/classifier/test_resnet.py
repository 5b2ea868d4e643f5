import math

import pytest
import torch
from torch import nn

from sidepipe.stages.classifier.resnet import TimeResNet, fold_batch_norms, time_embedding

SMALL = {"in_channels": 1, "num_classes": 7, "blocks": [1, 1, 1], "widths": [8, 16, 24]}


def net(**changes):
    torch.manual_seed(0)
    return TimeResNet(**{**SMALL, **changes}).eval()


@pytest.mark.parametrize("size", [8, 12, 16, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_8_to_32_pixels_give_one_logit_a_label(size, channels):
    logits = net(in_channels=channels)(torch.randn(2, channels, size, size), torch.tensor([0, 999]))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_the_paper_s_numbers_give_resnet34():
    network = net(blocks=(3, 4, 6, 3), widths=(64, 128, 256, 512), stem="imagenet", in_channels=3)
    kernels = [m.kernel_size[0] for m in convolutions(network)]
    assert kernels.count(7) == 1
    assert kernels.count(3) == 32  # with the stem and the head: 34 layers
    assert kernels.count(1) == 3  # shortcuts where a level begins
    # ResNet34's published 21.28 M parameters without the 1,000 classes' head are these.
    time = sum(p.numel() for n, p in network.named_parameters() if "time" in n or "embed" in n)
    head = sum(p.numel() for p in network.head.parameters())
    assert sum(p.numel() for p in network.parameters()) - time - head == 21_284_672


@pytest.mark.parametrize(("stem", "sides"), [("small", [32, 16, 8]), ("imagenet", [8, 4, 2])])
def test_every_level_after_the_first_halves_the_resolution(stem, sides):
    network, seen = net(stem=stem), []
    for block in network.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[2:]))
    network(torch.randn(1, 1, 32, 32), torch.tensor([5]))
    assert seen == [(side, side) for side in sides]


def test_logits_depend_on_the_noise_level():
    x = torch.randn(1, 1, 8, 8).expand(3, -1, -1, -1)
    logits = net()(x, torch.tensor([0, 10, 900]))
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert (logits[1] - logits[2]).abs().max() > 1e-3


def test_every_block_depends_on_time():
    network = net()
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    normal = network(x, t)
    for block in network.blocks:
        weight = block.time.weight.clone()
        torch.nn.init.zeros_(block.time.weight)
        assert not torch.allclose(network(x, t), normal)
        with torch.no_grad():
            block.time.weight.copy_(weight)
    torch.testing.assert_close(network(x, t), normal)


@torch.no_grad()
def test_time_scales_and_shifts_the_channels_after_the_first_norm():
    block, x = net().blocks[1], torch.randn(2, 8, 8, 8)
    for parameter in (block.norm1.running_mean, block.norm1.weight, block.norm1.bias):
        parameter.copy_(torch.randn(16))
    scale, shift = torch.randn(2, 16, 1, 1)
    block.time.weight.zero_()  # so that every time gives the same scale and shift
    block.time.bias.copy_(torch.cat([scale.flatten(), shift.flatten()]))
    h = (1 + scale) * block.norm1(block.conv1(x)) + shift
    expected = (block.norm2(block.conv2(h.relu())) + block.shortcut(x)).relu()
    torch.testing.assert_close(block(x, torch.randn(2, 128)), expected)


def test_an_image_s_logits_do_not_depend_on_its_neighbors_in_the_batch():
    network, x = net(), torch.randn(6, 1, 8, 8)
    t = torch.tensor([0, 100, 300, 500, 700, 999])
    together = network(x, t)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_the_time_embedding_is_sines_and_cosines_at_geometric_frequencies():
    embedding = time_embedding(torch.arange(1000), 128)
    assert embedding.shape == (1000, 128)
    for t, k in [(0, 0), (1, 0), (7, 5), (999, 63)]:
        angle = t / 10_000 ** (k / 64)
        assert embedding[t, k] == pytest.approx(math.sin(angle), abs=1e-5)
        assert embedding[t, 64 + k] == pytest.approx(math.cos(angle), abs=1e-5)


def test_the_time_embedding_tells_all_timesteps_apart():
    embedding = time_embedding(torch.arange(1000), 128)
    assert (torch.cdist(embedding, embedding) + 9 * torch.eye(1000)).min() > 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": [8, 16]}, r"widths must be as many as blocks, \[1, 1, 1\], got \[8, 16\]"),
        ({"blocks": [1, 0, 1]}, r"blocks must be >= 1 in every level, got \[1, 0, 1\]"),
        ({"blocks": [], "widths": []}, r"blocks must be >= 1 in every level, got \[\]"),
        ({"stem": "imagnet"}, "stem does not accept 'imagnet'; did you mean 'imagenet'"),
        ({"embedding_dim": 127}, "embedding_dim must be even, got 127"),
    ],
)
def test_a_network_that_cannot_be_is_refused_with_name_rule_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        net(**changes)


@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_folded_batch_norms_give_the_same_logits_and_gradient(stem):
    network, generator = net(stem=stem, blocks=[2, 1, 1]), torch.Generator().manual_seed(1)
    with torch.no_grad():  # as after training: no norm is the identity
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
            for values in (norm.running_mean, norm.weight, norm.bias):
                values.copy_(torch.randn(len(values), generator=generator))
            norm.running_var.copy_(torch.rand(len(norm.bias), generator=generator) + 0.5)
    x, t = torch.randn(3, 1, 16, 16, generator=generator), torch.tensor([3, 700, 999])
    x.requires_grad_(True)
    logits = network(x, t)
    gradient = torch.autograd.grad(logits[:, 2].sum(), x)[0]
    folded = fold_batch_norms(network)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x, t), logits, rtol=1e-4, atol=1e-4)
    same = torch.autograd.grad(folded(x, t)[:, 2].sum(), x)[0]
    torch.testing.assert_close(same, gradient, rtol=1e-3, atol=1e-3 * float(gradient.abs().max()))
    assert gradient.abs().max() > 1e-5


def test_a_network_without_batch_norms_is_left_as_it_is():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)).eval()
    x = torch.randn(1, 1, 8, 8)
    expected = network(x)
    assert fold_batch_norms(network)(x).equal(expected)
