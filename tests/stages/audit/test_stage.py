"""The audit of a model in closed form, whose memorized images are known."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.composing import composed
from tests.memory import ALPHAS, Memory
from tests.models.tiny_pipelines import dit, latent, of_images
from tests.tiny import RUNTIME

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.inversion import inversion_measure
from sidepipe.engine.artifacts import write_manifest
from sidepipe.engine.plan import plan
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.audit import stage as module
from sidepipe.stages.audit.stage import Audit, load, load_gallery, load_risk, load_scores
from sidepipe.stages.dpm.pretrained_text import PretrainedTextDPM
from sidepipe.stages.reference.stage import Reference

L2 = {"_target_": "sidepipe.features.encoders.PixelsL2"}
COSINE = {"_target_": "sidepipe.features.encoders.Pixels"}
SETTINGS = {
    "features": L2,
    "false_positive_rates": [0.05],
    "num_images": None,
    "refine_t": 10,
    "refine_steps": 3,
    "levels": [10, 90],
    "draws": 2,
    "probes": 3,
    "contrast_t": 40,
    "sampled": 30,
    "budget": 100,
    "invmm_images": 0,
    "groups": None,
    "gallery_images": 7,
    "precision": "32-true",
    "seed": 0,
}
# A checkpoint under plain sampling.
ALONE = ["attacks=single", "extract.surrogate=none", "dpm=pretrained", "dpm.num_train_images=9"]
NUM_TRAIN, NUM_UNSEEN, MEMORIZED = 20, 40, 12


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """12 of 20 training images are memorized, and so is the second held-out image."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_TRAIN + NUM_UNSEEN, 6, 6, 1)).astype(np.uint8)
    order = rng.permutation(len(images))
    train, unseen = order[:NUM_TRAIN], order[NUM_TRAIN:]
    # The last unseen images are like training images, and set the threshold of a hit.
    noise = rng.normal(0, 1, (3, 6, 6, 1)) * np.array([4, 6, 9]).reshape(3, 1, 1, 1)
    images[unseen[-3:]] = (images[train[-3:]] + noise).clip(0, 255).astype(np.uint8)
    for name in ("data", "dpm", "reference"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "data" / "images.npy", images)
    rows = "".join(f"{i},NA,train,\n" for i in range(len(images)))
    (tmp_path / "data" / "ids.csv").write_text(f"index,id,partition,identity\n{rows}")
    np.save(tmp_path / "dpm" / "subset.npy", train)
    np.save(tmp_path / "dpm" / "heldout.npy", unseen)
    known = images[[*train[:MEMORIZED], unseen[1]]]
    model = Denoiser(Memory(known), ALPHAS, "sample", (1, 6, 6))
    base = Denoiser(Memory(images), ALPHAS, "sample", (1, 6, 6))
    parts = {"model": model, "base": base}
    monkeypatch.setattr(module, "load_denoiser", lambda *_, part="model": parts[part])
    return {name: tmp_path / name for name in ("data", "dpm", "reference")}


def run(inputs, folder, runtime=RUNTIME, **changes):
    settings = SETTINGS | changes
    reference = Reference(features=settings["features"], false_positive_rates=[0.05])
    reference.run(Job(inputs["reference"], inputs, RUNTIME))
    folder.mkdir(exist_ok=True)
    return Audit(**settings).run(Job(folder, inputs, runtime))


@pytest.mark.parametrize("features", [L2, COSINE], ids=["l2", "cosine"])
def test_memorized_images_are_flagged_and_no_others(inputs, tmp_path, features):
    summary = run(inputs, tmp_path / "audit", features=features)
    assert summary == load(tmp_path / "audit")
    kinds = ("num_train", "flagged", "num_heldout", "heldout_flagged")
    assert [summary[name] for name in kinds] == [20, 12, 20, 1]
    assert summary["excess"]["share"] == pytest.approx(12 / 20 - 1 / 20)
    assert summary["evaluations_per_image"] == 3 + 2 + 2 * 2 * 4 + 3
    assert summary["evaluations_of_sample"] == 30 * (10 + 3)
    table = load_scores(tmp_path / "audit")
    train, heldout = (table[table["kind"] == kind] for kind in ("train", "heldout"))
    assert table["id"].tolist() == ["NA"] * 40
    assert train["index"].tolist() == np.load(inputs["dpm"] / "subset.npy").tolist()
    assert heldout["index"].tolist() == np.load(inputs["dpm"] / "heldout.npy")[:20].tolist()
    assert train["flagged"].tolist() == [1] * 12 + [0] * 8
    assert heldout["flagged"].tolist() == [0, 1, *[0] * 18]
    # With little noise every copy of a memorized image comes back to it, and only to it.
    assert train["recall_10"].tolist() == [1] * 12 + [0] * 8
    assert train["arrivals_90"].sum() + (heldout["arrivals_90"].sum()) > 0
    assert (train["arrivals_10"][:12] >= 2).all()
    # The only held-out image that comes back is as close to itself as the training images are.
    assert train["p_value"].tolist() == pytest.approx(
        [2 / 21] * 12 + train["p_value"].tolist()[12:]
    )
    assert heldout["p_value"].isna().all()


