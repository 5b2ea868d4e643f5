import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sidepipe.features.copydet import CopyDet, CopyNet, generalized_mean


def images(n=5, size=8, channels=1, seed=0):
    shape = (n, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(folder, size=8, widths=(8, 16), dimensions=6):
    torch.manual_seed(0)
    description = {"size": size, "widths": list(widths), "dimensions": dimensions}
    network = CopyNet(**description)
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "network.json").write_text(json.dumps(description))
    return network


@pytest.mark.parametrize("size", [8, 16, 20, 64, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_vectors_have_length_one_whatever_the_size_and_the_channels(tmp_path, size, channels):
    write(tmp_path, size)
    z = CopyDet(str(tmp_path)).encode(images(size=size, channels=channels))
    assert z.shape == (5, 6)
    assert z.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-6)
    assert np.linalg.norm(z[0] - z[1]) > 1e-3, "it tells images apart"


def test_it_is_the_saved_network_on_images_from_minus_one_to_one(tmp_path):
    network = write(tmp_path)
    x = torch.from_numpy(images()).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = network.eval()(x.expand(-1, 3, -1, -1))
    z = CopyDet(str(tmp_path)).encode(images())
    np.testing.assert_allclose(z, expected.numpy(), atol=1e-6)


def test_a_vector_does_not_depend_on_the_rest_of_its_batch(tmp_path):
    write(tmp_path)
    encoder = CopyDet(str(tmp_path))
    alone, together = (encoder.encode(images(9), batch_size=b) for b in (1, 9))
    np.testing.assert_allclose(alone, together, atol=1e-6)


def test_a_gray_image_is_its_rgb_image_with_equal_channels(tmp_path):
    write(tmp_path)
    encoder = CopyDet(str(tmp_path))
    color = encoder.encode(images().repeat(3, axis=3))
    np.testing.assert_allclose(encoder.encode(images()), color, atol=1e-6)


def test_images_of_another_size_are_skewed_to_that_of_training(tmp_path):
    write(tmp_path)
    encoder = CopyDet(str(tmp_path))
    larger = images().repeat(4, axis=1).repeat(2, axis=2)
    z = encoder.encode(larger)
    # Averaging over whole blocks gives the small image back but for the filter's width.
    assert (z * encoder.encode(images())).sum(1).min() > 0.9


def test_its_name_says_the_version_and_the_size(tmp_path):
    write(tmp_path, size=20)
    assert CopyDet(str(tmp_path)).transform == "copydet-v1-20px"
    assert CopyDet().transform == "copydet-v1"
    assert CopyDet().metric == "cosine"


def test_without_a_path_it_passes_the_check_and_refuses_to_encode():
    CopyDet().check()
    with pytest.raises(ValueError, match="path must be set before images are encoded, got None"):
        CopyDet().encode(images())


@pytest.mark.parametrize("missing", ["model.safetensors", "network.json"])
def test_a_folder_without_its_files_is_refused_by_name(tmp_path, missing):
    write(tmp_path)
    CopyDet(str(tmp_path)).check()
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"with {missing}.*stage=descriptor"):
        CopyDet(str(tmp_path)).check()


def test_pooling_is_the_generalized_mean_and_the_floor_counts_for_negative_values():
    h = np.random.default_rng(0).normal(1, 1, (2, 3, 4, 5))
    expected = (np.maximum(h, 1e-6) ** 3).mean((2, 3)) ** (1 / 3)
    pooled = generalized_mean(torch.tensor(h)).numpy()
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)
    assert (pooled > np.maximum(h, 0).mean((2, 3))).all()
    assert (pooled < h.max((2, 3))).all()


def test_pooling_of_half_precision_keeps_small_values():
    h = torch.full((1, 1, 2, 2), 1e-3, dtype=torch.bfloat16)
    assert generalized_mean(h).item() == pytest.approx(1e-3, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 3}, "size must be >= 4 pixels, got 3"),
        ({"dimensions": 1}, "dimensions must be >= 2, got 1"),
        ({"widths": []}, "widths must be multiples of 8, one per level, got"),
        ({"widths": [8, 12]}, r"widths must be multiples of 8, one per level, got \[8, 12\]"),
    ],
)
def test_a_network_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CopyNet(**{"size": 8, "widths": [8], "dimensions": 4, **changes})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_or_do_not_fit_are_refused(tmp_path, value):
    weights = {k: v.clone() for k, v in write(tmp_path).state_dict().items()}
    name = next(name for name, value in weights.items() if value.is_floating_point())
    broken = weights[name].clone()
    broken.view(-1)[0] = value
    save_file({**weights, name: broken}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"^{name} of .*model.safetensors must be finite"):
        CopyDet(str(tmp_path)).encode(images())
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"must fit the network .* 1 missing \({name}\)"):
        CopyDet(str(tmp_path)).encode(images())
