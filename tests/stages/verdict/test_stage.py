"""Verdicts on the images of a model in closed form, whose memorized images are known."""

import numpy as np
import pytest
from tests.composing import composed, planned
from tests.memory import ALPHAS, Memory
from tests.models.tiny_pipelines import dit, latent, of_images
from tests.tiny import RUNTIME

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.engine.plan import check_parts, plan
from sidepipe.engine.stage import Job, NoMaterial
from sidepipe.features.near import NearDuplicates
from sidepipe.stages.verdict import stage as module
from sidepipe.stages.verdict.stage import Verdict, load, load_verdicts

L2 = {"_target_": "sidepipe.features.encoders.PixelsL2"}
SETTINGS = {
    "features": L2,
    "false_positive_rates": [0.001],
    "near_duplicates": NearDuplicates(features=L2, threshold=0.02),
    "num_images": 60,
    "levels": [10, 40],
    "draws": 2,
    "probes": 0,
    "gallery_images": 5,
    "seed": 0,
}
MEMORIZED, OTHERS = 14, 26


def drawn(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 1)).astype(np.uint8)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """The attack's images: each memorized one twice, and others once."""
    memorized = {"dpm": drawn(0, MEMORIZED), "shadow": drawn(1, MEMORIZED)}
    models = {
        name: Denoiser(Memory(some), ALPHAS, "sample", (1, 6, 6))
        for name, some in memorized.items()
    }
    monkeypatch.setattr(module, "load_denoiser", lambda folder, precision: models[folder.name])
    attacked = {
        name: np.concatenate([some, some, drawn(len(name), OTHERS)])
        for name, some in memorized.items()
    }
    monkeypatch.setattr(module, "load_extracted", lambda folder: attacked["dpm"])
    monkeypatch.setattr(module, "load_per_start", lambda folder: 1)
    monkeypatch.setattr(module, "load_split", lambda folder: (memorized["shadow"], drawn(7, 2000)))

    def sampled(self, job):
        for name in ("shards", "parts"):
            (job.folder / name).mkdir(exist_ok=True)
        return attacked["shadow"]

    monkeypatch.setattr(Verdict, "_sample_shadow", sampled)
    for name in ("dpm", "shadow", "extract"):
        (tmp_path / name).mkdir()
    return {name: tmp_path / name for name in ("dpm", "shadow", "extract")}


def run(inputs, folder, **changes):
    folder.mkdir(exist_ok=True)
    return Verdict(**(SETTINGS | changes)).run(Job(folder, inputs, RUNTIME))


def test_memorized_images_are_listed_and_no_others(inputs, tmp_path):
    summary = run(inputs, tmp_path / "verdict")
    assert summary == load(tmp_path / "verdict")
    assert summary["num_candidates"] == MEMORIZED + OTHERS
    assert summary["shadow"] == {"num_candidates": 40, "hits": MEMORIZED}
    assert summary["expected_hits"] == pytest.approx(MEMORIZED, abs=1)
    table = load_verdicts(tmp_path / "verdict")
    assert sorted(table["index"][:MEMORIZED]) == list(range(MEMORIZED))
    listed = table["listed_0.9"].sum()
    assert listed >= MEMORIZED
    assert 0.9 * listed <= MEMORIZED + 0.5
    assert (table["score"].diff().dropna() <= 0).all()
    assert (table["probability"].diff().dropna() <= 0).all()
    assert summary["uncorrected_hits"] == pytest.approx((1 / (1 + np.exp(-table["score"]))).sum())
    assert (table["size"][:MEMORIZED] == 2).all()
    assert table["p_value"].min() == pytest.approx(1 / (OTHERS + 1))
    gallery = np.load(tmp_path / "verdict" / "gallery.npy")
    np.testing.assert_array_equal(gallery, drawn(0, MEMORIZED)[table["index"][:5]])
    assert f"of {MEMORIZED + OTHERS} candidates" in Verdict.in_words(summary)