def test_the_samples_of_the_model_calibrate_the_probability_of_extraction(inputs, tmp_path):
    """The model samples its 13 memorized images alone; one of them is held out."""
    summary = run(inputs, tmp_path / "audit")["extraction"]
    table = load_scores(tmp_path / "audit")
    train, heldout = (table[table["kind"] == kind] for kind in ("train", "heldout"))
    memorized = [*train["probability"][:MEMORIZED], heldout["probability"].iloc[1]]
    others = [*train["probability"][MEMORIZED:], *heldout["probability"].drop(heldout.index[1])]
    assert min(memorized) > 0.95
    assert max(others) < 0.5
    assert summary["hits"] + summary["heldout_hits"] == 30
    assert train["hits"].sum() == summary["hits"]
    assert not train["hits"][MEMORIZED:].any()
    assert summary["expected"] == pytest.approx(train["probability"].sum())
    low, high = summary["interval"]
    assert low <= MEMORIZED <= high
    assert (table["probability_low"] <= table["probability"]).all()
    assert (table["probability"] <= table["probability_high"]).all()
    assert (table["divergence"][:MEMORIZED] < -0.99).all()


def test_memorized_images_are_inverted_and_others_are_not(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sidepipe.stages.audit.inversion.inversion_measure", partial(inversion_measure, steps=800)
    )
    monkeypatch.setattr("sidepipe.stages.audit.inversion.PART_ON_CPU", 14)
    stage = Audit(**SETTINGS | {"invmm_images": 14})
    summary = run(inputs, tmp_path / "audit", invmm_images=14, levels=[], sampled=0)
    table = load_scores(tmp_path / "audit")
    train, heldout = (table[table["kind"] == kind]["invmm"] for kind in ("train", "heldout"))
    assert np.isfinite(train[:MEMORIZED]).all()
    assert np.isinf(train[MEMORIZED:14]).all()
    assert train[14:].isna().all()
    assert [*np.isfinite(heldout[:14])] == [False, True, *[False] * 12]
    median = pytest.approx(np.median(train[:14]), rel=1e-4)
    assert summary["invmm"] == {
        "train": {"num_images": 14, "finite": 12 / 14, "median": median},
        "heldout": {"num_images": 14, "finite": 1 / 14, "median": None},
    }
    assert stage.unused() == ()
    assert Audit(**SETTINGS).unused() == ("invmm_images",)
    assert "invmm_images" not in Audit(**SETTINGS).key_settings(SETTINGS)


def test_a_killed_inversion_has_logged_its_steps_and_keeps_whole_parts(
    inputs, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "sidepipe")
    monkeypatch.setattr("sidepipe.stages.audit.inversion.PROGRESS_SECONDS", 0.0)
    measures = []

    def killed_at_the_second(*arguments, **named):
        if len(measures) == 1:
            raise KeyboardInterrupt
        measures.append(inversion_measure(*arguments, **named, steps=3))
        return measures[-1]

    monkeypatch.setattr("sidepipe.stages.audit.inversion.inversion_measure", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "audit", invmm_images=5, levels=[], sampled=0)
    parts = sorted((tmp_path / "audit" / "parts" / "invmm_train").iterdir())
    assert [path.stem for path in parts] == ["0000000-0000004"]
    assert "InvMM of train images 1 to 4 of 5, up to 2,000 steps" in caplog.text
    assert "3 of 2,000 steps of the InvMM of train images 1 to 4 of 5" in caplog.text


def test_every_column_of_the_scores_is_described(inputs, tmp_path):
    run(inputs, tmp_path / "audit")
    page = (Path(__file__).parents[3] / "docs" / "audit.md").read_text()
    columns = {re.sub(r"_\d+$", "_<t>", name) for name in load_scores(tmp_path / "audit")}
    assert not [name for name in columns if f"`{name}`" not in page]


def test_without_a_sample_there_is_no_probability(inputs, tmp_path):
    assert run(inputs, tmp_path / "audit", sampled=0)["extraction"] is None
    assert "probability" not in load_scores(tmp_path / "audit")
    assert "are expected" not in Audit(**SETTINGS).describe(tmp_path / "audit", "audit")


