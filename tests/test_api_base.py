"""The base of a fine-tuned model and the null class in the Python API."""

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from tests.models.tiny_pipelines import dit
from tests.tiny import SCHEDULE, UNET

import sidepipe
from sidepipe.base.settings import build
from sidepipe.diffusion.noise import image_noise
from sidepipe.models.checkpoint import load_checkpoint
from sidepipe.models.contrast import log_loss_ratio

IMAGES = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1)).astype(np.uint8)
STEPS = {"num_inference_steps": 2, "precision": "32-true"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two networks of random weights, and one of classes."""
    root = tmp_path_factory.mktemp("models")
    for number, (name, changed) in enumerate(
        (("tuned", {}), ("base", {}), ("classes", {"num_class_embeds": 5}))
    ):
        torch.manual_seed(number)
        unet = build({**UNET, "block_out_channels": [8, 8], **changed})
        scheduler = build({**SCHEDULE, "num_train_timesteps": 1000})
        DDPMPipeline(unet, scheduler).save_pretrained(root / name)
    return root


def load(folder, **settings):
    return sidepipe.load(folder, device="cpu", batch_size=8, **settings)


def test_samples_lead_away_from_the_base_by_the_formula(folders):
    model = load(folders / "tuned", base=folders / "base")
    images = model.sample(
        3, base_guidance_scale=1.5, num_inference_steps=1, precision="32-true", seed=4
    )
    (t,) = model._denoiser.timesteps(1)
    x_t = image_noise(4, "extract", range(3), (1, 8, 8), "cpu")()
    with torch.no_grad():
        eps, of_base = (
            load_checkpoint(str(folders / name), None, None)["unet"].eval()(x_t, t).sample
            for name in ("tuned", "base")
        )
    ab = model._denoiser.alphas_cumprod[t]
    x_0 = (x_t - (1 - ab).sqrt() * (eps + 1.5 * (eps - of_base))) / ab.sqrt()
    expected = (127.5 * (x_0.clamp(-1, 1) + 1)).permute(0, 2, 3, 1).numpy()
    assert np.abs(images - expected).max() <= 1
    assert not np.array_equal(
        images, model.sample(3, seed=4, **{**STEPS, "num_inference_steps": 1})
    )


def test_a_base_that_is_the_model_itself_changes_nothing_and_neither_does_scale_0(folders):
    plain = load(folders / "tuned").sample(4, **STEPS)
    own = load(folders / "tuned", base=folders / "tuned")
    near = own.sample(4, base_guidance_scale=3, **STEPS).astype(int)
    assert np.abs(near - plain).max() <= 1
    other = load(folders / "tuned", base=folders / "base")
    np.testing.assert_array_equal(other.sample(4, **STEPS), plain)


def test_the_audit_of_a_model_with_a_base_has_the_contrast_of_the_losses(folders):
    model = load(folders / "tuned", base=folders / "base")
    settings = {"steps": 1, "levels": (), "draws": 2, "precision": "32-true", "contrast_t": 200}
    settings |= {"sampled": 0, "probes": 1}
    found = sidepipe.audit(model, train=IMAGES[:10], heldout=IMAGES[10:], **settings)
    ratio = log_loss_ratio(model._denoiser, model._base, IMAGES[:10], 200, 2, 0, 0)
    np.testing.assert_allclose(found.scores["contrast"][:10], ratio, rtol=1e-5)
    without = sidepipe.audit(
        load(folders / "tuned"), train=IMAGES[:10], heldout=IMAGES[10:], **settings
    )
    assert "contrast" not in without.scores
    assert found.evaluations_per_image == without.evaluations_per_image + 4


def test_scale_0_is_the_null_class_and_1_the_class_alone(folders):
    bare, named = load(folders / "classes"), load(folders / "classes", null_class=4)
    assert (bare.null_class, named.null_class, named.num_classes) == (None, 4, 5)
    null = bare.sample(4, classes=[4], **STEPS)
    np.testing.assert_array_equal(named.sample(4, condition_guidance_scale=0, **STEPS), null)
    alone = bare.sample(4, classes=[0, 1, 2, 3], **STEPS)
    np.testing.assert_array_equal(named.sample(4, **STEPS), alone)
    assert not np.array_equal(named.sample(4, condition_guidance_scale=3, **STEPS), alone)
    refined = named.refine(IMAGES[:4], steps=2, condition_guidance_scale=0, precision="32-true")
    expected = bare.refine(IMAGES[:4], steps=2, classes=[4], precision="32-true")
    np.testing.assert_array_equal(refined, expected)


def test_an_audit_evaluates_a_model_of_classes_without_one(folders):
    sets = {"train": IMAGES[:10], "heldout": IMAGES[10:], "steps": 1, "levels": (), "sampled": 0}
    named = load(folders / "classes", null_class=4)
    assert len(sidepipe.audit(named, **sets).scores) == 20
    with pytest.raises(ValueError, match="or with a null class, got 'one of 5 classes'; pass null"):
        sidepipe.audit(load(folders / "classes"), **sets)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": "/no/such"}, "base names /no/such, which is not"),
        ({"null_class": 0}, "null_class must be None, got 0; a DiT has its own null class"),
        ({"null_class": 0.5}, "null_class must be a whole number, got 0.5"),
    ],
)
def test_wrong_bases_and_null_classes_are_named(folders, settings, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load(folders / "tuned", **settings)


def test_what_does_not_fit_the_model_is_refused_before_sampling(folders, tmp_path):
    tuned = load(folders / "tuned")
    with pytest.raises(ValueError, match="0 for a model without a base, got 2; pass base="):
        tuned.sample(1, base_guidance_scale=2)
    with pytest.raises(ValueError, match=r"condition_guidance_scale must be 1 .* pass null_class"):
        load(folders / "classes").sample(1, condition_guidance_scale=2)
    with pytest.raises(ValueError, match=r"null_class must be in \[0, 5\) or None, got 5"):
        load(folders / "classes", null_class=5)
    with pytest.raises(ValueError, match="base must be a model with num_class_embeds"):
        load(folders / "tuned", base=folders / "classes")
    dit(tmp_path / "dit")
    with pytest.raises(ValueError, match="null_class must be None, got 2"):
        load(tmp_path / "dit", null_class=2)
