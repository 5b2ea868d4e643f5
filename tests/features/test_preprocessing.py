import pytest
import torch

from sidepipe.features.preprocessing import resize, resize_and_crop


def test_a_resized_image_of_one_color_keeps_it_and_bicubic_stays_in_range():
    x = torch.zeros(1, 3, 12, 12)
    x[..., 6:] = 1
    resized = resize(x, 30, 30, "bicubic")
    assert (resized.min(), resized.max()) == (0, 1)
    assert torch.allclose(resize(x[..., 6:], 30, 30, "bicubic"), torch.ones(1), atol=1e-6)


def test_the_crop_is_central_and_keeps_the_aspect_ratio():
    x = torch.linspace(0, 1, 60).expand(1, 3, 30, 60)
    cropped = resize_and_crop(x, 20, 16)
    assert cropped.shape == (1, 3, 16, 16)
    assert cropped.mean() == pytest.approx(0.5, abs=1e-3)
    # 16 of 40 columns of a ramp.
    assert cropped[..., -1].mean() - cropped[..., 0].mean() == pytest.approx(15 / 40, abs=0.02)
