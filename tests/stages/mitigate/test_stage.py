"""Stage `mitigate`: on a model whose images are known, and on Stable Diffusion's parts."""

import dataclasses
import json
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.models.text.tiny import PIPELINES
from tests.stages.mitigate.replaying import Replaying, artifacts, artifacts_of_pipeline
from tests.tiny import RUNTIME

from sidepipe.base.settings import check_field_types
from sidepipe.engine.stage import Job, Runtime
from sidepipe.models.text import significance
from sidepipe.models.text.model import Tokens
from sidepipe.stages.data.stage import Data
from sidepipe.stages.detect.stage import PROMPTS, DetectPrompts
from sidepipe.stages.mitigate import stage as module
from sidepipe.stages.mitigate.stage import Mitigate, load, load_generated, load_prompts_asked

SETTINGS = {
    "num_prompts": None,
    "num_generations": 2,
    "copied_share": 0.5,
    "adversary": {"num_steps": 200, "lr": 0.01},
    "clip": None,
    "features": {"_target_": "sidepipe.features.encoders.PixelsL2"},
    "num_inference_steps": 5,
    "guidance_scale": 1.0,
    "precision": "32-true",
    "seed": 0,
}


def mitigate(method="none", **changes):
    settings = {**SETTINGS, "method": method, **changes}
    return Mitigate(**check_field_types("mitigate", Mitigate, settings))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Inputs, and the model that replays training image 3 for the word marigold."""
    inputs, images = artifacts(tmp_path_factory.mktemp("planted"))
    return inputs, Replaying(images[3])


@pytest.fixture
def run(planted, monkeypatch, tmp_path):
    inputs, model = planted
    monkeypatch.setattr(module, "load_placed_model", lambda folder, precision, runtime: model)

    def run(runtime=RUNTIME, **changes):
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        mitigate(**changes).run(Job(folder, inputs, runtime))
        return folder, load(folder)

    return run


def test_what_a_model_replays_is_found_where_nothing_is_done(run):
    folder, results = run()
    assert results["num_prompts"] == {"memorized": 1, "other": 1}
    found = results["memorized"]
    assert found["memorized"]["prompts"]["share"] == 1
    assert found["other"]["prompts"]["share"] == 0
    assert [(row["repeats"], row["images"]["mean"]) for row in found["by_repeats"]] == [(1, 1.0)]
    assert results["evaluations_per_image"] == 10
    table = load_prompts_asked(folder)
    assert table["group"].tolist() == ["memorized", "other"]
    assert table["copies"].tolist() == [2, 0]
    images = load_generated(folder)
    assert images.shape == (2, 2, 4, 4, 1)
    assert results["heldout_loss"]["of"] == 20
    assert results["ceiling"]["tone"] == 1.0
    # The replayed image is as its caption says; the gray one is neither bold nor faint.
    assert results["alignment"]["measure"] == "attributes"
    assert results["alignment"]["memorized"]["mean"] == 1
    assert not (folder / "parts").exists()


def test_a_lowered_embedding_no_longer_replays_and_the_weights_still_do(run):
    _, results = run(method="embedding")
    assert results["memorized"]["memorized"]["prompts"]["share"] == 0
    assert results["evaluations_per_image"] > 10
    assert results["heldout_loss"] is None  # the model is the same
    again = results["adversary"]
    assert again["memorized"]["before"]["prompts"]["share"] == 0
    assert again["memorized"]["after"]["prompts"]["share"] == 1
    # The control: a held-out image is not in the weights.
    assert again["other"]["after"]["prompts"]["share"] == 0


def test_a_prompt_is_recovered_if_any_start_recovers_it(run, planted, monkeypatch):
    model, plain = planted[1], planted[1].eps

    def stuck(x_t, t, e):
        """As the model with one value of the embedding, which cannot change where it is 0."""
        return plain(x_t, t, torch.relu(e[:, :1, :1]))

    monkeypatch.setattr(model, "eps", stuck)
    for num_starts, recovered in ((1, 0), (6, 1)):
        adversary = {"num_steps": 200, "lr": 0.01, "num_starts": num_starts}
        folder, results = run(adversary=adversary)
        after = {name: of["after"]["prompts"] for name, of in results["adversary"].items()}
        assert after["memorized"]["share"] == recovered
        assert after["other"]["share"] == 0
        assert load_prompts_asked(folder)["recovered"].tolist() == [recovered, 0]


def test_settings_at_the_values_of_older_artifacts_keep_the_key():
    def keyed(**changes):
        built = mitigate(**changes)
        return built.key_settings(dataclasses.asdict(built))

    old = {"num_steps": 150, "batch_size": 128, "lr": 0.001, "num_neighbors": 16}
    old = {"name": "unlearn", **old, "caption_dropout": 0.1}
    assert keyed(method="unlearn")["method"] == old
    relearned = keyed(method={"name": "unlearn", "relearn_steps": 20})["method"]
    assert relearned == {**old, "relearn_steps": 20}
    assert keyed()["adversary"] == SETTINGS["adversary"]
    starts = {**SETTINGS["adversary"], "num_starts": 2}
    assert keyed(adversary=starts)["adversary"] == starts
    assert keyed(adversary=None)["adversary"] is None


def test_words_that_no_longer_fit_are_logged(run, monkeypatch, caplog):
    monkeypatch.setattr(Replaying, "tokens", lambda self, prompt: Tokens([], prompt[13:]))
    run(method="random_tokens", adversary=None)
    assert "prompts are longer than the 12 tokens that the encoder takes" in caplog.text


def test_unlearning_without_captions_is_refused_before_anything_runs():
    detect: Any = DetectPrompts.__new__(DetectPrompts)
    settings = {"size": 8, "channels": 1, "center_crop": None, "on_bad_file": "error"}
    target = "sidepipe.stages.data.sources.Nothing"
    upstream = {"data": Data(source={"_target_": target}, **settings), "detect": detect}
    mitigate().check(upstream, RUNTIME)
    with pytest.raises(ValueError, match=r"data must be the captioned images .* another mitigate"):
        mitigate(method="unlearn").check(upstream, RUNTIME)


def test_words_added_to_a_prompt_that_still_has_its_own_change_little(run):
    _, results = run(method="random_tokens", adversary=None)
    assert results["memorized"]["memorized"]["prompts"]["share"] == 1
    assert results["adversary"] is None
    assert results["evaluations_per_image"] == 10


def test_random_numbers_are_added_in_the_place_of_words(run, planted, monkeypatch):
    model = planted[1]
    asked, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda texts: asked.extend(texts) or encode(texts))
    run(method={"name": "random_numbers", "num_tokens": 3}, adversary=None)
    with_numbers = [text for text in asked if any(word.isdigit() for word in text.split()[6:])]
    assert with_numbers
    numbers = [word for text in asked for word in text.split() if word.isdigit()]
    assert all(0 <= int(number) < 1_000_000 for number in numbers)


def test_without_the_word_that_matters_most_nothing_is_replayed(run, monkeypatch):
    def loudness(model, x_T, prompts, **settings):
        """What the significance of this model's tokens grows with."""
        found = model.encode(prompts)[..., 0]
        return found, found

    monkeypatch.setattr(significance, "token_significance", loudness)
    _, results = run(method={"name": "drop_word", "num_steps": 3}, adversary=None)
    assert results["memorized"]["memorized"]["prompts"]["share"] == 0
    assert results["evaluations_per_image"] == 10 + 4 * 3


