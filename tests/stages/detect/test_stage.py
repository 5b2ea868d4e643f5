"""Stage `detect`: planted replays are found, a killed run goes on, files and Stable Diffusion."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.text.tiny import FLOWS, PIPELINES, tiny_flux
from tests.stages.detect.fakes import Replaying, artifacts
from tests.tiny import DIGITS, RUNTIME, checked

import sidepipe.stages.detect.observe as observing
import sidepipe.stages.detect.stage as stage_module
from sidepipe.engine.stage import Job
from sidepipe.stages.detect.stage import (
    DetectPrompts,
    load,
    load_gallery,
    load_observed,
    load_prompts,
    load_thresholds,
)
from sidepipe.stages.dpm.pretrained import PretrainedDPM
from sidepipe.stages.dpm.pretrained_text import PretrainedTextDPM

PIXELS_L2 = {"_target_": "sidepipe.features.encoders.PixelsL2"}
SETTINGS = {
    "prompts": None,
    "calibration_prompts": None,
    "truth_images": None,
    "num_train_prompts": 10,
    "num_heldout_prompts": 30,
    "num_generations": 4,
    "num_inference_steps": 5,
    "guidance_scale": 1.0,
    "signals": ["norm", "hessian", "ssim", "tile_l2"],
    "generations": [1, 4],
    "steps": [1, 5],
    "decision": {"generations": 4, "steps": 1},
    "attention_layer": None,
    "features": PIXELS_L2,
    "label_threshold": None,
    "label_false_positive_rate": 0.1,
    "copied_share": 0.5,
    "false_positive_rate": 0.1,
    "precision": "32-true",
    "seed": 0,
}
SMALL_BATCH = replace(RUNTIME, sampling_batch_size=7)


def detect(**changes):
    return DetectPrompts(**{**SETTINGS, **changes})


@pytest.fixture
def replaying(tmp_path, monkeypatch):
    """Inputs whose model replays training image i for the caption "word i", and an empty folder."""
    inputs, images = artifacts(tmp_path)
    model = Replaying(images)
    monkeypatch.setattr(stage_module, "load_placed_model", lambda *about: model)
    folder = tmp_path / "detect"
    folder.mkdir()
    return inputs, folder


def test_planted_replays_are_found_and_labeled_by_what_is_generated(replaying):
    inputs, folder = replaying
    summary = detect().run(Job(folder, inputs, RUNTIME))
    prompts = load_prompts(folder)
    planted = prompts["role"] == "planted"
    assert prompts["memorized"].tolist() == planted.tolist()
    assert prompts["nearest"][planted].tolist() == prompts["row"][planted].tolist()
    assert (prompts["copies"][planted] == 4).all()
    assert prompts["flagged"][planted].all()
    assert prompts["id"][planted].tolist() == [f"NA{i}" for i in range(6)]
    results = load(folder)
    assert results["decision"]["auc"] == 1
    assert results["decision"]["tpr"] == 1
    assert results["decision"]["evaluations_per_prompt"] == 8
    assert results["decision"]["flagged_others"]["share"] <= 0.2
    assert summary["num_memorized"] == 6
    signals = {row["signal"]: row["auc"] for row in results["signals"] if row["generations"] == 4}
    assert signals["tile_l2"] == 1


def test_thresholds_and_observations_are_there_for_later_stages(replaying):
    inputs, folder = replaying
    detect().run(Job(folder, inputs, RUNTIME))
    prompts, seen, thresholds = load_prompts(folder), load_observed(folder), load_thresholds(folder)
    assert seen["norm"].shape == (len(prompts), 4, 5)
    np.testing.assert_allclose(seen["norm"][:, :, 0].mean(1), prompts["d"], rtol=1e-4)
    calibration = prompts["role"] == "calibration"
    expected = np.median(seen["norm"][calibration, :, 0])
    assert thresholds["median_first_step"] == pytest.approx(expected)
    assert thresholds["labels"]["threshold"] > 0
    assert thresholds["labels"]["copied_share"] == 0.5
    assert (prompts["d"] > thresholds["tau"]).tolist() == prompts["flagged"].tolist()
    images, train, rows = load_gallery(folder)
    assert rows["d"].is_monotonic_decreasing
    assert images.shape == (len(rows), 4, 8, 8, 1)
    replayed = rows.index[rows["role"] == "planted"]
    np.testing.assert_allclose(images[replayed, 0], train[replayed], atol=1)
    assert not (folder / "parts").exists()


def results_of(folder):
    return [(folder / name).read_bytes() for name in ("results.json", "prompts.csv", "gallery.npy")]


def test_a_killed_run_goes_on_and_ends_as_one_that_was_not(replaying, monkeypatch):
    inputs, folder = replaying
    detect().run(Job(folder, inputs, RUNTIME))
    whole = results_of(folder)
    observe, calls = observing.observe, []

    def dies(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return observe(*args)

    monkeypatch.setattr(observing, "observe", dies)
    again = folder.parent / "again"
    again.mkdir()
    with pytest.raises(KeyboardInterrupt):
        detect().run(Job(again, inputs, RUNTIME))
    detect().run(Job(again, inputs, RUNTIME))
    assert len(calls) == 4  # two parts were there, the third was made twice
    assert results_of(again) == whole


def test_the_batch_size_changes_results_by_rounding_alone(replaying):
    inputs, folder = replaying
    detect().run(Job(folder, inputs, RUNTIME))
    again = folder.parent / "again"
    again.mkdir()
    detect().run(Job(again, inputs, SMALL_BATCH))
    whole, parts = load_observed(folder), load_observed(again)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-5)
    assert load_prompts(folder)["memorized"].equals(load_prompts(again)["memorized"])


def test_too_few_calibration_prompts_are_refused_before_anything_is_made(replaying):
    inputs, folder = replaying
    few = detect(false_positive_rate=0.01, num_heldout_prompts=200)
    with pytest.raises(ValueError, match=r"calibration prompts must be >= 1 / 0.01 = 100, got \d"):
        few.run(Job(folder, inputs, RUNTIME))
    assert not list(folder.iterdir())


def test_images_that_cannot_be_compared_are_refused_before_anything_is_made(replaying):
    inputs, folder = replaying
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 1))
    np.save(inputs["data"] / "images.npy", images.astype(np.uint8))
    with pytest.raises(ValueError, match=r"equally many dimensions"):
        detect().run(Job(folder, inputs, RUNTIME))


@pytest.fixture(scope="module", params=PIPELINES)
def stable_diffusion(request, tmp_path_factory):
    return PIPELINES[request.param](tmp_path_factory.mktemp("sd") / "model").parent


def written(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "caption", "memorized"], *rows])
    return str(path)


def files(tmp_path, long="the last"):
    """Settings of a file of prompts with one image and one label, and of calibration prompts."""
    rng = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(images / "7.png")
    rows = [[7, "a cat", ""], [8, "a dog", "true"], [9, "a cow", "false"], [10, long, ""]]
    others = [[i, f"thing {i}", ""] for i in range(10)]
    return {
        "prompts": written(tmp_path / "prompts.csv", rows),
        "calibration_prompts": written(tmp_path / "others.csv", others),
        "truth_images": str(images),
        "label_threshold": 1.0,  # black to white: every image is a copy
    }


def without_images(tmp_path):
    inputs, _ = artifacts(tmp_path / "empty")
    np.save(inputs["data"] / "images.npy", np.zeros((0, 8, 8, 3), np.uint8))
    for name in ("subset", "heldout"):
        np.save(inputs["dpm"] / f"{name}.npy", np.empty(0, np.int64))
    return inputs


ALL = ["norm", "hessian", "entropy", "ssim", "tile_l2"]


def test_stable_diffusion_runs_on_a_file_of_prompts_with_its_own_images_and_labels(
    tmp_path, stable_diffusion, caplog
):
    inputs = without_images(tmp_path)
    (inputs["dpm"] / "model").symlink_to(stable_diffusion / "model")
    folder = tmp_path / "detect"
    stage = detect(**files(tmp_path, long="x" * 90), signals=ALL, attention_layer=2)
    summary = stage.run(Job(folder, inputs, RUNTIME))
    prompts = load_prompts(folder)
    assert prompts["memorized"].tolist()[:3] == [True, True, False]
    assert prompts["memorized"].isna().sum() == 11
    assert prompts["copies"].tolist()[:2] == [4, 0]
    assert "1 of 14 prompts are longer than the 77 tokens" in caplog.text
    assert prompts["cut"].tolist()[3] == "x" * 15
    assert set(summary["files"]) == {"prompts", "calibration_prompts"}
    results = load(folder)
    assert results["labels"]["num_with_images"] == 1
    assert results["decision"]["flagged_memorized"]["of"] == 2
    _, train, _ = load_gallery(folder)
    assert train is None


def test_without_images_and_labels_there_is_the_ranked_table(tmp_path, stable_diffusion):
    inputs = without_images(tmp_path)
    (inputs["dpm"] / "model").symlink_to(stable_diffusion / "model")
    settings = {**files(tmp_path), "truth_images": None}
    written(tmp_path / "prompts.csv", [[7, "a cat", ""], [8, "a dog", ""]])
    summary = detect(**settings, signals=["norm"]).run(Job(tmp_path / "detect", inputs, RUNTIME))
    prompts = load_prompts(tmp_path / "detect")
    assert prompts["memorized"].isna().all()
    assert prompts["d"].gt(0).all()
    assert summary["auc"] is None
    assert load_thresholds(tmp_path / "detect")["labels"] == {}


@pytest.mark.parametrize("kind", FLOWS)
def test_rectified_flow_is_detected_by_every_signal_but_attention(tmp_path, kind):
    inputs = without_images(tmp_path)
    FLOWS[kind](inputs["dpm"] / "model")
    settings = {**files(tmp_path), "truth_images": None}
    stage = detect(**settings, signals=[name for name in ALL if name != "entropy"])
    stage.run(Job(tmp_path / "detect", inputs, RUNTIME))
    assert load_prompts(tmp_path / "detect")["d"].gt(0).all()
    seen = load_observed(tmp_path / "detect")
    assert seen["hessian"].min() > 0
    assert all(np.isfinite(values).all() for values in seen.values())


def test_a_distilled_model_is_refused_before_anything_is_sampled(tmp_path):
    inputs = without_images(tmp_path)
    tiny_flux(inputs["dpm"] / "model", guidance_embeds=True)
    stage = detect(**files(tmp_path), signals=["norm"])
    with pytest.raises(ValueError, match=r"guidance_embeds of .* must be false for stages"):
        stage.run(Job(tmp_path / "detect", inputs, RUNTIME))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_other_precisions_see_nearly_the_same(tmp_path, stable_diffusion, precision):
    inputs = without_images(tmp_path)
    (inputs["dpm"] / "model").symlink_to(stable_diffusion / "model")
    settings = {**files(tmp_path), "signals": ["norm", "hessian", "entropy"]}
    seen = []
    for kind in ("32-true", precision):
        detect(**settings, precision=kind).run(Job(tmp_path / kind, inputs, RUNTIME))
        seen.append(load_observed(tmp_path / kind))
    for name in settings["signals"]:
        full, few = (some[name].mean() for some in seen)
        assert few == pytest.approx(full, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signals": ["hessian"]}, r"detect.signals must be with norm among them"),
        ({"signals": ["norm", "entropie"]}, r"does not accept 'entropie'; did you mean 'entropy'"),
        ({"generations": [5]}, r"in \[1, detect.num_generations = 4\], got \[5\]"),
        ({"steps": []}, r"detect.steps must be whole numbers"),
        ({"decision": {"generations": 4, "steps": 2}}, r"decision.steps must be one of \[1, 5\]"),
        ({"decision": {"generations": 4}}, r"decision.steps must be one of \[1, 5\], got None"),
        ({"copied_share": 0}, r"detect.copied_share must be in \(0, 1\]"),
        ({"false_positive_rate": 1}, r"detect.false_positive_rate must be in \(0, 1\)"),
        ({"prompts": "a.csv"}, r"calibration_prompts must be set with detect.prompts"),
        ({"truth_images": "images"}, r"detect.truth_images must be null without detect.prompts"),
        ({"num_train_prompts": -1}, r"num_heldout_prompts must be >= 0"),
        (
            {"num_heldout_prompts": 198, "false_positive_rate": 0.01},
            r"half of num_heldout_prompts must be >= 1 / 0.01 = 100, got 99; raise it",
        ),
    ],
)
def test_a_wrong_setting_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        detect(**changes)


SPLIT = {"num_train_images": None, "train_partitions": None, "subset_seed": 0, "variant": None}
TEXT = PretrainedTextDPM(path="a/b", revision=None, **SPLIT)
PLANTED = replace(DIGITS, source={"_target_": "sidepipe.stages.data.planted.Planted"})
NONE = replace(DIGITS, source={"_target_": "sidepipe.stages.data.sources.Nothing"})


def test_what_other_stages_lack_is_said_at_start_up():
    checked(detect(), {"data": PLANTED, "dpm": TEXT}, RUNTIME)
    plain = PretrainedDPM(path="a/b", revision=None, **SPLIT)
    with pytest.raises(ValueError, match=r"dpm must be a text-conditional model"):
        checked(detect(), {"data": PLANTED, "dpm": plain}, RUNTIME)
    with pytest.raises(ValueError, match=r"data must be images with captions, got 'none'"):
        checked(detect(), {"data": DIGITS, "dpm": TEXT}, RUNTIME)
    own = detect(prompts="a.csv", calibration_prompts="b.csv", truth_images="images")
    with pytest.raises(ValueError, match=r"detect.label_threshold must be set"):
        checked(own, {"data": NONE, "dpm": TEXT}, RUNTIME)
    with pytest.raises(ValueError, match=r"detect.label_threshold must be >= 0 \(l2\)"):
        checked(detect(label_threshold=-0.1), {"data": PLANTED, "dpm": TEXT}, RUNTIME)


def data_with_copies(folder, number):
    """Data of 40 training and 30 held-out images, of which `number` are copies of the former."""
    inputs, images = artifacts(folder)
    images[40 : 40 + number] = images[:number]
    np.save(inputs["data"] / "images.npy", images)
    return inputs["data"]


def test_dropped_duplicates_do_not_calibrate(tmp_path):
    upstream = {"dpm": replace(TEXT, train_partitions=["train"], on_duplicates="drop")}
    stage = detect(false_positive_rate=0.07)
    stage.check_data(data_with_copies(tmp_path / "none", 0), upstream, RUNTIME)
    why = (
        r"= 15, got 13; .* \(a held-out caption counts once.*: 26 held-out pairs give 26, and half"
    )
    with pytest.raises(ValueError, match=why):
        stage.check_data(data_with_copies(tmp_path / "four", 4), upstream, RUNTIME)


def test_kept_copies_that_hide_every_replay_are_an_error_before_training(tmp_path):
    upstream = {"dpm": replace(TEXT, train_partitions=["train"], on_duplicates="keep")}
    detect().check_data(data_with_copies(tmp_path / "three", 3), upstream, RUNTIME)
    four = data_with_copies(tmp_path / "four", 4)
    with pytest.raises(ValueError, match=r"no image could be a hit .* 4 of 30 .*NA4. = NA., NA4"):
        detect().check_data(four, upstream, RUNTIME)
    detect(label_threshold=0.1).check_data(four, upstream, RUNTIME)


def test_files_are_looked_for_and_a_changed_one_is_noticed(tmp_path):
    settings = files(tmp_path)
    stage = detect(**settings)
    stage.check_sources(RUNTIME)
    summary = {"files": dict.fromkeys(("prompts", "calibration_prompts"), "")}
    assert "prompts and calibration_prompts changed" in stage.source_changed(summary, RUNTIME)
    assert detect().source_changed({"files": {}}, RUNTIME) is None
    with pytest.raises(FileNotFoundError, match="truth_images"):
        replace(stage, truth_images="nowhere").check_sources(RUNTIME)
    (tmp_path / "prompts.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"prompts.csv is missing"):
        stage.check_sources(RUNTIME)


def test_settings_that_are_not_used_do_not_enter_the_key():
    settings = dict.fromkeys(SETTINGS, 0)
    assert "truth_images" not in detect().key_settings(settings)
    assert "num_train_prompts" in detect().key_settings(settings)
    of_files = detect(prompts="a.csv", calibration_prompts="b.csv")
    assert "num_train_prompts" not in of_files.key_settings(settings)


def test_no_gradient_is_left_on(replaying):
    inputs, folder = replaying
    detect().run(Job(folder, inputs, RUNTIME))
    assert torch.is_grad_enabled()
