import csv
import json

import numpy as np
import pandas as pd
import pytest
from tests.engine.test_sampling import SAMPLING
from tests.models.text.tiny import CAPTIONS, FLOWS, PIPELINES, tiny_flux, tiny_text_model
from tests.tiny import RUNTIME, SETTINGS

from sidepipe.engine.stage import Job
from sidepipe.models.text.pipeline import save_model
from sidepipe.stages.dpm.trained import TrainDPM
from sidepipe.stages.generate.prompts import draw_prompts, prompts_of
from sidepipe.stages.generate.refine import FixedPoint
from sidepipe.stages.generate.stage import Generate, load, load_denoiser

TRAIN, HELDOUT = [4, 0, 2, 3], [1, 5]
# The model's own words, and one that it has never seen.
OF_ROWS = [CAPTIONS[0], CAPTIONS[1], CAPTIONS[2], CAPTIONS[0], CAPTIONS[1], "a seven"]


def generate(**changes) -> Generate:
    settings = {**SAMPLING, "num_images": 12, "shard_size": 5, **changes}
    return Generate(**settings)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A text model's artifact, and captions of which it was trained on some."""
    folder = tmp_path_factory.mktemp("inputs")
    save_model(tiny_text_model(), folder / "dpm" / "model")
    np.save(folder / "dpm" / "subset.npy", TRAIN)
    np.save(folder / "dpm" / "heldout.npy", HELDOUT)
    (folder / "data").mkdir()
    with (folder / "data" / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "caption", "repeats", "word", "attributes"])
        writer.writerows([i, caption, 1, "", "{}"] for i, caption in enumerate(OF_ROWS))
    return {name: folder / name for name in ("dpm", "data")}


def run(folder, inputs, **changes):
    folder.mkdir(exist_ok=True)
    return generate(**changes).run(Job(folder, inputs, RUNTIME))


def test_captions_of_the_data_are_those_of_training_or_unseen_images_each_once(inputs):
    assert prompts_of("train", inputs, "") == [CAPTIONS[1], CAPTIONS[0], CAPTIONS[2]]
    assert prompts_of("heldout", inputs, "") == [CAPTIONS[1], "a seven"]


def test_prompts_of_a_file_lie_under_the_data_s_root(tmp_path, inputs):
    rows = [{"caption": "two cats", "index": 0}, {"caption": "a dog", "index": 1}]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert prompts_of("some.jsonl", inputs, str(tmp_path)) == ["two cats", "a dog"]


def test_prompts_are_drawn_uniformly_and_stay_when_more_images_are_made():
    drawn = draw_prompts(3, 3000, seed=5)
    assert np.abs(np.bincount(drawn) - 1000).max() < 4 * np.sqrt(3000 * 2 / 9)
    np.testing.assert_array_equal(draw_prompts(3, 40, seed=5), drawn[:40])
    assert not np.array_equal(draw_prompts(3, 3000, seed=6), drawn)


def test_images_are_of_their_prompts_and_what_these_were_is_kept(tmp_path, inputs):
    summary = run(tmp_path / "prompted", inputs, prompts="train", condition_guidance_scale=3.0)
    plain = run(tmp_path / "plain", inputs)
    assert summary["unet_forwards"] == 2 * plain["unet_forwards"] == 2 * 12 * 5
    table = pd.read_csv(tmp_path / "prompted" / "prompts.csv")
    assert set(table["prompt"]) == set(CAPTIONS)
    assert table["image"].tolist() == list(range(12))
    images = load(tmp_path / "prompted")
    assert images.shape == (12, 8, 8, 1)
    assert not np.array_equal(images, load(tmp_path / "plain"))
    assert not (tmp_path / "plain" / "prompts.csv").exists()


def test_at_scale_1_a_prompt_costs_what_none_costs(tmp_path, inputs):
    assert run(tmp_path, inputs, prompts="heldout")["unet_forwards"] == 12 * 5


