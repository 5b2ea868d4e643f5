"""Stage `dpm` of models with captions: trained on pairs, or brought along."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from tests.models.text.tiny import (
    FLOWS,
    PIPELINES,
    WIDTH,
    tiny_flux,
    tiny_sd3,
    tiny_stable_diffusion,
)
from tests.tiny import DIGITS, RUNTIME, SCHEDULE, SETTINGS, checked

from sidepipe.engine.stage import Job
from sidepipe.stages.data.canaries import Canaries
from sidepipe.stages.data.stage import Data, load_canaries, load_captions
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.dpm.pretrained_text import PretrainedTextDPM
from sidepipe.stages.dpm.stage import load_subset
from sidepipe.stages.dpm.text import TrainTextDPM, load_text_model

NOTHING = replace(DIGITS, source={"_target_": "sidepipe.stages.data.sources.Nothing"})
UNET = {
    "_target_": "diffusers.UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
}
TEXT = {
    **SETTINGS,
    "unet": UNET,
    "noise_schedule": SCHEDULE,
    "num_train_images": None,
    "train_partitions": ["train"],
    "random_flip": False,
    "max_tokens": 16,
    "text_encoder": {
        "hidden_size": WIDTH,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "caption_dropout": 0.2,
    "random_tokens": 0,
    "memorization_filter": None,
    "deduplicate": None,
}
PIXELS = {"_target_": "sidepipe.features.encoders.PixelsL2"}


@pytest.fixture(scope="module")
def planted():
    """Data of 40 base pairs, 5 held out, and of 2 pairs seen 30 times each."""
    return Data(**_planted())


def _planted():
    from tests.stages.dpm.test_trained import CONF

    settings = yaml.safe_load((CONF.parent / "data/planted.yaml").read_text())
    source = {**settings["source"], "planted": [[30, 2]], "num_heldout": 5, "num_base": 40}
    return {**{k: v for k, v in settings.items() if k != "_target_"}, "source": source}


@pytest.fixture(scope="module")
def data(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    planted.run(Job(folder, {}, RUNTIME))
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dpm")
    return folder, TrainTextDPM(**TEXT).run(Job(folder, {"data": data}, RUNTIME))


def test_a_trained_model_has_a_word_for_each_of_its_captions(trained, data):
    folder, summary = trained
    model, captions = load_text_model(folder), load_captions(data)["caption"]
    train, heldout = load_subset(folder)
    assert (len(train), len(heldout)) == (42, 5)
    assert summary["num_train_pairs"] == 100  # 40 and twice 30
    for caption in captions.iloc[train]:
        tokens = model.tokens(caption)
        assert tokens.cut == ""
        assert "<unk>" not in tokens.words
    assert not any(p.requires_grad for p in model.parameters())


def test_the_encoder_is_trained_too(trained, data):
    model = load_text_model(trained[0])
    fresh = TrainTextDPM(**TEXT)
    torch.manual_seed(SETTINGS["seed"])
    captions = load_captions(data)["caption"].to_numpy(str)
    from sidepipe.base.settings import build

    before = fresh._model(captions[load_subset(trained[0])[0]], build(SCHEDULE))
    moved = [
        not torch.equal(a, b)
        for a, b in zip(
            model.text_encoder.parameters(), before.text_encoder.parameters(), strict=True
        )
    ]
    assert any(moved)


def test_a_killed_training_goes_on_to_the_same_weights(trained, data, tmp_path, monkeypatch):
    from sidepipe.stages.dpm.captioned import CaptionedModule

    step, left = CaptionedModule.training_step, [15]

    def failing(self, *args):
        if [self.global_step] == left:
            left.clear()
            raise RuntimeError("killed")
        return step(self, *args)

    monkeypatch.setattr(CaptionedModule, "training_step", failing)
    with pytest.raises(RuntimeError, match="killed"):
        TrainTextDPM(**TEXT).run(Job(tmp_path, {"data": data}, RUNTIME))
    TrainTextDPM(**TEXT).run(Job(tmp_path, {"data": data}, RUNTIME))
    for part in ("unet", "text_encoder"):
        for file in (tmp_path / "model" / part).glob("*.safetensors"):
            assert file.read_bytes() == (trained[0] / "model" / part / file.name).read_bytes()


def test_deduplication_leaves_each_image_once(data, tmp_path):
    stage = TrainTextDPM(**{**TEXT, "deduplicate": {"features": PIXELS, "threshold": 1e-6}})
    summary = stage.run(Job(tmp_path, {"data": data}, RUNTIME))
    assert summary["num_train_pairs"] == 42


def test_near_duplicates_are_trained_on_once(data):
    stage = TrainTextDPM(**{**TEXT, "deduplicate": {"features": PIXELS, "threshold": 1e-6}})
    images = np.array(load_images(data)[:6])
    images[4] = images[1]
    kept, repeats = stage._taken(images, np.arange(6), np.full(6, 9), RUNTIME)
    assert len(kept) == 5
    assert {1, 4} & set(kept.tolist()) != {1, 4}
    assert repeats.tolist() == [1] * 5


def test_a_filtered_training_logs_the_share_that_it_keeps(data, tmp_path):
    filtered = {"percentile": 50.0, "num_bins": 2, "every_steps": 5}
    stage = TrainTextDPM(**{**TEXT, "memorization_filter": filtered})
    stage.run(Job(tmp_path, {"data": data}, RUNTIME))
    logged = pd.read_csv(tmp_path / "metrics.csv")
    kept = logged["value"][logged["metric"] == "kept"]
    assert len(kept) == 20
    assert 0.2 < kept.mean() < 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption_dropout": 0.0}, "nothing to guide away from"),
        ({"random_tokens": -1}, r"dpm\.random_tokens must be >= 0"),
        ({"max_tokens": 2}, r"dpm\.max_tokens must be >= 3"),
        ({"memorization_filter": {"percentile": 99.0}}, r"percentile, num_bins, every_steps"),
        (
            {"memorization_filter": {"percentile": 100, "num_bins": 1, "every_steps": 1}},
            r"percentile must be in \(0, 100\)",
        ),
        ({"deduplicate": {"threshold": 1}}, "a mapping of features, threshold"),
    ],
)
def test_settings_out_of_range_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainTextDPM(**{**TEXT, **changes})


def test_images_without_captions_are_an_error_before_anything_is_trained():
    with pytest.raises(ValueError, match=r"data=captioned .* or data=planted"):
        checked(TrainTextDPM(**TEXT), {"data": DIGITS}, RUNTIME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cross_attention_dim": 16}, "cross_attention_dim must be 8"),
        ({"in_channels": 3, "out_channels": 3}, "in_channels must be 1"),
        ({"in_channels": 3}, "in_channels and out_channels of dpm.unet must be equal"),
    ],
)
def test_a_network_that_does_not_fit_is_an_error(planted, changes, message):
    stage = TrainTextDPM(**{**TEXT, "unet": {**UNET, **changes}})
    with pytest.raises(ValueError, match=message):
        checked(stage, {"data": planted}, RUNTIME)


def pretrained(path):
    return PretrainedTextDPM(
        path=str(path),
        revision=None,
        variant=None,
        num_train_images=None,
        train_partitions=["train"],
        subset_seed=0,
    )


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("sd", "unet"),
        ("sdxl", "text_encoder_2"),
        ("sd3", "transformer"),
        ("flux", "text_encoder_2"),
    ],
)
def test_a_pipeline_comes_as_it_is_and_a_change_is_noticed(data, tmp_path, kind, changed):
    source = (PIPELINES | FLOWS)[kind](tmp_path / "sd")
    stage, folder = pretrained(source), tmp_path / "dpm"
    checked(stage, {"data": DIGITS}, RUNTIME)
    folder.mkdir()
    summary = stage.run(Job(folder, {"data": data}, RUNTIME))
    model = load_text_model(folder)
    assert model.latent_shape == ((4, 8, 8) if kind == "flux" else (4, 4, 4))
    stage.check_timesteps("detect", 20, None, {"generate.refine": 60})
    assert stage.source_changed(summary, RUNTIME) is None
    weights = next((source / changed).glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes() + b" ")
    assert "changed since" in stage.source_changed(summary, RUNTIME)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 16, "channels": 3}, "data.size must be the size of .* 8 x 8, got 16; set data.s"),
        ({"channels": 1}, "data.channels must be 3, .* got 1; set data.channels=3"),
    ],
)
@pytest.mark.parametrize("data", [DIGITS, NOTHING], ids=["digits", "none"])
def test_data_of_another_shape_than_the_models_images_are_refused(tmp_path, data, changes, message):
    dpm = pretrained(tiny_stable_diffusion(tmp_path / "sd"))
    dpm.check_images(replace(data, channels=3))
    with pytest.raises(ValueError, match=message):
        dpm.check_images(replace(data, **changes))


def test_images_that_are_not_square_need_no_size_of_data_that_are_none(tmp_path):
    folder = tiny_stable_diffusion(tmp_path / "sd")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": [4, 8]}))
    dpm = pretrained(folder)
    dpm.check_images(replace(NOTHING, channels=3))
    with pytest.raises(ValueError, match=r"data\.size must be .* 8 x 16, got 8; choose data=none"):
        dpm.check_images(replace(DIGITS, channels=3))
    with pytest.raises(ValueError, match=r"data\.channels must be 3, .* got 1"):
        dpm.check_images(NOTHING)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda f: tiny_flux(f, guidance_embeds=True),
            {},
            "guidance_embeds .* must be false for d",
        ),
        (tiny_flux, {"by_token": True}, "FluxPipeline .* for detect must be of CLIP alone"),
        (tiny_sd3, {"by_token": True}, "StableDiffusion3.*CLIP alone.* got 'text_encoder_3'; use"),
        (tiny_sd3, {"by_attention": True}, "a UNet with cross-attention, got 'SD3Transformer2DM"),
    ],
)
def test_stages_that_a_family_cannot_run_are_refused_by_name(tmp_path, make, options, message):
    dpm = pretrained(make(tmp_path))
    with pytest.raises(ValueError, match=message):
        dpm.check_prompts("detect", **options)


def test_stages_that_families_can_run_are_not_refused(tmp_path):
    pretrained(tiny_flux(tmp_path / "flux")).check_prompts("detect")
    pretrained(tiny_sd3(tmp_path / "sd3", with_t5=False)).check_prompts("detect", by_token=True)
    sd = pretrained(tiny_stable_diffusion(tmp_path / "sd"))
    sd.check_prompts("detect", by_token=True, by_attention=True)


def test_more_steps_than_the_checkpoint_has_are_refused(tmp_path):
    dpm = pretrained(tiny_stable_diffusion(tmp_path / "sd"))
    dpm.check_timesteps("detect", 99)
    with pytest.raises(ValueError, match=r"detect.num_inference_steps must be <= 100, .* got 101"):
        dpm.check_timesteps("detect", 101)
    with pytest.raises(ValueError, match=r"generate.refine must be < 100, .* got 100"):
        dpm.check_timesteps("generate", 10, None, {"generate.refine": 100})


def test_a_path_that_is_no_folder_is_an_error_before_it_is_taken_for_a_hub_id(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        checked(pretrained(tmp_path / "nowhere"), {"data": DIGITS}, RUNTIME)


def test_previews_show_captions_of_the_training_set(trained):
    assert sorted(path.name for path in (trained[0] / "previews").glob("*.png")) == [
        "step_0000010.png",
        "step_0000020.png",
    ]


def with_canaries(planted, **settings):
    few = {"repeats": [10], "num_each": 2, "num_heldout": 1, "words": ["zor", "bim"], **settings}
    return replace(planted, canaries=Canaries(**few))


def test_canaries_are_trained_on_and_their_controls_are_held_out(planted, tmp_path):
    data, dpm = with_canaries(planted), TrainTextDPM(**TEXT)
    data.run(Job(tmp_path, {}, RUNTIME))
    dpm.check_data(tmp_path, {"data": data}, RUNTIME)
    train, unseen = dpm.split(tmp_path, RUNTIME)
    canaries = load_canaries(tmp_path)
    trained = canaries.index[canaries["repeats"] > 0]
    assert set(trained) <= set(train.tolist())
    assert set(canaries.index) - set(trained) <= set(unseen.tolist())
    assert (len(train), len(unseen)) == (41, 6)
    assert load_captions(tmp_path).loc[trained, "repeats"].tolist() == [10, 10]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"words": ["Zor", "zor"]}, "a trigger of data.canaries must be told apart .* from"),
        ({"num_words": 15}, "dpm.max_tokens must be >= 17"),
    ],
)
def test_triggers_that_the_tokenizer_merges_or_cuts_are_refused(
    planted, tmp_path, settings, message
):
    data = with_canaries(planted, **settings)
    data.run(Job(tmp_path, {}, RUNTIME))
    with pytest.raises(ValueError, match=message):
        TrainTextDPM(**TEXT).check_data(tmp_path, {"data": data}, RUNTIME)


def test_canaries_need_a_model_that_is_trained_here(planted, tmp_path):
    stage = PretrainedTextDPM(
        num_train_images=None,
        train_partitions=["train"],
        subset_seed=0,
        path=str(tmp_path),
        revision=None,
        variant=None,
    )
    with pytest.raises(ValueError, match=r"dpm must be a model of pixels trained here"):
        stage.check({"data": with_canaries(planted)}, RUNTIME)