@pytest.mark.parametrize("method", ["embedding", "random_tokens"])
def test_images_and_numbers_do_not_depend_on_the_batch(run, method):
    one, results = run(Runtime(accelerator="cpu", sampling_batch_size=1), method=method)
    many, same = run(Runtime(accelerator="cpu", sampling_batch_size=3), method=method)
    difference = np.abs(load_generated(one).astype(int) - load_generated(many))
    assert difference.max() <= 1
    assert results["memorized"] == same["memorized"]
    assert results["evaluations_per_image"] == same["evaluations_per_image"]


def test_a_killed_run_goes_on_with_what_is_missing(run, planted, tmp_path, monkeypatch):
    whole, _ = run(Runtime(accelerator="cpu", sampling_batch_size=1))
    inputs, model = planted
    killed, calls = tmp_path / "killed", []
    killed.mkdir()
    decode = model.decode

    def failing(x_0):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("killed")
        return decode(x_0)

    monkeypatch.setattr(model, "decode", failing)
    small = Runtime(accelerator="cpu", sampling_batch_size=1)
    with pytest.raises(RuntimeError, match="killed"):
        mitigate().run(Job(killed, inputs, small))
    mitigate().run(Job(killed, inputs, small))
    # Two images were there, and each prompt's are made again for the adversary.
    assert len(calls) == 3 + 2 + 4
    np.testing.assert_array_equal(load_generated(killed), load_generated(whole))
    assert load(killed) == load(whole)


@pytest.fixture(scope="module", params=PIPELINES)
def stable_diffusion(request, tmp_path_factory):
    """Inputs of a random model of color images of 8 x 8 pixels, and 20 others."""
    return artifacts_of_pipeline(request.param, tmp_path_factory.mktemp("sd"))


