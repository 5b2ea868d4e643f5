import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from sidepipe.engine.training import step_generator
from sidepipe.stages.descriptor import augment
from sidepipe.stages.descriptor.augment import (
    DRAWS,
    blurred,
    cropped,
    draws,
    edited,
    mixed,
    patched,
    recolored,
    recompressed,
)

CPU = torch.device("cpu")


def smooth(n=6, size=16, channels=1, seed=0):
    """Images in [-1, 1] with structure at the scale of a quarter of the side."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, channels, size, size))
    x = np.stack([[gaussian_filter(c, size / 8, mode="wrap") for c in image] for image in noise])
    return torch.tensor(0.8 * x / np.abs(x).max((1, 2, 3), keepdims=True), dtype=torch.float32)


def numbers(n, **values):
    """Draws of 0.5 but for those given."""
    u = {name: torch.full((n,), 0.5) for name in DRAWS}
    return u | {
        name: torch.as_tensor(v, dtype=torch.float32).expand(n) for name, v in values.items()
    }


def everything(x, seed=3, step=7):
    generator = step_generator(seed, step, CPU)
    u = draws(generator, len(x))
    return mixed(edited(x, u, torch.randn(x.shape, generator=generator)), u)


@pytest.mark.parametrize("size", [8, 12, 16, 20, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_edited_copies_have_the_shape_and_the_range_of_images(size, channels):
    x = smooth(40, size, channels)
    view, ids = everything(x)
    assert view.shape == x.shape
    assert view.dtype == torch.float32
    assert view.abs().max() <= 1
    assert ids.shape == (40, 2)
    assert ((view - x).abs().mean((1, 2, 3)) > 0.01).all(), "no image stays as it is"


def test_a_step_shows_what_its_seed_and_number_say():
    x = smooth(20)
    here, again, later, other = (
        everything(x, seed, step)[0] for seed, step in ((3, 7), (3, 7), (3, 8), (4, 7))
    )
    assert here.equal(again)
    assert not here.equal(later)
    assert not here.equal(other)


def test_ranks_share_the_numbers_of_the_whole_batch():
    whole = draws(step_generator(0, 0, CPU), 6)
    parts = [draws(step_generator(0, 0, CPU), 2, (rank, 3)) for rank in range(3)]
    for name in DRAWS:
        assert torch.cat([part[name] for part in parts]).equal(whole[name])
    assert len({tuple(values.tolist()) for values in whole.values()}) == len(DRAWS)


@pytest.mark.parametrize(("size", "smallest"), [(8, 6), (10, 6), (16, 8), (64, 32)])
def test_crops_keep_half_of_a_side_and_six_pixels(size, smallest):
    """A ramp's steepness says how much of it is shown."""
    ramp = torch.linspace(-1, 1, size).expand(500, 1, size, size)
    for x, dim in ((ramp, 3), (ramp.transpose(2, 3), 2)):
        crop = cropped(x, draws(step_generator(0, 0, CPU), 500))
        step = crop.diff(dim=dim).abs().median(dim).values.median(-1).values.flatten()
        kept = step / (2 / (size - 1)) * size
        assert kept.min() >= smallest - 1e-3
        assert kept.max() <= size + 1e-3
        assert kept.median() > (smallest + size) / 2 - 1


def test_a_crop_of_the_whole_is_the_image_or_its_mirror_image():
    x = smooth()
    u = numbers(6, area=0.0, flip=[0.2, 0.8, 0.4, 0.6, 0.1, 0.9])
    flips = (u["flip"] < 0.5)[:, None, None, None]
    torch.testing.assert_close(cropped(x, u), torch.where(flips, x.flip(3), x), atol=1e-5, rtol=0)


def test_colors_change_by_their_formula():
    x = smooth(2, channels=3)
    u = numbers(2, saturation=[0.0, 0.5], brightness=[0.9, 0.5], contrast=[0.5, 0.5])
    out = recolored(x, u)
    gray = x.mean(1, keepdim=True)
    torch.testing.assert_close(out[0], gray[0].expand(3, -1, -1) + 0.4)
    torch.testing.assert_close(out[1], x[1])
    strong = recolored(x[:, :1], numbers(2, contrast=1.0))
    middle = x[:, :1].mean((2, 3), keepdim=True)
    torch.testing.assert_close(strong, middle + 1.8 * (x[:, :1] - middle))


