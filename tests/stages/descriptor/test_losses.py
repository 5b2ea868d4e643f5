import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sidepipe.stages.descriptor.losses import koleo, matches, nt_xent

# Two views of each of four images; of the second views one is mixed with image 3, one with image 1.
IDS = torch.tensor([[0, 0], [1, 1], [2, 2], [3, 3], [0, 0], [1, 3], [2, 1], [3, 3]])
TEMPERATURE = 0.3


def vectors(seed=0, n=8, d=5):
    z = np.random.default_rng(seed).normal(size=(n, d))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def brute_match(ids):
    return np.array([[bool(set(a) & set(b)) for b in ids.tolist()] for a in ids.tolist()])


def brute_nt_xent(z, match, temperature):
    views = []
    for i in range(len(z)):
        negatives = [math.exp(z[i] @ z[k] / temperature) for k in range(len(z)) if not match[i, k]]
        losses = []
        for j in range(len(z)):
            if match[i, j] and j != i:
                positive = math.exp(z[i] @ z[j] / temperature)
                losses.append(-math.log(positive / (positive + sum(negatives))))
        if losses:
            views.append(sum(losses) / len(losses))
    return sum(views) / len(views)


def brute_koleo(z, match):
    closest = [
        min(np.linalg.norm(z[i] - z[j]) for j in range(len(z)) if not match[i, j])
        for i in range(len(z))
    ]
    return -sum(map(math.log, closest)) / len(closest)


def test_views_match_where_they_share_an_image():
    match = matches(IDS).numpy()
    np.testing.assert_array_equal(match, brute_match(IDS))
    assert match[1].tolist() == [False, True, False, False, False, True, True, False]
    # The two mixtures share image 1.
    assert match[5, 6]
    assert not match[0, 5]


def test_losses_are_the_formulas():
    z, match = vectors(), matches(IDS)
    similarity = torch.tensor(z @ z.T)
    loss = nt_xent(similarity, match, TEMPERATURE)
    assert loss.item() == pytest.approx(brute_nt_xent(z, match.numpy(), TEMPERATURE), rel=1e-12)
    assert koleo(similarity, match).item() == pytest.approx(brute_koleo(z, match.numpy()), rel=1e-9)


@pytest.mark.parametrize("name", ["nt_xent", "koleo"])
def test_gradients_are_the_slopes_of_the_formulas(name):
    match = matches(IDS)
    raw = torch.tensor(vectors(1), requires_grad=True)
    z = F.normalize(raw, dim=1)
    loss = nt_xent(z @ z.T, match, TEMPERATURE) if name == "nt_xent" else koleo(z @ z.T, match)
    loss.backward()

    def formula(x):
        z = x / np.linalg.norm(x, axis=1, keepdims=True)
        if name == "nt_xent":
            return brute_nt_xent(z, match.numpy(), TEMPERATURE)
        return brute_koleo(z, match.numpy())

    slopes, step = np.zeros((8, 5)), 1e-6
    for place in np.ndindex(8, 5):
        up, down = (raw.detach().numpy().copy() for _ in range(2))
        up[place] += step
        down[place] -= step
        slopes[place] = (formula(up) - formula(down)) / (2 * step)
    assert np.abs(slopes).max() > 0.01
    assert raw.grad is not None
    np.testing.assert_allclose(raw.grad.numpy(), slopes, atol=1e-7)


def test_the_order_of_views_does_not_matter():
    z, order = vectors(), np.random.default_rng(0).permutation(8)
    for loss in (lambda z, ids: nt_xent(z @ z.T, matches(ids), TEMPERATURE),
                 lambda z, ids: koleo(z @ z.T, matches(ids))):  # fmt: skip
        here, there = loss(torch.tensor(z), IDS), loss(torch.tensor(z[order]), IDS[order])
        torch.testing.assert_close(here, there)


def test_a_perfect_descriptor_has_the_least_loss_and_chance_the_logarithm_of_the_views():
    ids = torch.tensor([[i, i] for i in [0, 1, 2, 0, 1, 2]])
    perfect = torch.eye(3).repeat(2, 1)
    assert nt_xent(perfect @ perfect.T, matches(ids), 0.05).item() < 1e-7
    same = torch.ones(6, 6)
    assert nt_xent(same, matches(ids), 0.05).item() == pytest.approx(math.log(1 + 4))


def test_matching_views_are_never_pushed_apart():
    """A match's loss does not see the other matches of its view."""
    ids = torch.tensor([[0, 0], [0, 0], [0, 0], [1, 1]])
    similarity = torch.eye(4, dtype=torch.float64)
    similarity[0, 1] = 0.5
    similarity.requires_grad_()
    nt_xent(similarity, matches(ids), TEMPERATURE).backward()
    assert similarity.grad is not None
    assert (similarity.grad[:3, :3] <= 0).all()
    assert (similarity.grad[:3, 3] > 0).all()


def test_views_without_a_match_or_without_others_do_not_count():
    ids = torch.tensor([[0, 0], [0, 0], [1, 1]])
    z = vectors(2, 3)
    similarity, match = torch.tensor(z @ z.T), matches(ids)
    expected = brute_nt_xent(z, match.numpy(), TEMPERATURE)
    assert nt_xent(similarity, match, TEMPERATURE).item() == pytest.approx(expected)
    # The third view matches both others, so it has no distance.
    match = matches(torch.tensor([[0, 0], [1, 1], [0, 1]]))
    distance = np.linalg.norm(z[0] - z[1])
    assert koleo(similarity, match).item() == pytest.approx(-math.log(distance))
    assert koleo(similarity, torch.ones(3, 3, dtype=torch.bool)) == 0


def test_equal_vectors_give_a_finite_loss_and_gradient():
    z = torch.ones(4, 2, requires_grad=True)
    similarity = F.normalize(z, dim=1) @ F.normalize(z, dim=1).T
    match = matches(torch.tensor([[0, 0], [1, 1], [0, 0], [1, 1]]))
    loss = nt_xent(similarity, match, 0.05) + koleo(similarity, match)
    loss.backward()
    assert torch.isfinite(loss)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