METHODS = {
    "none": ({}, 0),
    "embedding": ({"max_iterations": 2, "target": 0.001}, 7),
    "random_tokens": ({}, 0),
    "drop_word": ({"num_steps": 3}, 12),
    "attention": ({}, 0),
}


@pytest.mark.parametrize("name", METHODS)
def test_stable_diffusion_runs_every_method(stable_diffusion, tmp_path, name):
    own, extra = METHODS[name]
    settings = {"adversary": {"num_steps": 2, "lr": 0.1}, "method": {"name": name, **own}}
    settings |= {"guidance_scale": 7.5, "num_inference_steps": 3, "precision": "bf16-true"}
    mitigate(**settings).run(Job(tmp_path, stable_diffusion, RUNTIME))
    results = load(tmp_path)
    assert load_generated(tmp_path).shape == (2, 2, 8, 8, 3)
    assert results["evaluations_per_image"] == 6 + extra
    assert results["adversary"]["memorized"]["after"]["prompts"]["of"] == 1


def test_without_training_images_nothing_is_called_a_copy(stable_diffusion, tmp_path):
    inputs = {name: tmp_path / name for name in stable_diffusion}
    for name, folder in stable_diffusion.items():
        shutil.copytree(folder, inputs[name])
    (inputs["data"] / "captions.csv").unlink()
    np.save(inputs["data"] / "images.npy", np.empty((0, 8, 8, 3), np.uint8))
    for name in ("subset", "heldout"):
        np.save(inputs["dpm"] / f"{name}.npy", np.empty(0, np.int64))
    table = pd.read_csv(inputs["detect"] / PROMPTS, index_col="number", keep_default_na=False)
    table.assign(row=-1, nearest=-1, memorized="").to_csv(inputs["detect"] / PROMPTS)
    results = json.loads((inputs["detect"] / "results.json").read_text())
    (inputs["detect"] / "results.json").write_text(json.dumps({**results, "labels": {}}))
    folder = tmp_path / "mitigate"
    folder.mkdir()
    mitigate(num_inference_steps=3).run(Job(folder, inputs, RUNTIME))
    results = load(folder)
    assert results["memorized"] is results["adversary"] is results["heldout_loss"] is None
    assert results["alignment"] == {
        "measure": None,
        "memorized": {"of": 0, "mean": None, "interval": None},
        "other": {"of": 0, "mean": None, "interval": None},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_prompts": 0}, r"mitigate.num_prompts must be >= 1 or null, got 0"),
        ({"num_generations": 0}, r"mitigate.num_generations must be >= 1, got 0"),
        (
            {"method": {"name": "attention", "start_scale": 0.0}},
            r"mitigate.method.start_scale must be > 0, got 0.0",
        ),
        (
            {"method": {"name": "embedding", "target": -1.0}},
            r"mitigate.method.target must be > 0 or null, got -1.0",
        ),
        ({"method": {"name": "embedding", "lr": 0.0}}, r"mitigate.method.lr must be > 0, got 0"),
        (
            {"method": {"name": "embedding", "max_iterations": 0}},
            r"mitigate.method.max_iterations must be >= 1, got 0",
        ),
        (
            {"method": {"name": "random_tokens", "num_tokens": 0}},
            r"mitigate.method.num_tokens must be >= 1, got 0",
        ),
        (
            {"method": {"name": "drop_word", "num_steps": 0}},
            r"mitigate.method.num_steps must be >= 1, got 0",
        ),
        (
            {"method": {"name": "prune", "row_share": 0.0}},
            r"mitigate.method.row_share must be in \(0, 1\], got 0.0",
        ),
        ({"method": "atention"}, r"mitigate.method does not accept 'atention'; .*'attention'"),
        (
            {"method": {"name": "attention", "lr": 0.1}},
            r"mitigate.method.lr is not a setting of mitigate.method=attention, which has "
            r"mitigate.method.start_scale; mitigate.method=embedding, mitigate.method=unlearn "
            r"has it$",
        ),
        (
            {"method": {"name": "none", "target": 1.0}},
            r"mitigate.method.target is not a setting of mitigate.method=none, which has none; "
            r"mitigate.method=embedding has it$",
        ),
        ({"adversary": {"num_steps": 3}}, r"mitigate.adversary.lr is required by"),
        (
            {"adversary": {"num_steps": 3, "lr": 0.1, "num_starts": 0}},
            r"mitigate.adversary.num_starts must be >= 1, got 0",
        ),
    ],
)
def test_a_setting_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mitigate(**changes)
