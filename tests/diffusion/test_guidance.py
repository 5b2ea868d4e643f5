import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sidepipe.base.images import to_model
from sidepipe.diffusion import guidance
from sidepipe.diffusion.guidance import NeedsEps, Posterior, grad_of, guided
from sidepipe.diffusion.sampler import ddim, sampling_timesteps

MEANS = torch.tensor([-2.0, 1.0], dtype=torch.float64)
STDS = torch.tensor([0.5, 0.3], dtype=torch.float64)
WEIGHTS = torch.tensor([0.6, 0.4], dtype=torch.float64)


@pytest.fixture
def alphas_cumprod():
    return (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)


class Mixture:
    """Two Gaussians in one dimension, noised: exact eps, exact classifier, exact gradient."""

    def __init__(self, alphas_cumprod):
        self.alphas_cumprod = alphas_cumprod

    def components(self, x_t, t):
        """log p(x_t, c) up to a constant and grad_x log p(x_t | c), both (n, 2)."""
        alpha_bar = self.alphas_cumprod[t].reshape(
            -1, 1
        )  # of a sampler's one t, or of each image's
        variances = alpha_bar * STDS**2 + 1 - alpha_bar
        offsets = x_t - alpha_bar.sqrt() * MEANS
        log_joint = WEIGHTS.log() - offsets**2 / (2 * variances) - variances.log() / 2
        return log_joint, -offsets / variances

    def eps(self, x_t, t):
        log_joint, scores = self.components(x_t, t)
        score = (log_joint.softmax(1) * scores).sum(1, keepdim=True)
        return -(1 - self.alphas_cumprod[t].reshape(-1, 1)).sqrt() * score

    def log_prob(self, x_t, t, y):
        log_joint, _ = self.components(x_t, t)
        return log_joint.log_softmax(1).gather(1, y[:, None])[:, 0]

    def grad_log_prob(self, x_t, t, y):
        log_joint, scores = self.components(x_t, t)
        score = (log_joint.softmax(1) * scores).sum(1, keepdim=True)
        return scores.gather(1, y[:, None]) - score


