import pytest
import torch

from sidepipe.diffusion.guidance import grad_of, guided
from sidepipe.diffusion.shaping import ClippedNorm, ScaledByNoise, ThroughPredX0

ALPHAS_CUMPROD = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
RNG = torch.Generator().manual_seed(0)
X_T, EPS = (torch.randn(4, 2, 3, 3, generator=RNG, dtype=torch.float64) for _ in range(2))
Y = torch.tensor([0, 2, 1, 0])


def at(step):
    return torch.full((4,), step)


class Smooth:
    """A classifier of three labels, smooth in x_t; keeps the t it is asked at."""

    def __init__(self):
        self.asked = []
        self.weights = torch.randn(18, 3, generator=torch.Generator().manual_seed(1)).double()

    def log_prob(self, x_t, t, y):
        self.asked.append(t.tolist())
        logits = x_t.flatten(1).sin() @ self.weights
        return logits.log_softmax(1).gather(1, y[:, None])[:, 0]

    def grad_log_prob(self, x_t, t, y):
        return grad_of(self.log_prob)(x_t, t, y)


class Given:
    """A surrogate of one gradient everywhere; counts how often it is asked."""

    def __init__(self, gradient):
        self.gradient, self.asked = gradient, 0

    def grad_log_prob(self, x_t, t, y):
        self.asked += 1
        return self.gradient


@pytest.mark.parametrize("step", [0, 300, 999])
def test_through_pred_x_0_is_autograd_of_log_p_of_pred_x_0_with_eps_constant(step):
    surrogate, alpha_bar = Smooth(), ALPHAS_CUMPROD[step]

    def log_prob(x_t, t, y):
        pred_x_0 = (x_t - (1 - alpha_bar).sqrt() * EPS) / alpha_bar.sqrt()
        return surrogate.log_prob(pred_x_0, t, y)

    expected = grad_of(log_prob)(X_T, at(step), Y)
    surrogate.asked.clear()
    through = ThroughPredX0(surrogate, ALPHAS_CUMPROD)
    torch.testing.assert_close(through(X_T, step, Y, EPS), expected)
    assert surrogate.asked == [[0, 0, 0, 0]]  # pred_x_0 is an image, whatever t is


def test_through_pred_x_0_of_the_true_eps_sees_the_image_that_was_noised():
    x_0 = torch.rand(4, 2, 3, 3, generator=torch.Generator().manual_seed(2)).double()
    alpha_bar = ALPHAS_CUMPROD[600]
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * EPS
    ours = ThroughPredX0(Smooth(), ALPHAS_CUMPROD)(x_t, 600, Y, EPS)
    expected = Smooth().grad_log_prob(x_0, at(0), Y) / alpha_bar.sqrt()
    torch.testing.assert_close(ours, expected)


def test_a_factor_of_a_timestep_scales_the_gradient_and_0_does_not_ask_for_it():
    surrogate, factors = Given(EPS), torch.zeros(1000)
    factors[10], factors[20] = 0.25, 1
    scaled = ScaledByNoise(surrogate, factors)
    torch.testing.assert_close(scaled(X_T, 10, Y, EPS), 0.25 * EPS)
    assert scaled(X_T, 20, Y, EPS).equal(EPS)
    assert surrogate.asked == 2
    assert scaled(X_T, 11, Y, EPS).equal(torch.zeros_like(X_T))
    assert surrogate.asked == 2


def lengths(x):
    return [float(image.square().sum().sqrt()) for image in x]


def test_guidance_moves_eps_by_at_most_so_many_of_its_lengths_and_no_short_one_less():
    gradient = EPS.flip(0) * torch.tensor([0.0, 0.01, 1, 100]).reshape(4, 1, 1, 1)
    alpha_bar, scale, most = ALPHAS_CUMPROD[400], 3.0, 0.5
    clipped = ClippedNorm(Given(gradient), scale, most, ALPHAS_CUMPROD)
    eps_hat = guided(lambda x_t, t: EPS, clipped, Y, scale, ALPHAS_CUMPROD)(X_T, 400)
    moved, unclipped = EPS - eps_hat, scale * (1 - alpha_bar).sqrt() * gradient
    for i in range(4):
        whole, limit = lengths(unclipped)[i], most * lengths(EPS)[i]
        assert lengths(moved)[i] == pytest.approx(min(whole, limit), rel=1e-9)
        cosine = (moved[i] * unclipped[i]).sum()
        assert cosine == pytest.approx(lengths(moved)[i] * whole, rel=1e-9)
    torch.testing.assert_close(moved[:2], unclipped[:2])
    assert lengths(moved)[0] == 0
    assert lengths(unclipped)[2] > most * lengths(EPS)[2]


def test_no_limit_that_is_reached_is_no_change():
    surrogate = Smooth()
    clipped = ClippedNorm(surrogate, 1.0, 1e9, ALPHAS_CUMPROD)
    assert clipped(X_T, 500, Y, EPS).equal(surrogate.grad_log_prob(X_T, at(500), Y))


def test_wrappers_compose_and_the_outermost_comes_last():
    factors = torch.full((1000,), 0.5)
    through = ThroughPredX0(Smooth(), ALPHAS_CUMPROD)
    plain = through(X_T, 700, Y, EPS)
    both = ClippedNorm(ScaledByNoise(through, factors), 1.0, 1e9, ALPHAS_CUMPROD)
    torch.testing.assert_close(both(X_T, 700, Y, EPS), 0.5 * plain)
    tight = ScaledByNoise(ClippedNorm(through, 1.0, 1e-3, ALPHAS_CUMPROD), factors)
    sigma = (1 - ALPHAS_CUMPROD[700]).sqrt()
    moved = sigma * tight(X_T, 700, Y, EPS)
    for ours, eps in zip(lengths(moved), lengths(EPS), strict=True):
        assert ours == pytest.approx(0.5e-3 * eps)


def test_wrappers_go_to_where_the_sampler_is():
    wrapped = ClippedNorm(
        ThroughPredX0(torch.nn.Linear(1, 1), ALPHAS_CUMPROD), 1.0, 1.0, ALPHAS_CUMPROD
    ).to("meta")
    assert {x.device.type for x in [*wrapped.buffers(), *wrapped.parameters()]} == {"meta"}