def test_the_denoising_errors_are_those_of_the_network(inputs, tmp_path):
    run(inputs, tmp_path / "verdict")
    table = load_verdicts(tmp_path / "verdict")
    # A memorized image is where the network leads: no distance, and no response to differences.
    for name in ("residual_10", "residual_40", "error_10", "mean_gain_10", "top_gain_10"):
        assert table[name][:MEMORIZED].max() < 1e-3 < 0.1 < table["residual_10"][MEMORIZED:].min()


def test_the_score_divergence_is_among_the_scores_where_it_has_probes(inputs, tmp_path):
    summary = run(inputs, tmp_path / "verdict", probes=4)
    table = load_verdicts(tmp_path / "verdict")
    for t in SETTINGS["levels"]:
        values = table[f"divergence_{t}"]
        # Toward a memorized image all scores point; its score is 1 + the mean cosine.
        assert values[:MEMORIZED].max() < 1e-3 < 0.5 < values[MEMORIZED:].min()
    assert summary["evaluations_per_candidate"] == 2 * (15 + 4) + 2
    assert Verdict(**SETTINGS).unused() == ("probes",)


def test_a_shadow_without_hits_gives_no_verdict(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "load_split", lambda folder: (drawn(8, 9), drawn(7, 2000)))
    with pytest.raises(NoMaterial, match="the shadow model's hits must be >= 10, got 0"):
        run(inputs, tmp_path / "verdict")


def test_a_killed_run_resumes_to_the_same_bytes(inputs, tmp_path, monkeypatch):
    run(inputs, tmp_path / "whole")
    whole, made = Verdict._scores, []

    def killed(self, job, name, *rest):
        if name == "dpm" and not made:
            made.append(name)
            raise KeyboardInterrupt
        return whole(self, job, name, *rest)

    monkeypatch.setattr(Verdict, "_scores", killed)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "killed")
    run(inputs, tmp_path / "killed")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": []}, r"verdict.levels must be increasing timesteps, one at least, got \[\]"),
        ({"levels": [60, 60]}, r"verdict.levels must be increasing timesteps"),
        ({"levels": [-1]}, r"verdict.levels must be increasing timesteps"),
        ({"draws": 0}, "verdict.draws must be >= 1, got 0"),
        ({"probes": -1}, "verdict.probes must be >= 0, got -1"),
        ({"num_images": 1}, "verdict.num_images must be >= 2, got 1"),
        ({"seed": -1}, "verdict.seed must be in"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Verdict(**(SETTINGS | changes))


ALONE = ["attacks=single", "extract.surrogate=none", "dpm=pretrained", "dpm.num_train_images=9"]


@pytest.mark.parametrize(("make", "rule"), [(dit, "5 classes"), (of_images, "4 classes")])
def test_a_class_conditional_model_is_refused_with_the_plan(tmp_path, make, rule):
    path = make(tmp_path / "model") if make is dit else make(tmp_path / "m", num_class_embeds=4)
    with pytest.raises(ValueError, match=f"dpm must be a model without classes, got '{rule}'"):
        plan(composed(*ALONE, "verdict=shadow", f"dpm.path={path}"))


def test_models_that_a_shadow_cannot_imitate_are_refused_before_anything_runs(tmp_path):
    overrides = [*ALONE, "verdict=shadow", f"dpm.path={latent(tmp_path / 'latent')}"]
    found = plan(composed(*overrides, "data.size=8", "data.channels=1"))
    with pytest.raises(ValueError, match="discrete timesteps, got 'a latent model'"):
        check_parts(found.needed("verdict").values(), found.runtime)


def test_a_shadow_is_planned_only_where_verdicts_are_wanted(tmp_path):
    path = latent(tmp_path / "latent")

    def stages(*overrides):
        found = plan(composed(*ALONE, f"dpm.path={path}", *overrides))
        return {node.stage.name for node in found.nodes.values()}

    assert not stages() & {"shadow", "verdict"}
    assert stages("verdict=shadow") >= {"shadow", "verdict"}


def test_the_smoke_experiment_gives_verdicts():
    found = planned("experiment=smoke", "attacks=judged", "verdict=shadow")
    names = {node.stage.name for node in found.nodes.values()}
    assert {"shadow", "verdict"} <= names