def sample_classes(alphas_cumprod, guidance_scale, num_images=20_000):
    """x_0 (n,) of DDIM over 200 steps, the first half guided to class 0 and the rest to class 1."""
    mixture = Mixture(alphas_cumprod)
    y = torch.arange(2).repeat_interleave(num_images // 2)
    x_T = torch.randn(
        num_images, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    grad = grad_of(mixture.log_prob)
    eps_fn = guided(mixture.eps, grad, y, guidance_scale, alphas_cumprod)
    timesteps = sampling_timesteps(1000, 200, "trailing")
    return ddim(eps_fn, x_T, timesteps, alphas_cumprod)[:, 0].reshape(2, -1)


def test_guidance_by_the_exact_classifier_samples_each_class_exactly(alphas_cumprod):
    x_0 = sample_classes(alphas_cumprod, guidance_scale=1.0)
    torch.testing.assert_close(x_0.mean(1), MEANS, rtol=0, atol=0.02)
    torch.testing.assert_close(x_0.std(1), STDS, rtol=0, atol=0.03)


def test_guidance_of_the_wrong_sign_drives_each_label_away_from_its_class(alphas_cumprod):
    x_0 = sample_classes(alphas_cumprod, guidance_scale=-1.0, num_images=2_000)
    assert ((x_0.mean(1) - MEANS).abs() > 1).all()


def test_scale_0_is_unguided_exactly_and_asks_no_surrogate(alphas_cumprod):
    mixture, x_t, t = Mixture(alphas_cumprod), torch.randn(4, 1).double(), 300
    surrogate = Counting()
    eps_fn = guided(mixture.eps, surrogate, torch.zeros(4, dtype=torch.int64), 0.0, alphas_cumprod)
    assert eps_fn(x_t, t).equal(mixture.eps(x_t, t))
    assert surrogate.steps == []


def test_guidance_moves_eps_by_minus_scale_sigma_gradient(alphas_cumprod):
    x_t, t = torch.zeros(2, 3, 4, 4), 700
    y = torch.tensor([5, 6])
    gradient = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    asked = []

    def surrogate(x_t, t, y):
        asked.append((x_t, t, y))
        return gradient

    eps_hat = guided(lambda x_t, t: x_t + 1, surrogate, y, 2.5, alphas_cumprod)(x_t, t)
    sigma = (1 - float(alphas_cumprod[700])) ** 0.5
    torch.testing.assert_close(eps_hat, 1 - 2.5 * sigma * gradient)
    [(asked_x_t, asked_t, asked_y)] = asked
    assert asked_x_t is x_t
    assert asked_t.tolist() == [700, 700]
    assert asked_t.dtype == torch.int64
    assert asked_y.equal(y)


def test_a_gradient_that_sees_eps_gets_the_model_s(alphas_cumprod):
    class Eps(NeedsEps):
        def forward(self, x_t, t, y, eps):
            return eps * y[:, None]

    x_t, t, y = torch.ones(2, 3), 700, torch.tensor([1, 5])
    eps_hat = guided(lambda x_t, t: x_t + 1, Eps(), y, 0.5, alphas_cumprod)(x_t, t)
    sigma = (1 - float(alphas_cumprod[700])) ** 0.5
    torch.testing.assert_close(eps_hat, 2 - 0.5 * sigma * 2 * y[:, None].expand(2, 3))


class Counting:
    """A surrogate that keeps the timesteps it is asked at."""

    def __init__(self):
        self.steps = []

    def __call__(self, x_t, t, y):
        self.steps.append(int(t[0]))
        return torch.ones_like(x_t)


@pytest.mark.parametrize(
    ("t_min", "t_max", "inside"),
    [
        (0, None, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (4, None, [9, 8, 7, 6, 5, 4]),
        (0, 3, [3, 2, 1, 0]),
        (2, 5, [5, 4, 3, 2]),
        (7, 7, [7]),
        (0, 0, [0]),
        (6, 2, []),
    ],
)
def test_the_surrogate_is_asked_at_every_step_inside_the_interval_and_never_outside(
    alphas_cumprod, t_min, t_max, inside
):
    surrogate, y = Counting(), torch.zeros(3, dtype=torch.int64)
    guided_eps_fn = guided(lambda x_t, t: x_t, surrogate, y, 1.0, alphas_cumprod, t_min, t_max)
    x_t = torch.ones(3, 2)
    changed = [t for t in reversed(range(10)) if not guided_eps_fn(x_t, t).equal(x_t)]
    assert surrogate.steps == inside
    assert changed == inside


def test_grad_of_equals_the_analytic_gradient(alphas_cumprod):
    mixture = Mixture(alphas_cumprod)
    x_t = torch.linspace(-4, 4, 50, dtype=torch.float64)[:, None]
    t, y = torch.arange(0, 1000, 20), torch.arange(50) % 2
    torch.testing.assert_close(
        grad_of(mixture.log_prob)(x_t, t, y), mixture.grad_log_prob(x_t, t, y)
    )


def test_grad_of_works_where_gradients_are_off_and_leaves_no_graph(alphas_cumprod):
    mixture = Mixture(alphas_cumprod)
    x_t, t, y = torch.randn(3, 1).double(), torch.tensor([5, 50, 500]), torch.tensor([0, 1, 0])
    with torch.no_grad():
        gradient = grad_of(mixture.log_prob)(x_t, t, y)
    torch.testing.assert_close(gradient, mixture.grad_log_prob(x_t, t, y))
    assert not gradient.requires_grad
    assert not x_t.requires_grad


def test_grad_of_puts_no_gradient_on_the_classifiers_weights():
    net = torch.nn.Linear(2, 3)
    log_prob = lambda x_t, t, y: net(x_t).log_softmax(1).gather(1, y[:, None])[:, 0]  # noqa: E731
    grad_of(log_prob)(
        torch.randn(4, 2), torch.zeros(4, dtype=torch.int64), torch.tensor([0, 1, 2, 0])
    )
    assert net.weight.grad is None


# The closed-form posterior, on 40 images of 4 labels and some of none.

LABELS = torch.tensor([0, 1, 2, 3, -1] * 8)
T = torch.tensor([10, 100, 300, 600, 900, 999])
Y = torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.fixture
def images():
    rng = torch.Generator().manual_seed(1)
    return torch.rand(40, 1, 3, 2, generator=rng, dtype=torch.float64) * 2 - 1


@pytest.fixture
def x_t(images, alphas_cumprod):
    """Noised images at the times of T: near one image at the first, far from all at the last."""
    eps = torch.randn(6, 1, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    alpha_bar = alphas_cumprod[T].reshape(-1, 1, 1, 1)
    return alpha_bar.sqrt() * images[:6] + (1 - alpha_bar).sqrt() * eps


def naive_log_joint(x_t, t, y, images, labels, alphas_cumprod):
    """log sum of the weights of y's images, and of all, one image and one x_t at a time."""
    within, overall = [], []
    for x, step, label in zip(x_t, t, y, strict=True):
        alpha_bar = alphas_cumprod[step]
        w = [-((x - alpha_bar.sqrt() * s) ** 2).sum() / (2 * (1 - alpha_bar)) for s in images]
        mine = [w_i for w_i, its in zip(w, labels, strict=True) if its == label]
        within.append(torch.stack(mine).logsumexp(0))
        overall.append(torch.stack(w).logsumexp(0))
    return torch.stack(within), torch.stack(overall)


def test_log_prob_equals_a_naive_double_loop(images, x_t, alphas_cumprod):
    within, overall = naive_log_joint(x_t, T, Y, images, LABELS, alphas_cumprod)
    ours = Posterior(images, LABELS, alphas_cumprod).log_prob(x_t, T, Y)
    torch.testing.assert_close(ours, within - overall, rtol=1e-9, atol=1e-9)


def test_grad_log_prob_equals_autograd_of_log_prob(images, x_t, alphas_cumprod):
    posterior = Posterior(images, LABELS, alphas_cumprod)
    expected = grad_of(posterior.log_prob)(x_t, T, Y)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(posterior.grad_log_prob(x_t, T, Y), expected, rtol=1e-8, atol=1e-10)


def test_grad_log_prob_is_the_difference_of_exact_mixture_scores(images, x_t, alphas_cumprod):
    """score of the label's noised images minus score of all, by torch.distributions."""

    def score(of, x, alpha_bar):
        x = x.flatten().clone().requires_grad_(True)
        spread = (1 - alpha_bar).sqrt().expand(len(of), x.numel())
        noised = Independent(Normal(alpha_bar.sqrt() * of.flatten(1), spread), 1)
        density = MixtureSameFamily(Categorical(torch.ones(len(of)).double()), noised)
        return torch.autograd.grad(density.log_prob(x), x)[0]

    expected = [
        score(images[y == LABELS], x, alphas_cumprod[t]) - score(images, x, alphas_cumprod[t])
        for x, t, y in zip(x_t, T, Y, strict=True)
    ]
    ours = Posterior(images, LABELS, alphas_cumprod).grad_log_prob(x_t, T, Y)
    torch.testing.assert_close(ours.flatten(1), torch.stack(expected), rtol=1e-8, atol=1e-8)


def total_prob(posterior, x_t, labels):
    return sum(posterior.log_prob(x_t, T, torch.full((6,), label)).exp() for label in labels)


def test_probabilities_sum_to_one_over_labels(images, x_t, alphas_cumprod):
    labels = LABELS.clamp_min(0)
    total = total_prob(Posterior(images, labels, alphas_cumprod), x_t, range(4))
    torch.testing.assert_close(total, torch.ones(6).double(), rtol=1e-9, atol=0)


def test_images_without_a_label_give_their_share_to_no_label(images, x_t, alphas_cumprod):
    total = total_prob(Posterior(images, LABELS, alphas_cumprod), x_t, range(4))
    as_label = torch.where(LABELS == -1, 4, LABELS)
    of_none = total_prob(Posterior(images, as_label, alphas_cumprod), x_t, [4])
    assert (of_none > 1e-3).any()
    torch.testing.assert_close(total, 1 - of_none, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("images_a_block", [1, 3, 7, 40])
def test_log_probs_are_those_of_every_label_given_that_there_is_one(
    images, x_t, alphas_cumprod, images_a_block, monkeypatch
):
    posterior = Posterior(images, LABELS, alphas_cumprod)
    each = [posterior.log_prob(x_t, T, torch.full((6,), label)) for label in range(4)]
    expected = torch.stack(each, 1).log_softmax(1)
    monkeypatch.setattr(guidance, "BLOCK_ELEMENTS", 7 * images_a_block)
    ours = posterior.log_probs(x_t, T)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.exp().sum(1), torch.ones(6).double())
    assert (ours.exp().amax(1) < 0.99).any()


def test_a_label_that_no_image_has_is_impossible(images, x_t, alphas_cumprod):
    log_prob = Posterior(images, LABELS, alphas_cumprod).log_prob(x_t, T, torch.full((6,), 7))
    assert log_prob.tolist() == [-torch.inf] * 6


@pytest.mark.parametrize("images_a_block", [1, 3, 7, 39])
def test_blocks_do_not_matter(images, x_t, alphas_cumprod, images_a_block, monkeypatch):
    posterior = Posterior(images, LABELS, alphas_cumprod)
    whole = posterior.log_prob(x_t, T, Y), posterior.grad_log_prob(x_t, T, Y)
    monkeypatch.setattr(guidance, "BLOCK_ELEMENTS", 6 * images_a_block)
    blocked = posterior.log_prob(x_t, T, Y), posterior.grad_log_prob(x_t, T, Y)
    torch.testing.assert_close(blocked, whole, rtol=1e-10, atol=1e-12)
    by_autograd = grad_of(posterior.log_prob)(x_t, T, Y)
    torch.testing.assert_close(blocked[1], by_autograd, rtol=1e-8, atol=1e-10)


def test_nothing_computed_is_larger_than_a_block(alphas_cumprod, monkeypatch):
    """Of 5,000 images of 48 pixels and 16 x_t: neither all pixels nor all weights at once."""
    monkeypatch.setattr(guidance, "BLOCK_ELEMENTS", 2000)
    images = torch.randint(0, 256, (5000, 3, 4, 4), dtype=torch.uint8)
    posterior = Posterior(images, torch.arange(5000) % 3, alphas_cumprod.float())
    with Sizes() as sizes:
        posterior.grad_log_prob(
            torch.randn(16, 3, 4, 4), torch.full((16,), 300), torch.arange(16) % 3
        )
    assert 1000 < sizes.largest <= 2000


class Sizes(TorchDispatchMode):
    """Keeps the number of elements of the largest tensor that any operation gives."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.largest = max(self.largest, *(x.numel() for x in tensors), 0)
        return result


def test_bytes_are_the_images_that_models_see(x_t, alphas_cumprod):
    pixels = torch.randint(0, 256, (40, 3, 2, 1), generator=torch.Generator().manual_seed(4))
    pixels = pixels.to(torch.uint8)
    images = to_model(pixels).double()
    ours = Posterior(pixels.permute(0, 3, 1, 2), LABELS, alphas_cumprod)
    same = Posterior(images, LABELS, alphas_cumprod)
    assert ours.grad_log_prob(x_t, T, Y).equal(same.grad_log_prob(x_t, T, Y))


def test_a_label_of_which_all_images_are_far_has_a_finite_gradient(alphas_cumprod):
    """Weights of its images are e^-10,000 of the others', which is 0 in any float."""
    images = torch.tensor([[-1.0], [1.0], [0.98]]).double()
    posterior = Posterior(images, torch.tensor([0, 1, 1]), alphas_cumprod)
    t, y, x_t = torch.tensor([0]), torch.tensor([1]), torch.tensor([[-1.0]]).double()
    assert posterior.log_prob(x_t, t, y) < -10_000
    sqrt_ab, variance = alphas_cumprod[0].sqrt(), 1 - alphas_cumprod[0]
    expected = sqrt_ab / variance * (0.98 + 1)
    torch.testing.assert_close(
        posterior.grad_log_prob(x_t, t, y)[0, 0], expected, rtol=1e-6, atol=0
    )


def test_float32_images_lose_no_precision_at_the_least_noise(alphas_cumprod):
    """At t = 0 the weights are small differences of numbers near 1e6, beyond float32."""
    rng = torch.Generator().manual_seed(3)
    base = torch.rand(1, 3, 16, 16, generator=rng) * 2 - 1
    images = base + 1e-3 * torch.randn(20, 3, 16, 16, generator=rng)
    labels, y, t = torch.arange(20) % 4, torch.tensor([0, 1]), torch.tensor([0, 0])
    x_t = images[:2] + 1e-2 * torch.randn(2, 3, 16, 16, generator=rng)
    posterior = Posterior(images, labels, alphas_cumprod.float())
    within, overall = naive_log_joint(
        x_t.double(), t, y, images.double(), labels, alphas_cumprod.float().double()
    )
    torch.testing.assert_close(
        posterior.log_prob(x_t, t, y), within - overall, rtol=1e-6, atol=1e-6
    )
    gradient = posterior.grad_log_prob(x_t, t, y)
    assert gradient.dtype == torch.float32
    assert gradient.shape == x_t.shape
    expected = grad_of(posterior.log_prob)(x_t.double(), t, y).float()
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_labels_must_be_one_per_image(images, alphas_cumprod):
    # A TypeError where annotations are checked too: they say the same.
    with pytest.raises((ValueError, TypeError), match="labels"):
        Posterior(images, LABELS[1:], alphas_cumprod)
