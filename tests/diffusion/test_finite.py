import pytest
import torch

from sidepipe.base.images import to_uint8
from sidepipe.diffusion.finite import require_finite_eps, watched
from sidepipe.diffusion.refine import seek_mode
from sidepipe.diffusion.sampler import SAMPLERS, evaluated, sampling_timesteps
from sidepipe.diffusion.schedule import clip_x_0

ALPHAS_CUMPROD = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
X_T = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
TIMESTEPS = sampling_timesteps(1000, 10, "leading")
NUMBERS = [40, 41, 42, 43, 44, 45]


def breaking(value, at, rows=(2, 5)):
    """An eps_fn with one number that is not finite, in some images at some timesteps."""

    def eps_fn(x_t, t):
        eps = 0.1 * x_t
        if t in at:
            eps[list(rows), 0, 1, 2] = value
        return eps

    return eps_fn


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_the_first_step_that_is_not_finite_is_named_with_its_images(value, sampler):
    seen = []
    eps_fn = watched(breaking(value, at=(600, 300)), "the model's prediction", seen)
    # Clipping alone would turn an infinite eps into a black or white image.
    x_0 = SAMPLERS[sampler](clip_x_0(eps_fn, ALPHAS_CUMPROD), X_T, TIMESTEPS, ALPHAS_CUMPROD)
    assert len(seen) == len(evaluated(sampler, TIMESTEPS, ALPHAS_CUMPROD))
    message = (
        r"^generate: the model's prediction is not finite at t = 600, in 2 of 6 images of a batch "
        r"\(images 42, 45\); .*; remedy: check the model's weights, and set precision="
    )
    with pytest.raises(RuntimeError, match=message):
        require_finite_eps(seen, "generate", NUMBERS)
    assert x_0.shape == X_T.shape


def test_steps_of_refinement_are_watched_too():
    seen = []
    eps_fn = watched(breaking(torch.nan, at=(60,)), "the model's prediction", seen)
    seek_mode(clip_x_0(eps_fn, ALPHAS_CUMPROD), X_T, 60, 3, ALPHAS_CUMPROD)
    with pytest.raises(RuntimeError, match=r"at t = 60, in 2 of 6 images"):
        require_finite_eps(seen, "extract", NUMBERS)


def test_finite_steps_pass_and_eps_is_left_alone():
    seen = []
    eps_fn = watched(breaking(torch.nan, at=()), "the model's prediction", seen)
    assert eps_fn(X_T, 5).equal(0.1 * X_T)
    require_finite_eps(seen, "generate", NUMBERS)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_never_becomes_an_image(value):
    x_0 = torch.zeros(3, 1, 4, 4)
    assert to_uint8(x_0 + 7).min() == 255
    x_0[1, 0, 2, 2] = value
    with pytest.raises(RuntimeError, match=r"1 of 3 images are not finite; remedy: check the mode"):
        to_uint8(x_0)
