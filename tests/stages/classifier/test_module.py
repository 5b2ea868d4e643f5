import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sidepipe.base.images import to_model
from sidepipe.diffusion.guidance import Posterior
from sidepipe.diffusion.schedule import add_noise
from sidepipe.stages.classifier.module import (
    IgnoresTime,
    NoisyClassifierModule,
    quality_by_noise_level,
    quality_on_clean_images,
)

T = 100
ALPHAS_CUMPROD = (1 - torch.linspace(1e-3, 0.2, T)).cumprod(0)
LABELS = torch.tensor([0, 1]).repeat(1500)
IMAGES = (2.0 * LABELS - 1).reshape(-1, 1, 1, 1)  # one pixel, -1 or 1


class Bayes(nn.Module):
    """The exact p(y | x_t) of images that are one pixel of -1 or 1, equally often."""

    def forward(self, x_t, t):
        alpha_bar = ALPHAS_CUMPROD[t]
        half = alpha_bar.sqrt() * x_t[:, 0, 0, 0] / (1 - alpha_bar)
        return torch.stack([-half, half], 1)


def exact(t_from, t_to):
    """Bayes' expected cross-entropy and accuracy, by quadrature over the noise, mean over t."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    entropies, accuracies = [], []
    for alpha_bar in ALPHAS_CUMPROD[t_from:t_to].double().tolist():
        x = math.sqrt(alpha_bar) + math.sqrt(1 - alpha_bar) * nodes
        loss = np.log1p(np.exp(-2 * math.sqrt(alpha_bar) * x / (1 - alpha_bar)))
        entropies.append(loss @ weights / weights.sum())
        accuracies.append(0.5 * (1 + math.erf(math.sqrt(alpha_bar / (1 - alpha_bar) / 2))))
    return np.mean(entropies), np.mean(accuracies)


def test_quality_of_the_exact_classifier_is_the_known_one_in_every_bin():
    rows = quality_by_noise_level(Bayes(), IMAGES, LABELS, ALPHAS_CUMPROD, seed=0)
    assert [(r["t_from"], r["t_to"]) for r in rows] == [(i, i + 10) for i in range(0, 100, 10)]
    for row in rows:
        cross_entropy, accuracy = exact(row["t_from"], row["t_to"])
        # 12,000 draws: their standard error is below 0.005.
        assert row["cross_entropy"] == pytest.approx(cross_entropy, abs=0.015)
        assert row["accuracy"] == pytest.approx(accuracy, abs=0.015)
    assert rows[0]["accuracy"] > 0.99
    assert 0.5 < exact(50, 60)[1] < 0.8  # the toy is hard enough to tell bins apart


def test_quality_of_a_classifier_that_knows_nothing_is_chance():
    network = nn.Module()
    network.forward = lambda x_t, t: torch.zeros(len(x_t), 5)
    labels = torch.arange(300) % 5
    rows = quality_by_noise_level(network, torch.zeros(300, 1, 2, 2), labels, ALPHAS_CUMPROD, 0)
    for row in rows:
        assert row["cross_entropy"] == pytest.approx(math.log(5), abs=1e-6)
        assert row["accuracy"] == pytest.approx(0.2)


class Spy(nn.Module):
    """Keeps what it is asked."""

    def __init__(self):
        super().__init__()
        self.asked = []
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x_t, t):
        self.asked.append((x_t, t, self.training))
        return self.scale * torch.zeros(len(x_t), 2)


def test_quality_noises_every_image_draws_times_a_bin_in_eval_mode():
    network = Spy()
    quality_by_noise_level(network.train(), IMAGES[:300], LABELS[:300], ALPHAS_CUMPROD, 0, 4, 3)
    assert not any(training for _, _, training in network.asked)
    t = torch.cat([t for _, t, _ in network.asked])
    assert t.shape == (300 * 3 * 4,)
    low, high = t.reshape(4, -1).min(1).values, t.reshape(4, -1).max(1).values
    assert low.tolist() == [0, 25, 50, 75]
    assert high.tolist() == [24, 49, 74, 99]


def module(network, **changes):
    settings = {
        "lr": 0.01,
        "weight_decay": 0.0,
        "lr_warmup_steps": 1,
        "random_flip": False,
        "seed": 0,
        "noised": True,
    }
    return NoisyClassifierModule(network, ALPHAS_CUMPROD, **{**settings, **changes})


def ramps(n):
    """uint8 images, dark on the left, no two alike, and so different from their mirror images."""
    rows = torch.arange(4).reshape(1, 1, 4, 1) * 60 + torch.arange(n).reshape(n, 1, 1, 1) % 16
    return rows.expand(n, 4, 4, 1).to(torch.uint8)


def noised(images, **changes):
    """x_t, t of a training batch."""
    classifier = module(Spy(), **changes)
    return classifier._noised(images, torch.Generator().manual_seed(0), (0, 1))


def test_x_t_is_the_image_noised_at_a_uniform_t():
    images = ramps(4000)
    x_t, t = noised(images)
    assert (t.min(), t.max()) == (0, T - 1)
    counts = torch.bincount(t, minlength=T)
    assert counts.min() > 10
    assert counts.max() < 80
    x_0 = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    alpha_bar = ALPHAS_CUMPROD[t].reshape(-1, 1, 1, 1)
    eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
    assert abs(float(eps.mean())) < 0.02
    assert float(eps.std()) == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(x_t, add_noise(x_0, eps, t, ALPHAS_CUMPROD))


def test_without_noise_it_sees_the_images_at_t_0():
    images = ramps(300)
    x_t, t = noised(images, noised=False)
    assert x_t.equal(to_model(images))
    assert t.equal(torch.zeros(300, dtype=torch.int64))


def test_without_noise_it_is_validated_on_the_images_themselves():
    network = Spy()
    classifier = module(network, noised=False)
    classifier.log = lambda name, value, **options: None
    classifier.validation_step([ramps(8), torch.arange(8) % 2], 0)
    [(x_t, t, _)] = network.asked
    assert x_t.equal(to_model(ramps(8)))
    assert t.tolist() == [0] * 8


def test_what_ignores_time_is_told_0_at_every_t():
    network = Spy()
    IgnoresTime(network)(IMAGES[:3], torch.tensor([0, 7, 99]))
    [(x_t, t, _)] = network.asked
    assert x_t is IMAGES[:3] or x_t.equal(IMAGES[:3])
    assert t.tolist() == [0, 0, 0]


def test_quality_on_clean_images_is_of_every_image_once_at_t_0():
    network = Spy()
    network.forward = lambda x_t, t: torch.stack([t - x_t[:, 0, 0, 0], x_t[:, 0, 0, 0]], 1)
    labels = LABELS.clone()
    labels[:300] = 1 - labels[:300]  # a tenth of 3,000 are named wrongly
    quality = quality_on_clean_images(network, IMAGES, labels)
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert quality["accuracy"] == pytest.approx(0.9)
    assert quality["cross_entropy"] == pytest.approx(0.9 * right + 0.1 * wrong, rel=1e-5)


def test_two_ranks_together_see_the_noise_that_one_process_sees():
    images, classifier = ramps(8), module(Spy())
    whole = classifier._noised(images, torch.Generator().manual_seed(0), (0, 1))
    halves = [
        classifier._noised(part, torch.Generator().manual_seed(0), (rank, 2))
        for rank, part in enumerate(images.split(4))
    ]
    for together, parts in zip(whole, zip(*halves, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(parts), together)


def flipped(x_t, t, images):
    """Which images lie mirrored in x_t, by which they resemble more."""
    x_0 = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    x_0 = x_0 * ALPHAS_CUMPROD[t].sqrt().reshape(-1, 1, 1, 1)
    plain, mirror = ((x_t - x).square().flatten(1).sum(1) for x in (x_0, x_0.flip(3)))
    clear = ALPHAS_CUMPROD[t] > 0.8
    return (mirror < plain)[clear]


def test_half_of_the_images_are_mirrored_in_training_only_and_only_if_asked():
    images = ramps(2000)
    share = flipped(*noised(images, random_flip=True), images).float().mean()
    assert 0.4 < share < 0.6
    assert not flipped(*noised(images), images).any()
    classifier = module(Spy(), random_flip=True).eval()
    x_t, t = classifier._noised(images, torch.Generator().manual_seed(0), (0, 1))
    assert not flipped(x_t, t, images).any()


def test_validation_is_the_same_at_every_step_and_logs_cross_entropy_and_accuracy():
    network, logged = Spy(), {}
    classifier = module(network)
    classifier.log = lambda name, value, **options: logged.update({name: float(value)})
    images, labels = ramps(64), torch.arange(64) % 4 // 3  # one in four is a 1
    with torch.no_grad():
        for _ in range(2):
            classifier.validation_step([images, labels], 3)
    (first, t, _), (second, t_again, _) = network.asked
    assert first.equal(second)
    assert t.equal(t_again)
    logits = torch.zeros(64, 2)
    assert logged["val/cross_entropy"] == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert logged["val/accuracy"] == pytest.approx(0.75)


class Teacher(Posterior):
    """Says that everything is label 1 with probability 0.7, and 0 with 0.3."""

    def __init__(self):
        torch.nn.Module.__init__(self)

    def log_probs(self, x_t, t):
        return torch.tensor([[0.3, 0.7]], dtype=torch.float64).log().expand(len(x_t), -1)


def test_the_distance_to_the_closed_form_is_the_mean_kl_from_it():
    network = nn.Module()
    network.forward = lambda x_t, t: torch.tensor([[2.0, 0.5]]).expand(len(x_t), -1)
    rows = quality_by_noise_level(
        network, IMAGES[:300], LABELS[:300], ALPHAS_CUMPROD, 0, teacher=Teacher()
    )
    q = torch.tensor([2.0, 0.5]).softmax(0).tolist()
    expected = 0.3 * math.log(0.3 / q[0]) + 0.7 * math.log(0.7 / q[1])
    assert [row["posterior_kl"] for row in rows] == pytest.approx([expected] * 10)


def test_with_a_teacher_the_loss_is_the_cross_entropy_to_its_probabilities():
    logged = {}
    classifier = module(Spy(), teacher=Teacher())
    classifier.log = lambda name, value, **options: logged.update({name: float(value)})
    with torch.no_grad():
        classifier.validation_step([ramps(8), torch.zeros(8, dtype=torch.int64)], 0)
    assert logged["val/cross_entropy"] == pytest.approx(math.log(2))  # of zeros, whatever is asked
    x_t, t = torch.zeros(8, 1, 4, 4), torch.arange(8)
    target = classifier._target(x_t, t, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(target, torch.tensor([[0.3, 0.7]]).expand(8, -1))