def test_the_gallery_has_the_closest_returns(inputs, tmp_path):
    run(inputs, tmp_path / "audit")
    pairs, rows = load_gallery(tmp_path / "audit")
    images = np.load(inputs["data"] / "images.npy")
    assert pairs.shape == (7, 2, 6, 6, 1)
    assert all(row["flagged"] == 1 for row in rows)
    for pair, row in zip(pairs, rows, strict=True):
        np.testing.assert_array_equal(pair[0], images[row["index"]])
        assert np.abs(pair[1].astype(int) - pair[0]).max() <= 1


def test_the_first_training_images_can_be_audited_alone(inputs, tmp_path):
    summary = run(inputs, tmp_path / "audit", num_images=5, levels=[])
    assert (summary["num_train"], summary["num_heldout"], summary["flagged"]) == (5, 5, 5)
    assert not [name for name in load_scores(tmp_path / "audit") if name.startswith("recall")]


def test_a_killed_run_resumes_to_the_same_bytes(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 6)
    run(inputs, tmp_path / "whole")
    made, one = [], Audit._part

    def killed(self, *arguments):
        if len(made) == 5:  # the second part of the held-out images
            raise KeyboardInterrupt
        made.append(arguments[-1])
        return one(self, *arguments)

    monkeypatch.setattr(Audit, "_part", killed)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "killed")
    made.clear()
    run(inputs, tmp_path / "killed")
    assert made == [range(6, 12), range(12, 18), range(18, 20)]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


def test_scores_do_not_depend_on_the_batch_or_on_parts(inputs, tmp_path, monkeypatch):
    run(inputs, tmp_path / "one")
    monkeypatch.setattr(module, "PART", 7)
    run(inputs, tmp_path / "other", Runtime(accelerator="cpu", sampling_batch_size=3))
    one, other = (load_scores(tmp_path / name) for name in ("one", "other"))
    for name in one:
        assert one[name].tolist() == pytest.approx(other[name].tolist(), abs=1e-3, nan_ok=True) or (
            one[name].tolist() == other[name].tolist()
        )


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("num_images", 1, "audit.num_images must be >= 2 or null, got 1"),
        ("refine_steps", 0, "audit.refine_steps must be >= 1, got 0"),
        ("draws", 0, "audit.draws must be >= 1, got 0"),
        ("probes", 0, "audit.probes must be >= 1, got 0"),
        ("budget", 0, "audit.budget must be >= 1, got 0"),
        ("sampled", -1, "audit.sampled must be >= 0, got -1"),
        ("refine_t", -1, "audit.refine_t must be >= 0, got -1"),
        ("gallery_images", -1, "audit.gallery_images must be >= 0, got -1"),
        ("levels", [60, 10], "audit.levels must be increasing timesteps, got"),
        ("levels", [-1, 10], "audit.levels must be >= 0, got"),
        ("precision", "bf16-true", "audit.precision"),
        ("seed", -1, "audit.seed must be in"),
    ],
)
def test_settings_out_of_range_are_refused(setting, value, rule):
    with pytest.raises(ValueError, match=rule):
        Audit(**SETTINGS | {setting: value})


def test_a_text_model_is_refused_with_the_stage_to_use():
    dpm = PretrainedTextDPM.__new__(PretrainedTextDPM)
    with pytest.raises(ValueError, match=r"an unconditional model of images.*detect=prompts"):
        Audit(**SETTINGS).check({"dpm": dpm}, RUNTIME)


def test_a_class_conditional_model_is_refused_with_the_plan_unless_it_has_a_null_class(tmp_path):
    images = of_images(tmp_path / "images", num_class_embeds=4)
    with pytest.raises(ValueError, match=r"a model without classes, or .* got '4 classes'"):
        plan(composed(*ALONE, "audit=returns", f"dpm.path={images}"))
    plan(composed(*ALONE, f"dpm.path={images}"))
    plan(composed(*ALONE, "audit=returns", f"dpm.path={images}", "dpm.null_class=0"))
    for make in (dit, latent):
        plan(composed(*ALONE, "audit=returns", f"dpm.path={make(tmp_path / make.__name__)}"))


def test_a_model_with_averaged_weights_alone_is_checked_for_classes(tmp_path):
    path = of_images(tmp_path / "images", num_class_embeds=4)
    (path / "unet").rename(path / "unet_ema")
    with pytest.raises(ValueError, match="got '4 classes'"):
        plan(composed(*ALONE, "audit=returns", f"dpm.path={path}"))


