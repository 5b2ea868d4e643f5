import hashlib
import sys
import warnings

import numpy as np
import pytest
import torch

from sidepipe.features.encoders import CLIP, SSCD, DINOv2, Pixels, PixelsL2


def images(n=5, height=8, width=8, channels=3, seed=0):
    shape = (n, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


class Tiny(torch.nn.Module):
    """Mean and deviation of each channel, of any image size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x.std((2, 3)), x[:, :, 0, 0]], 1)


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "tiny.torchscript.pt"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        torch.jit.save(torch.jit.script(Tiny()), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def dinov2(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
    )
    return save(transformers.Dinov2Model, config, tmp_path / "dinov2")


@pytest.fixture
def clip(tmp_path):
    transformers = pytest.importorskip("transformers")
    return save(transformers.CLIPVisionModelWithProjection, clip_config(), tmp_path / "clip")


def clip_config():
    transformers = pytest.importorskip("transformers")
    return transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, projection_dim=8, num_hidden_layers=2,
        num_attention_heads=2, image_size=32, patch_size=8,
    )  # fmt: skip


def save(kind, config, folder):
    torch.manual_seed(0)
    kind(config).eval().save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["pixels", "pixels_l2", "sscd", "dinov2", "clip"])
def encoder(request):
    name = request.param
    if name in ("pixels", "pixels_l2"):
        return Pixels() if name == "pixels" else PixelsL2()
    source = request.getfixturevalue("script" if name == "sscd" else name)
    if name == "sscd":
        return SSCD(str(source[0]), source[1], size=16)
    return DINOv2(source) if name == "dinov2" else CLIP(source)


def test_all_give_finite_float32_rows_that_tell_images_apart(encoder):
    encoder.check()
    z = encoder.encode(images())
    assert z.dtype == np.float32
    assert np.isfinite(z).all()
    assert len(np.unique(z, axis=0)) == len(z) == 5
    assert encoder.metric in ("cosine", "l2")
    assert encoder.transform.endswith("-v1")


def test_all_cosine_encoders_give_unit_vectors(encoder):
    length = np.linalg.norm(encoder.encode(images()), axis=1)
    if encoder.metric == "cosine":
        np.testing.assert_allclose(length, 1, atol=1e-6)
    else:
        assert (length <= 1).all()


def test_batch_size_changes_nothing(encoder):
    whole = encoder.encode(images(), batch_size=64)
    np.testing.assert_allclose(encoder.encode(images(), batch_size=2), whole, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(images()[3:4]), whole[3:4], atol=1e-6)


def test_gray_means_the_same_as_three_equal_channels(encoder):
    gray = images(channels=1)
    z, z_rgb = encoder.encode(gray), encoder.encode(gray.repeat(3, axis=3))
    if isinstance(encoder, (Pixels, PixelsL2)):
        z, z_rgb = z @ z.T, z_rgb @ z_rgb.T
    np.testing.assert_allclose(z, z_rgb, atol=1e-6)


def test_images_mapped_read_only_are_encoded(encoder, tmp_path):
    np.save(tmp_path / "images.npy", images())
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    np.testing.assert_array_equal(encoder.encode(mapped), encoder.encode(images()))


@pytest.mark.parametrize("bad", [images().astype(np.float32), images()[0], images()[:0]])
def test_what_is_not_a_stack_of_images_is_refused(bad):
    # TypeError where annotations are checked at run time.
    with pytest.raises((ValueError, TypeError)):
        Pixels().encode(bad)


def test_features_that_are_not_finite_are_an_error():
    class Broken(Pixels):
        def _encode_batch(self, images, device):
            return np.where(images[:, :1, 0, 0] == 7, np.nan, super()._encode_batch(images, device))

    some = images(n=200)
    some[:, 0, 0, 0] = np.where(np.arange(200) == 150, 7, 8)
    message = r"features of pixels-.* must be finite, got 'nan or inf for images \[150\]'; check"
    with pytest.raises(ValueError, match=message):
        Broken().encode(some)


def test_pixels_cosine_is_pearson_correlation():
    x, y = images(6, 8, 8, 1, seed=0), images(9, 8, 8, 1, seed=1)
    cosine = Pixels().encode(x) @ Pixels().encode(y).T
    expected = np.corrcoef(x.reshape(6, -1), y.reshape(9, -1))[:6, 6:]
    np.testing.assert_allclose(cosine, expected, atol=1e-6)


def test_pixels_ignore_brightness_and_contrast():
    x = images(1) // 4
    z = Pixels().encode(np.concatenate([x, x * 3 + 20]))
    assert z[0] @ z[1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", [0, 1, 77, 255])
def test_pixels_give_a_constant_image_the_zero_vector(value):
    # 7 x 13 x 3: a mean of rounded values would not cancel.
    assert not Pixels().encode(np.full((2, 7, 13, 3), value, np.uint8)).any()


def test_pixels_l2_is_the_root_mean_square_difference():
    x, y = images(4, seed=0), images(4, seed=1)
    distance = np.linalg.norm(PixelsL2().encode(x) - PixelsL2().encode(y), axis=1)
    expected = np.sqrt(((x / 255 - y / 255) ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(distance, expected, rtol=1e-5)
    black, white = PixelsL2().encode(np.stack([np.zeros_like(x[0]), np.full_like(x[0], 255)]))
    assert np.linalg.norm(white - black) == pytest.approx(1)


def test_sscd_sees_the_published_preprocessing(script):
    constant = np.full((1, 40, 20, 3), (255, 0, 51), np.uint8)
    z = SSCD(str(script[0]), script[1]).encode(constant)[0]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    seen = (np.array([1, 0, 0.2]) - mean) / std
    expected = np.concatenate([seen, np.zeros(3), seen])
    np.testing.assert_allclose(z, expected / np.linalg.norm(expected), atol=1e-5)


def test_sscd_sees_a_skewed_square():
    x = SSCD("unused", None)._prepare(torch.zeros(1, 3, 40, 20))
    assert x.shape == (1, 3, 320, 320)
    assert SSCD("unused", None).transform == "sscd-320-v1"


def never(*args, **kwargs):
    raise AssertionError("loaded")


def test_sscd_without_a_hash_says_which_it_found_and_loads_nothing(script, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", never)
    encoder = SSCD(str(script[0]), None)
    with pytest.raises(ValueError, match=rf"{script[1]}.*facebookresearch/sscd-copy-detection"):
        encoder.check()
    with pytest.raises(ValueError, match="sha256 must be set"):
        encoder.encode(images())


def test_sscd_with_another_hash_names_both_and_loads_nothing(script, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", never)
    encoder = SSCD(str(script[0]), "0" * 64)
    for call in (encoder.check, lambda: encoder.encode(images())):
        with pytest.raises(ValueError, match=rf"{'0' * 64}.*{script[1]}"):
            call()


def test_sscd_tampered_with_after_the_check_is_never_loaded(script, monkeypatch):
    path, sha256 = script
    encoder = SSCD(str(path), sha256)
    encoder.check()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(torch.jit, "load", never)
    with pytest.raises(ValueError, match="sha256 must be the file's"):
        encoder.encode(images())


def test_sscd_without_the_file_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="facebookresearch/sscd-copy-detection"):
        SSCD(str(tmp_path / "missing.pt"), "0" * 64).check()


def test_a_network_refuses_four_channels(script):
    with pytest.raises(ValueError, match="channels must be 1"):
        SSCD(str(script[0]), script[1]).encode(images(channels=4))


def test_dinov2_gives_the_class_token(dinov2):
    transformers = pytest.importorskip("transformers")
    network = transformers.Dinov2Model.from_pretrained(dinov2).eval()
    encoder = DINOv2(dinov2)
    x = encoder._prepare(torch.from_numpy(images(2, 30, 50)).permute(0, 3, 1, 2) / 255)
    assert x.shape == (2, 3, 224, 224)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network(x).last_hidden_state[:, 0], dim=1)
    np.testing.assert_allclose(encoder.encode(images(2, 30, 50)), expected, atol=1e-5)
    assert encoder.transform == "dinov2-224-v1"


def test_clip_gives_the_projected_embedding_at_its_own_size(clip):
    assert CLIP(clip).transform == "clip-32-v1"
    assert CLIP(clip).encode(images(2, 30, 50)).shape == (2, 8)


def test_clip_of_a_whole_model_is_its_vision_half(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    text |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        vision_config=clip_config().to_dict(), text_config=text, projection_dim=8
    )
    folder = save(transformers.CLIPModel, config, tmp_path / "whole")
    whole, x = CLIP(folder), images(2, 32, 32)
    assert whole.transform == "clip-32-v1"
    pixels = whole._prepare(torch.from_numpy(x).permute(0, 3, 1, 2) / 255)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model.visual_projection(model.vision_model(pixels).pooler_output)
    expected = torch.nn.functional.normalize(expected, dim=1)
    np.testing.assert_allclose(whole.encode(x), expected, atol=1e-5)


def test_a_model_of_another_kind_is_refused(dinov2, clip):
    for encoder in (CLIP(dinov2), DINOv2(clip)):
        with pytest.raises(ValueError, match=r"path must be .*(clip|dinov2)"):
            encoder.check()
        with pytest.raises(ValueError, match="path must be"):
            encoder.encode(images())


def test_a_model_with_weights_missing_is_refused(dinov2, tmp_path):
    from safetensors.torch import load_file, save_file

    file = tmp_path / "dinov2" / "model.safetensors"
    weights = load_file(file)
    del weights["layernorm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"all its weights.*layernorm\.weight"):
        DINOv2(dinov2).encode(images())


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_weights_that_are_not_finite_or_of_another_shape_are_refused(tmp_path, name, request):
    from safetensors.torch import load_file, save_file

    path = request.getfixturevalue(name)
    encoder, file = {"dinov2": DINOv2, "clip": CLIP}[name], tmp_path / name / "model.safetensors"
    weights = {k: v.clone() for k, v in load_file(file).items()}
    part = max(weights)
    save_file({**weights, part: weights[part] * torch.nan}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"of .*{name} must be finite, got NaN"):
        encoder(path).encode(images())
    save_file({**weights, part: torch.zeros(3, 5, 7)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"all its weights|cannot be read"):
        encoder(path).encode(images())
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        encoder(path).encode(images())
    (tmp_path / name / "config.json").write_text("<html>")
    with pytest.raises(ValueError, match=r"config.json must be a JSON object, got 'an HTML page'"):
        encoder(path).check()


def test_pickled_weights_are_refused(dinov2, tmp_path):
    (tmp_path / "dinov2" / "model.safetensors").rename(tmp_path / "dinov2" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"\.safetensors"):
        DINOv2(dinov2).check()


@pytest.mark.parametrize("path", ["/no/such", "./no", "~/no", "a/b/c", "no", "..", "../no"])
@pytest.mark.parametrize("kind", [DINOv2, CLIP])
def test_a_folder_that_is_missing_never_becomes_a_download(kind, path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        FileNotFoundError, match=r"^path (names .*, which is not a folder|must hold weights)"
    ):
        kind(path).check()


def test_a_mistyped_folder_beside_others_never_becomes_a_download(tmp_path, monkeypatch):
    (tmp_path / "weights" / "dinov2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="weights/dinov"):
        DINOv2("weights/dinov").check()


def test_without_transformers_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[features\]'"):
        DINOv2("facebook/dinov2-small").check()
