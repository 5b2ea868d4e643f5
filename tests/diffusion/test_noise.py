import numpy as np
import pytest
import torch

from sidepipe.diffusion.noise import STREAMS, generator, image_noise


def first_draw(seed=0, stream="extract", index=0, shape=(3, 4, 4)):
    return image_noise(seed, stream, [index], shape)()[0]


def test_the_noise_of_an_image_does_not_depend_on_the_images_beside_it():
    together = image_noise(3, "extract", [5, 9, 2], (1, 4, 4))
    alone = image_noise(3, "extract", [9], (1, 4, 4))
    for _ in range(3):
        assert together()[1].equal(alone()[0])


def test_every_draw_of_an_image_is_new():
    draw = image_noise(0, "generate", [0], (1, 8, 8))
    first, second = draw(), draw()
    assert not torch.isclose(first, second).any()


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"stream": "generate"}, {"stream": "targets"}, {"index": 1}], ids=str
)
def test_another_seed_stream_or_index_gives_unrelated_noise(other):
    one, two = first_draw(shape=(1000,)), first_draw(shape=(1000,), **other)
    # Four standard errors of the correlation of independent draws.
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / 1000**0.5


@pytest.mark.parametrize("bit", [16, 17, 24, 31])
def test_seeds_that_differ_only_in_a_high_bit_differ(bit):
    assert not torch.isclose(first_draw(seed=0), first_draw(seed=1 << bit)).any()


@pytest.mark.parametrize("bit", [16, 31, 32, 40, 61])
def test_indices_that_differ_only_in_a_high_bit_differ(bit):
    assert not torch.isclose(first_draw(index=0), first_draw(index=1 << bit)).any()


def test_no_two_of_many_images_share_their_noise():
    first_values = {
        generator(seed, stream, index).integers(2**63)
        for seed in (0, 1, 2**16, 2**32 - 1)
        for stream in STREAMS
        for index in range(500)
    }
    assert len(first_values) == 4 * len(STREAMS) * 500


def test_index_and_seed_are_not_interchangeable():
    assert not torch.isclose(first_draw(seed=1, index=2), first_draw(seed=2, index=1)).any()


def test_x_T_is_standard_normal_within_and_across_images():
    x_T = image_noise(0, "generate", range(400), (1, 20, 20))().double().flatten(1)
    assert x_T.shape == (400, 400)
    # Five standard errors each, of 160,000 independent values or of 400.
    assert float(x_T.mean()) == pytest.approx(0, abs=5 / 400)
    assert float(x_T.var()) == pytest.approx(1, abs=5 * 2**0.5 / 400)
    assert float((x_T**3).mean()) == pytest.approx(0, abs=5 * 15**0.5 / 400)
    assert float((x_T**4).mean()) == pytest.approx(3, abs=5 * 96**0.5 / 400)
    assert x_T.mean(0).abs().max() < 5 / 20
    assert x_T.mean(1).abs().max() < 5 / 20


def test_noise_is_float32_of_the_asked_shape():
    noise = image_noise(0, "targets", [4, 5], (3, 2, 6))()
    assert noise.shape == (2, 3, 2, 6)
    assert noise.dtype == torch.float32


def test_an_unknown_stream_is_refused():
    with pytest.raises(KeyError, match="labels"):
        generator(0, "labels", 0)