def test_the_terminal_has_the_finding_and_the_file(inputs, tmp_path):
    run(inputs, tmp_path / "audit")
    text = Audit(**SETTINGS).describe(tmp_path / "audit", "audit")
    assert "The model returns to 12 of 20 training images and to 1 of 20 held-out images" in text
    assert f"{tmp_path / 'audit' / 'audit.csv'}" in text
    assert "a difference of 55.0 % (95 % interval " in text
    assert "Among 100 refined images, hits are expected on 1" in text


def test_the_contrast_with_a_base_is_higher_for_images_that_fine_tuning_added(inputs, tmp_path):
    # The base knows every image alike, and the model its 13 alone.
    assert run(inputs, tmp_path / "without")["contrast"] is None
    assert "contrast" not in load_scores(tmp_path / "without")
    (inputs["dpm"] / "base").mkdir()
    summary = run(inputs, tmp_path / "audit", draws=4)
    table = load_scores(tmp_path / "audit")
    train, heldout = (table[table["kind"] == kind]["contrast"] for kind in ("train", "heldout"))
    memorized = [*train[:MEMORIZED], heldout.iloc[1]]
    assert min(memorized) > max([*train[MEMORIZED:], heldout.iloc[0], *heldout[2:]])
    assert summary["contrast"]["auc"] == pytest.approx((12 * 19 + 8 * 19 / 2) / 400, abs=0.2)
    assert summary["evaluations_per_image"] == 3 + 4 + 2 * 4 * 4 + 3 + 2 * 4
    assert "contrast" in load_risk(tmp_path / "audit")


def grouped(inputs, folder, rows):
    """A table of files: `rows` are the subjects of the images in the order of the data."""
    count = len(rows)
    ids = "".join(f"{i},{i}.png,train,\n" for i in range(count))
    (inputs["data"] / "ids.csv").write_text(f"index,id,partition,identity\n{ids}")
    manifest = {"stage": "data", "key": "d", "settings": {"source": {}}, "inputs": {}}
    write_manifest(inputs["data"], manifest)
    table = folder / "groups.csv"
    table.write_text("file,group\n" + "".join(f"{i}.png,{rows[i]}\n" for i in range(count)))
    return str(table)


def test_ten_slices_of_one_patient_are_one_finding(inputs, tmp_path):
    """Ten of the 12 memorized images are of one patient; held-out images have one each."""
    train = np.load(inputs["dpm"] / "subset.npy")
    rows = [f"other {i}" for i in range(NUM_TRAIN + NUM_UNSEEN)]
    for row in train[:10]:
        rows[row] = "patient"
    summary = run(inputs, tmp_path / "audit", groups=grouped(inputs, tmp_path, rows))
    assert summary["flagged"] == 12
    found = summary["subjects"]
    assert (found["num_train"], found["flagged"]) == (NUM_TRAIN - 9, 3)
    assert (found["num_heldout"], found["heldout_flagged"]) == (20, 1)
    table = pd.read_csv(tmp_path / "audit" / "subjects.csv").set_index("subject")
    assert table.loc["patient", ["images", "flagged"]].tolist() == [10, 10]
    # Conformal: one held-out subject comes back as closely.
    assert table.loc["patient", "p_value"] == pytest.approx(2 / 21)
    assert table.loc[table["kind"] == "heldout", "p_value"].isna().all()
    scores = load_scores(tmp_path / "audit")
    own = scores.loc[scores["subject"] == "patient", "probability"]
    assert table.loc["patient", "probability"] == pytest.approx(1 - (1 - own).prod())
    assert "patient" in set(load_scores(tmp_path / "audit")["subject"])


def test_a_patient_on_both_sides_is_refused_and_a_changed_table_is_found(inputs, tmp_path):
    rows = [str(i) for i in range(NUM_TRAIN + NUM_UNSEEN)]
    groups = grouped(inputs, tmp_path, rows)
    summary = run(inputs, tmp_path / "audit", groups=groups, levels=[])
    stage = Audit(**SETTINGS | {"groups": groups})
    assert stage.source_changed(summary, RUNTIME) is None
    grouped(inputs, tmp_path, ["one"] * len(rows))
    assert "groups.csv changed" in (stage.source_changed(summary, RUNTIME) or "")
    with pytest.raises(ValueError, match="groups must be in train or in heldout, got 1 in both"):
        run(inputs, tmp_path / "both", groups=groups)


def test_an_identity_is_required_of_every_image(inputs, tmp_path):
    with pytest.raises(ValueError, match="images without an identity must be 0, got 60"):
        run(inputs, tmp_path / "audit", groups="identity")
    with pytest.raises(ValueError, match=r"audit\.groups must be null, identity or a table"):
        Audit(**SETTINGS | {"groups": "missing.csv"})
