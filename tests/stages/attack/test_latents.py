"""Surrogates and the floor of a latent model whose autoencoder is exact: pixels in another order.

Its codes are the pixels of an image, so distances of codes are those of images and everything about
the latent model follows from the model of images.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from sidepipe.base.images import to_model
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.guidance import Posterior as ClosedForm
from sidepipe.engine.stage import Job, Runtime
from sidepipe.features.encoders import PixelsL2
from sidepipe.memorization.floor import floor, floor_gamma
from sidepipe.models.latents import LatentDenoiser
from sidepipe.models.rows import channels_first, rows_of
from sidepipe.models.schedules import schedule_from
from sidepipe.stages.attack.strategies import Material, Posterior
from sidepipe.stages.reference import stage as reference

SCHEDULER = DDPMScheduler(num_train_timesteps=50, clip_sample=False)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 8, 8, 1)).astype(np.uint8)
LABELS = np.arange(30) % 4 - 1  # -1: without a label


class Exact(torch.nn.Module):
    """The parts of AutoencoderKL that are used; `brighter`: what it adds to each image."""

    def __init__(self, brighter: float = 0.0) -> None:
        super().__init__()
        self.brighter = brighter
        self.config = {
            "scaling_factor": 0.5,
            "block_out_channels": (1, 1),
            "out_channels": 1,
        }

    def encode(self, images):
        mean = pixel_unshuffle(images, 2)
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=mean))

    def decode(self, codes):
        return SimpleNamespace(sample=pixel_shuffle(codes, 2) + self.brighter)


def latent(brighter: float = 0.0) -> LatentDenoiser:
    return LatentDenoiser(torch.nn.Identity(), Exact(brighter), schedule_from(SCHEDULER), (4, 4, 4))


@pytest.fixture
def label(tmp_path):
    np.save(tmp_path / "labels.npy", LABELS)
    return tmp_path


@pytest.mark.parametrize("neighbors", [None, 7])
def test_the_posterior_of_codes_is_that_of_images_in_the_order_of_codes(label, neighbors) -> None:
    material = Material({}, latent(), "32-true", IMAGES, label, "cpu")
    built = Posterior(neighbors=neighbors).build(material)
    x_t = torch.randn(6, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    t, y = torch.tensor([1, 5, 10, 20, 30, 49]), torch.tensor([0, 1, 2, 0, 1, 2])
    # The codes are half of the pixels: an image is at twice the distance.
    halved = to_model(IMAGES) / 2
    images = ClosedForm(halved, torch.from_numpy(LABELS), SCHEDULER.alphas_cumprod)
    expected = images.grad_log_prob(pixel_shuffle(x_t, 2), t, y)
    near = images if neighbors is None else None
    found = built.grad_log_prob(x_t, t, y)
    if near is not None:
        torch.testing.assert_close(found, pixel_unshuffle(expected, 2), rtol=1e-4, atol=1e-4)
    else:  # where there is little noise the nearest images hold all the weight
        torch.testing.assert_close(
            found[:2], pixel_unshuffle(expected, 2)[:2], rtol=1e-3, atol=1e-3
        )
    assert found.shape == x_t.shape


def test_rows_of_a_latent_model_are_codes_and_of_others_the_images() -> None:
    codes = rows_of(latent(), IMAGES, "cpu")
    expected = pixel_unshuffle(to_model(IMAGES), 2) / 2
    torch.testing.assert_close(channels_first(codes), expected)
    of_images = Denoiser(torch.nn.Identity(), SCHEDULER.alphas_cumprod, "epsilon", (1, 8, 8))
    assert rows_of(of_images, IMAGES, "cpu") is IMAGES
    np.testing.assert_array_equal(channels_first(IMAGES), IMAGES.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("levels", "within"), [(0, 1.0), (10, 1.0), (20, 0.0)])
def test_the_floor_is_the_distance_of_each_training_image_to_its_reconstruction(
    tmp_path, monkeypatch, levels, within
) -> None:
    """Images are kept below 200 of 255 levels, so that none is clipped."""
    dark = (IMAGES // 2).astype(np.uint8)
    for name in ("data", "dpm/model/vqvae", "reference"):
        (tmp_path / name).mkdir(parents=True)
    np.save(tmp_path / "data" / "images.npy", dark)
    rows = "".join(f"{i},image {i},train,\n" for i in range(len(dark)))
    (tmp_path / "data" / "ids.csv").write_text(f"index,id,partition,identity\n{rows}")
    np.save(tmp_path / "dpm" / "subset.npy", np.arange(10))
    np.save(tmp_path / "dpm" / "heldout.npy", np.arange(10, 30))
    model = latent(brighter=levels / 127.5)
    monkeypatch.setattr(reference, "load_denoiser", lambda *_, **__: model)
    stage = reference.Reference(
        features={"_target_": "sidepipe.features.encoders.PixelsL2"}, false_positive_rates=[0.05]
    )
    inputs = {name: tmp_path / name for name in ("data", "dpm")}
    stage.run(Job(tmp_path / "reference", inputs, Runtime(accelerator="cpu")))
    found = reference.load_limits(tmp_path / "reference", 15 / 255, "l2")["floor"]
    expected = {"num_images": 10, "median": levels / 255, "most": levels / 255}
    assert found == pytest.approx({**expected, "within_threshold": within}, abs=1e-6)
    json.dumps(found)


def test_the_floor_compares_each_image_with_itself_alone() -> None:
    """Swapped reconstructions are far, although each has its image among the others."""
    features = PixelsL2().encode(IMAGES, device="cpu")
    assert floor_gamma(features, features, "l2").max() == 0
    swapped = floor_gamma(features[:2], features[[1, 0]], "l2")
    pixels = IMAGES[:2, ..., 0].astype(float) / 255
    np.testing.assert_allclose(swapped, np.sqrt(np.square(pixels[0] - pixels[1]).mean()), rtol=1e-5)
    gamma = np.array([0.1, 0.5, 0.7, 0.9, 0.95], np.float32)
    found = floor(gamma, 0.7, "cosine")
    assert found["within_threshold"] == pytest.approx(0.6)
    assert found["median"] == pytest.approx(0.7)
    assert found["most"] == pytest.approx(np.quantile(gamma, 0.05))
