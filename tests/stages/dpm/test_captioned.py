"""Training on pairs: what of a caption is left out or added, and which pairs are filtered."""

import numpy as np
import pytest
import torch
from tests.models.text.tiny import CAPTIONS, tiny_text_model

from sidepipe.engine.training import step_generator
from sidepipe.stages.dpm.captioned import (
    CaptionedModule,
    MemorizationFilter,
    token_ids,
    with_random_token,
)

CPU = torch.device("cpu")


def module_of(model, tmp_path, **changes):
    settings = {
        "caption_dropout": 0.5,
        "random_tokens": 0,
        "preview_captions": CAPTIONS,
        "memorization_filter": None,
        "lr": 0.01,
        "weight_decay": 0.0,
        "lr_warmup_steps": 1,
        "random_flip": False,
        "seed": 0,
        "preview_folder": tmp_path,
        "image_shape": model.latent_shape,
    }
    return CaptionedModule(model, **{**settings, **changes})


@pytest.fixture
def model():
    return tiny_text_model().requires_grad_(True)


@pytest.fixture
def pairs(model):
    """Three images with a caption each, 400 times."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8))
    return images.repeat(400, 1, 1, 1), token_ids(model, CAPTIONS).repeat(400, 1)


def seen_by(module, monkeypatch):
    """The ids that `predict` is asked for, in order."""
    asked, predict = [], module.predict
    monkeypatch.setattr(module, "predict", lambda x, ids: asked.append(ids) or predict(x, ids))
    return asked


def test_the_asked_share_of_captions_is_left_out_in_training_and_none_in_validation(
    model, pairs, tmp_path, monkeypatch
):
    module = module_of(model, tmp_path, caption_dropout=0.2)
    asked = seen_by(module, monkeypatch)
    module.train().loss(*pairs, generator=step_generator(0, 0, CPU))
    module.eval().loss(*pairs, generator=step_generator(0, 0, CPU))
    empty = (asked[0] == token_ids(model, [""])).all(1)
    assert empty.float().mean().item() == pytest.approx(0.2, abs=0.04)
    assert torch.equal(asked[0][~empty], pairs[1][~empty])
    assert torch.equal(asked[1], pairs[1])


def test_two_processes_leave_out_what_one_does(model, pairs, tmp_path):
    module = module_of(model, tmp_path).train()
    images, ids = pairs[0][:6], pairs[1][:6]
    whole = module.loss(images, ids, step_generator(0, 3, CPU))
    parts = [
        module.loss(images[part], ids[part], step_generator(0, 3, CPU), (rank, 2))
        for rank, part in enumerate((slice(0, 3), slice(3, 6)))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_random_token_is_added_between_start_and_end_and_the_words_keep_their_order(model):
    ids = token_ids(model, CAPTIONS).repeat(200, 1)
    empty = token_ids(model, [""])
    more = with_random_token(ids, empty, len(model.tokenizer), step_generator(0, 0, CPU))
    pad, places = model.tokenizer.pad_token_id, set()
    for before, after in zip(ids.tolist(), more.tolist(), strict=True):
        words = [i for i in before if i != pad]
        longer = [i for i in after if i != pad]
        assert longer[0] == words[0]
        assert longer[-1] == words[-1]
        assert len(longer) == len(words) + 1
        # One of its tokens can be taken away so that the caption is left.
        gone = [k for k in range(1, len(longer) - 1) if longer[:k] + longer[k + 1 :] == words]
        assert gone
        assert min(longer[k] for k in gone) > model.tokenizer.eos_token_id
        places.add((len(words), gone[0]))
    assert {(3, 1), (3, 2)} <= places  # of "marigold", before it and behind


def filter_of(pairs, **changes):
    settings = {"percentile": 99.0, "num_bins": 2, "every_steps": 5}
    return MemorizationFilter(pairs[0][:3], pairs[1][:3], **{**settings, **changes})


def test_the_filter_leaves_out_exactly_the_pairs_whose_difference_is_large(
    model, pairs, tmp_path, monkeypatch
):
    module = module_of(model, tmp_path, memorization_filter=filter_of(pairs)).train()
    # The third caption adds 1 to every one of the 64 predicted pixels: || D || = 8.
    marigold = pairs[1][2]
    monkeypatch.setattr(
        module,
        "predict",
        lambda x, ids: (
            torch.zeros_like(x.x_t) + (ids == marigold).all(1).float()[:, None, None, None]
        ),
    )
    monkeypatch.setattr(module, "log", lambda *_: None)
    module.thresholds.fill_(7.9)
    assert len(module.loss(*pairs, generator=step_generator(0, 0, CPU))) == 800
    module.thresholds.fill_(8.1)
    assert len(module.loss(*pairs, generator=step_generator(0, 0, CPU))) == 1200
    module.thresholds[0] = 7.9  # of the lower half of the timesteps alone
    assert 950 < len(module.loss(*pairs, generator=step_generator(0, 0, CPU))) < 1050


def test_a_batch_of_which_nothing_is_left_changes_nothing(model, pairs, tmp_path, monkeypatch):
    module = module_of(model, tmp_path, memorization_filter=filter_of(pairs)).train()
    monkeypatch.setattr(module, "log", lambda *_: None)
    module.thresholds.fill_(0.0)
    loss = module.loss(*pairs, generator=step_generator(0, 0, CPU)).mean()
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())


def test_thresholds_are_the_percentile_of_held_out_differences(model, pairs, tmp_path, monkeypatch):
    of = filter_of(pairs, percentile=75.0)
    module = module_of(model, tmp_path, memorization_filter=of).train()

    class Trainer:
        class precision_plugin:
            train_step_context = staticmethod(torch.no_grad)

        global_step = 0

    monkeypatch.setattr(CaptionedModule, "trainer", Trainer)
    monkeypatch.setattr(CaptionedModule, "global_step", 0)
    # || D || is 8 t for any caption.
    monkeypatch.setattr(
        module,
        "predict",
        lambda x, ids: (
            torch.zeros_like(x.x_t)
            + ((ids != module.empty).any(1).float() * x.t)[:, None, None, None]
        ),
    )
    module.calibrate(of)
    # t is uniform on 0..99: three quarters of each half.
    np.testing.assert_allclose(module.thresholds.numpy(), [8 * 37, 8 * 87], atol=8 * 5)
