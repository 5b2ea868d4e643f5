"""Models in closed form as checkpoints: saved, read, and sampled like any other."""

import pytest
import torch
from diffusers import DDPMScheduler

import sidepipe
from sidepipe.diffusion.mixtures import Mixture
from sidepipe.diffusion.sampler import ddim
from sidepipe.models.checkpoint import check_checkpoint, denoiser_of, read_parts, save_parts
from sidepipe.models.exact import exact_parts

POINTS = torch.rand(5, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
Y = torch.zeros(6).long()


def scheduler(prediction_type="epsilon", **settings):
    return DDPMScheduler(50, prediction_type=prediction_type, clip_sample=False, **settings)


def parts(prediction_type="epsilon", variance=0.0, basis=None):
    mixture = Mixture(POINTS.double(), torch.full((32,), variance).double(), basis)
    return exact_parts(mixture, (4, 4, 2), scheduler(prediction_type))


def x_t():
    return torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_every_prediction_type_gives_the_same_eps(prediction_type):
    expected = denoiser_of(parts(variance=0.01)).eps_fn(Y)
    found = denoiser_of(parts(prediction_type, variance=0.01)).eps_fn(Y)
    for t in (0, 20, 49):
        torch.testing.assert_close(
            found(x_t(), t).float(), expected(x_t(), t).float(), atol=1e-4, rtol=1e-4
        )


def test_a_model_of_points_samples_only_them():
    denoiser = denoiser_of(parts())
    x_0 = ddim(denoiser.eps_fn(Y), x_t(), denoiser.timesteps(50), denoiser.alphas_cumprod)
    nearest = torch.cdist(x_0.flatten(1).float(), POINTS).min(1).values
    assert nearest.max() < 1e-3


@pytest.mark.parametrize("basis", [None, torch.linalg.qr(torch.randn(32, 32).double())[0]])
def test_a_saved_model_predicts_the_same(tmp_path, basis):
    made = parts(variance=0.02, basis=basis)
    save_parts(made, tmp_path)
    check_checkpoint(tmp_path, None, 4, 2)
    read = denoiser_of(read_parts(tmp_path)).eps_fn(Y)(x_t(), 20)
    torch.testing.assert_close(read, denoiser_of(made).eps_fn(Y)(x_t(), 20), atol=1e-5, rtol=1e-5)


def test_the_api_loads_it_like_any_checkpoint(tmp_path):
    mixture = Mixture(POINTS[:, :16].double(), torch.zeros(16).double())
    save_parts(exact_parts(mixture, (4, 4, 1), scheduler()), tmp_path)
    model = sidepipe.load(str(tmp_path))
    images = model.sample(8, seed=0)
    known = ((POINTS[:, :16].reshape(5, 4, 4, 1) + 1) * 127.5).round()
    distances = (torch.as_tensor(images)[:, None].float() - known).abs().amax((2, 3, 4))
    assert distances.min(1).values.max() <= 1


@pytest.mark.parametrize(
    ("size", "channels", "message"), [(8, 2, "data.size"), (4, 1, "data.channels")]
)
def test_another_shape_is_refused(tmp_path, size, channels, message):
    save_parts(parts(), tmp_path)
    with pytest.raises(ValueError, match="must be") as error:
        check_checkpoint(tmp_path, None, size, channels)
    assert message in str(error.value)