def test_a_patch_is_one_rectangle_of_one_gray():
    x = smooth(3, 12)
    u = numbers(3, patch=[0.1, 0.1, 0.9], patch_height=0.5, patch_width=0.999, patch_gray=1.0,
                patch_left=[0.0, 0.999, 0.0], patch_top=0.5)  # fmt: skip
    out = patched(x, u)
    assert out[2].equal(x[2])
    for i, columns in ((0, slice(0, 4)), (1, slice(8, 12))):
        changed = (out[i, 0] != x[i, 0]).nonzero()
        assert len(changed) == 2 * 4
        assert (out[i, 0, 5:7, columns] == 1).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_gaussian_with_the_drawn_deviation(channels):
    x = smooth(4, 32, channels, seed=1)
    u = numbers(4, blur=[0.1, 0.1, 0.1, 0.9], sigma=[0.2, 0.6, 0.999, 0.9])
    out = blurred(x, u)
    assert out[3].equal(x[3])
    for i in range(3):
        sigma = float(u["sigma"][i]) * 32 / 16
        for c in range(channels):
            # The kernel ends at two deviations or more, SciPy's at four.
            expected = gaussian_filter(x[i, c].double().numpy(), sigma, mode="nearest", truncate=4)
            np.testing.assert_allclose(out[i, c], expected, atol=0.03)
    assert ((out - x)[2].abs().max() > 3 * (out - x)[0].abs().max()).all()


def saved_as_jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "jpeg", quality=quality)
    return np.asarray(Image.open(buffer)).astype(float)


@pytest.mark.parametrize("size", [8, 12, 32])
@pytest.mark.parametrize("quality", [20, 50, 90])
def test_recompression_is_what_a_jpeg_file_does(size, quality):
    x = smooth(20, size, seed=2)
    gray = ((x + 1) * 127.5).round()
    out = recompressed(gray / 127.5 - 1, numbers(20, jpeg=0.1, quality=(quality - 20) / 75))
    files = np.stack([saved_as_jpeg(image, quality) for image in gray[:, 0].byte().numpy()])
    errors = np.abs((out[:, 0].numpy() + 1) * 127.5 - files)
    # A file's cosines are whole numbers, so a coefficient halfway may be rounded the other way.
    assert (errors < 1).mean() > 0.7
    assert np.median(errors) < 0.5 * np.median(np.abs(gray[:, 0].numpy() - files)) or quality == 90
    assert recompressed(x, numbers(20, jpeg=0.9)).equal(x)


def test_mixtures_are_of_neighbors_and_say_so():
    x = torch.stack([torch.full((1, 16, 16), v) for v in (-1.0, 1.0, -0.5, 0.5, 0.0, 0.25)])
    u = numbers(6, mix=[0.0, 0.9, 0.9, 0.0, 0.0, 0.0], cut=[0.1, 0.1, 0.1, 0.9, 0.9, 0.1],
                share_1=[0.25] * 6, share_2=[0.1] * 6, share_3=[0.9] * 6)  # fmt: skip
    out, ids = mixed(x, u)
    assert ids.tolist() == [[0, 1], [1, 1], [2, 2], [3, 2], [4, 5], [5, 4]]
    torch.testing.assert_close(out[0], torch.full((1, 16, 16), -0.5))
    assert out[1].equal(x[1])
    assert (out[3] == -0.5).sum() == 64, "a quarter of the pixels is the neighbor's"
    assert (out[3] == 0.5).sum() == 192
    assert (out[4] == 0.25).sum() == 64


def test_the_last_of_an_odd_number_has_no_neighbor():
    x = smooth(5)
    out, ids = mixed(x, numbers(5, mix=0.0, cut=[0.1, 0.9, 0.9, 0.1, 0.9]))
    assert ids.tolist() == [[0, 1], [1, 0], [2, 3], [3, 2], [4, 4]]
    assert out[4].equal(x[4])
    assert not out[3].equal(x[3])


def test_shares_of_mixtures_are_beta_distributed(monkeypatch):
    monkeypatch.setattr(augment, "MIX_PROBABILITY", 1.0)
    x = torch.zeros(20_000, 1, 1, 1)
    x[1::2] = 1
    u = draws(step_generator(0, 0, CPU), len(x)) | {"cut": torch.zeros(len(x))}
    shares = mixed(x, u)[0][::2].double()
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01)
    assert shares.var().item() == pytest.approx(1 / 20, abs=0.002)  # of Beta(2, 2)