def test_images_are_refined_by_their_prompts_with_the_same_guidance(tmp_path, inputs):
    prompted = {"prompts": "train", "condition_guidance_scale": 3.0}
    refined = {"refine": FixedPoint(t=30, steps=2)}
    summary = run(tmp_path / "refined", inputs, **prompted, **refined)
    assert summary["unet_forwards"] == 2 * 12 * (5 + 2)
    run(tmp_path / "prompted", inputs, **prompted)
    run(tmp_path / "of_nothing", inputs, **refined)
    images = load(tmp_path / "refined")
    for other in ("prompted", "of_nothing"):
        assert not np.array_equal(images, load(tmp_path / other))


def test_a_run_that_broke_off_is_completed_to_the_same_images(tmp_path, inputs):
    for name in ("whole", "broken"):
        run(tmp_path / name, inputs, prompts="train")
    (tmp_path / "broken" / "shards" / "000001.npy").unlink()
    run(tmp_path / "broken", inputs, prompts="train")
    np.testing.assert_array_equal(load(tmp_path / "broken"), load(tmp_path / "whole"))


@pytest.mark.filterwarnings("ignore:Mismatch dtype:UserWarning")  # of torch's autocast
@pytest.mark.parametrize("kind", PIPELINES | FLOWS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_latents_are_sampled_and_decoded_in_every_precision(tmp_path, precision, kind):
    inputs = {"dpm": tmp_path / "dpm"}
    (PIPELINES | FLOWS)[kind](tmp_path / "dpm" / "model")
    run(tmp_path / "images", inputs, precision=precision)
    images = load(tmp_path / "images")
    assert images.shape == ((12, 16, 16, 3) if kind == "flux" else (12, 8, 8, 3))
    if precision != "32-true":
        run(tmp_path / "exact", inputs)
        difference = np.abs(images.astype(int) - load(tmp_path / "exact"))
        assert 0 < difference.mean() < 5


def test_a_distilled_model_takes_the_guidance_scale_at_one_evaluation(tmp_path):
    tiny_flux(tmp_path / "dpm" / "model", guidance_embeds=True)
    inputs, found = {"dpm": tmp_path / "dpm"}, []
    (tmp_path / "prompts.txt").write_text("abc\nhello\n")
    for scale in (1.0, 3.5):
        settings = {"prompts": str(tmp_path / "prompts.txt"), "condition_guidance_scale": scale}
        summary = run(tmp_path / f"images{scale}", inputs, **settings)
        assert summary["unet_forwards"] == 12 * SAMPLING["num_inference_steps"]
        found.append(load(tmp_path / f"images{scale}"))
    assert not np.array_equal(*found)


def test_a_model_without_text_takes_no_prompts_and_no_weights_of_16_bits():
    upstream = {"dpm": TrainDPM(**SETTINGS)}
    for changes in ({"prompts": "train"}, {"precision": "bf16-true"}):
        with pytest.raises(ValueError, match=r"this model takes no text"):
            generate(**changes).check(upstream, RUNTIME)


def test_captions_are_read_where_they_are_asked_for_alone():
    assert generate().inputs() == generate(prompts="some.csv").inputs() == ("dpm",)
    assert generate(prompts="train").inputs() == ("dpm", "data")


def test_without_prompts_the_key_is_what_it_was():
    settings = {**SAMPLING, "num_images": 12}
    assert not {"prompts", "condition_guidance_scale"} & set(generate().key_settings(settings))
    assert {"prompts", "condition_guidance_scale"} <= set(
        generate(prompts="train").key_settings(settings)
    )


def test_no_captions_of_that_kind_is_said(inputs, tmp_path):
    np.save(tmp_path / "subset.npy", TRAIN)
    np.save(tmp_path / "heldout.npy", np.empty(0, np.int64))
    with pytest.raises(ValueError, match="there are no heldout captions; remedy: choose other"):
        prompts_of("heldout", {**inputs, "dpm": tmp_path}, "")


def test_the_denoiser_is_of_the_artifact_s_kind(inputs):
    assert load_denoiser(inputs["dpm"], "32-true").evaluations == 1
    assert load_denoiser(inputs["dpm"], "32-true", CAPTIONS, 2.0).evaluations == 2
