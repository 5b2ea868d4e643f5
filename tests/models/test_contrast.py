"""The contrast of a fine-tuned model with its base, in closed form."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn

from sidepipe.base.images import to_model
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.models.contrast import log_loss_ratio, require_comparable

SCHEDULE = DDPMScheduler().alphas_cumprod
ALPHAS = torch.linspace(0.999, 1e-3, 100)


class Constant(nn.Module):
    """pred_x_0 is the image itself plus an offset; counts the images it sees."""

    def __init__(self, images, offset):
        super().__init__()
        self.known, self.offset, self.seen = to_model(images), offset, 0

    def forward(self, x_t, t):
        ab = ALPHAS[int(t[0])]
        self.seen += len(x_t)
        # The image whose noised copy this is: noise is far smaller than the gaps between images.
        gap = (x_t[:, None] / ab.sqrt() - self.known).flatten(2).square().sum(2)
        return SimpleNamespace(sample=self.known[gap.argmin(1)] + self.offset)


IMAGES = np.array([0, 80, 160, 255], np.uint8).repeat(36).reshape(4, 6, 6, 1)


def denoiser(offset):
    return Denoiser(Constant(IMAGES, offset), ALPHAS, "sample", (1, 6, 6))


def ratio(model, base, images=IMAGES, t=3, draws=5, first=0):
    return log_loss_ratio(model, base, images, t=t, draws=draws, seed=0, first=first)


def test_it_is_the_log_of_the_ratio_of_the_losses():
    model, base = denoiser(0.1), denoiser(0.3)
    np.testing.assert_allclose(ratio(model, base), 2 * np.log(3), rtol=1e-3)
    np.testing.assert_allclose(ratio(base, model), -2 * np.log(3), rtol=1e-3)
    assert ratio(model, model).tolist() == [0] * 4
    assert model.unet.seen == (2 + 2) * 4 * 5  # draws of each image, once per model


def test_the_noise_of_an_image_depends_on_its_number_alone(monkeypatch):
    torch.manual_seed(0)
    noisy = nn.Conv2d(1, 1, 3, padding=1)
    model = Denoiser(lambda_network(noisy), ALPHAS, "epsilon", (1, 6, 6))
    base = denoiser(0.2)
    whole = ratio(model, base, t=60)
    assert len(set(whole.tolist())) == 4
    np.testing.assert_array_equal(ratio(model, base, IMAGES[2:], t=60, first=2), whole[2:])
    monkeypatch.setattr("sidepipe.models.contrast.AT_ONCE", 3)
    np.testing.assert_allclose(ratio(model, base, t=60), whole, rtol=1e-5)


def lambda_network(conv):
    network = nn.Module()
    network.conv = conv
    network.forward = lambda x_t, t: SimpleNamespace(sample=conv(x_t))
    return network


NETWORK = {"in_channels": 3, "sample_size": 32, "num_class_embeds": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 1}, r"dpm.base must be a model with in_channels 3, as the fine-tuned one"),
        ({"sample_size": [16, 16]}, r"sample_size 32, as the fine-tuned one, got 16; name the che"),
        ({"num_class_embeds": 10}, r"num_class_embeds None, as the fine-tuned one, got 10"),
    ],
)
def test_models_of_other_shapes_are_refused(changes, message):
    require_comparable(NETWORK, SCHEDULE, {**NETWORK, "sample_size": [32, 32]}, SCHEDULE)
    with pytest.raises(ValueError, match=message):
        require_comparable(NETWORK, SCHEDULE, {**NETWORK, **changes}, SCHEDULE)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            {"num_train_timesteps": 500},
            r"a model of 1000 timesteps, as .*, got 500",
        ),
        (
            {"beta_end": 0.03},
            r"the noise schedule of .*, got 'alphas_cumprod up to 0.\d",
        ),
    ],
)
def test_models_of_other_schedules_are_refused(schedule, message):
    other = DDPMScheduler(**schedule).alphas_cumprod
    with pytest.raises(ValueError, match=message):
        require_comparable(NETWORK, SCHEDULE, NETWORK, other)
