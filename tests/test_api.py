"""The Python API: its examples, its errors, and the same numbers as the pipeline's stages."""

import doctest
import importlib.util
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from sklearn.datasets import load_digits
from tests.models.text.tiny import tiny_sdxl, tiny_stable_diffusion
from tests.tiny import SCHEDULE, UNET

import sidepipe
from sidepipe import api
from sidepipe.api import audited, auditing, comparing, control, loading, measuring, model, result
from sidepipe.base.settings import build
from sidepipe.engine.artifacts import write_manifest
from sidepipe.engine.shards import load_shards
from sidepipe.engine.stage import Job, Runtime
from sidepipe.features.encoders import SSCD, Pixels, PixelsL2
from sidepipe.memorization import excess_metric
from sidepipe.memorization.thresholds import MIN_UNSEEN
from sidepipe.stages.audit.stage import Audit as AuditStage
from sidepipe.stages.audit.stage import load as load_audit
from sidepipe.stages.audit.stage import load_scores
from sidepipe.stages.evaluate.stage import MIN_IMAGES
from sidepipe.stages.reference.stage import Reference

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SPEC = importlib.util.spec_from_file_location("api_page", ROOT / "docs" / "api.py")
api_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(api_page)


def random_images(count, seed=0, shape=(8, 8, 1)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape)).astype(np.uint8)


TRAIN, HELDOUT = random_images(40), random_images(200, seed=12)
# Ten copies of training images, and ten others.
GENERATED = np.concatenate([TRAIN[:10], random_images(10, seed=2)])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """What plain diffusers writes: a network with random weights, whose samples differ."""
    folder = tmp_path_factory.mktemp("checkpoint") / "ddpm"
    torch.manual_seed(0)
    scheduler = build({**SCHEDULE, "num_train_timesteps": 1000})
    unet = build({**UNET, "block_out_channels": [8, 8]})
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def artifact(checkpoint, tmp_path_factory):
    """A finished dpm artifact with its data, split in an order of its own."""
    outputs = tmp_path_factory.mktemp("outputs")
    for stage, inputs in (("data", {}), ("dpm", {"data": "a" * 12})):
        folder = outputs / stage / ("a" * 12)
        folder.mkdir(parents=True)
        if stage == "data":
            np.save(folder / "images.npy", np.concatenate([TRAIN, HELDOUT]))
        else:
            DDPMPipeline.from_pretrained(checkpoint).save_pretrained(folder / "model")
            np.save(folder / "subset.npy", np.arange(40)[::-1])
            np.save(folder / "heldout.npy", np.arange(40, 240)[::-1])
        write_manifest(folder, {"stage": stage, "key": folder.name, "inputs": inputs})
    return outputs / "dpm" / ("a" * 12)


@pytest.fixture(scope="session")
def loaded(checkpoint):
    return sidepipe.load(checkpoint, device="cpu")


# documents


@pytest.mark.parametrize(
    "module", [model, loading, result, comparing, auditing, audited, excess_metric]
)
def test_every_example_runs(module, checkpoint, artifact, tmp_path):
    names = {"checkpoint": str(checkpoint), "artifact": artifact, "folder": tmp_path}
    names |= {"generated": GENERATED, "train": TRAIN, "heldout": HELDOUT}
    tests = doctest.DocTestFinder().find(module, module.__name__, globs=names)
    results = [doctest.DocTestRunner().run(test) for test in tests if test.examples]
    assert sum(r.attempted for r in results) > 0
    assert sum(r.failed for r in results) == 0


def test_every_public_function_has_an_example():
    for name, of in api_page.PUBLIC.items():
        assert of.__doc__, name
        assert ">>>" in of.__doc__ or of in api_page.RETURNED, name
    known = {name.split(".")[1] for name in api_page.PUBLIC} - {"memorization"}
    assert set(sidepipe._PUBLIC) == known


def test_the_page_is_that_of_the_docstrings():
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.page(), "run: make api"


def test_importing_sidepipe_imports_nothing_heavy():
    code = "import sidepipe, sys; print({'torch', 'numpy', 'lightning'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert set(sidepipe._PUBLIC) <= set(dir(sidepipe))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = sidepipe.lod


@pytest.mark.parametrize("num_train_timesteps", [1000, 20])
def test_the_example_runs_on_a_model_and_folders(
    checkpoint, tmp_path, monkeypatch, capsys, num_train_timesteps
):
    pipeline = DDPMPipeline.from_pretrained(checkpoint)
    scheduler = pipeline.scheduler.from_config(
        pipeline.scheduler.config, num_train_timesteps=num_train_timesteps
    )
    DDPMPipeline(pipeline.unet, scheduler).save_pretrained(path := tmp_path / "model")
    for name, images in (("train", TRAIN), ("heldout", HELDOUT)):
        save_folder(tmp_path / name, images)
    sample_few(monkeypatch)
    monkeypatch.setattr(
        sys, "argv", ["", str(path), str(tmp_path / "train"), str(tmp_path / "heldout")]
    )
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "examples" / "refine_my_model.py"))
    assert "of 25 generated images hit a training image" in capsys.readouterr().out
    assert "<html" in (tmp_path / "report.html").read_text()


def sample_few(monkeypatch):
    """Has `sample` make an 80th of the images."""
    sample = model.Model.sample
    few = lambda self, count, **settings: sample(self, count // 80, **settings)  # noqa: E731
    monkeypatch.setattr(model.Model, "sample", few)


def test_the_lines_on_the_first_page_run_where_a_demo_has_run(
    artifact, tmp_path, monkeypatch, capsys
):
    (code,) = re.findall(r"```python\n(import sidepipe\n.*?)```", README.read_text(), re.DOTALL)
    sample_few(monkeypatch)
    (tmp_path / "outputs").symlink_to(artifact.parents[1])
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "of 25 generated images hit a training image" in capsys.readouterr().out
    assert "<html" in (tmp_path / "report.html").read_text()


# the same numbers as the stages


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory):
    """A checkpoint of plain diffusers, trained for seconds: it makes blurred digits."""
    folder = tmp_path_factory.mktemp("trained") / "ddpm"
    torch.manual_seed(0)
    scheduler = build({**SCHEDULE, "num_train_timesteps": 1000, "prediction_type": "sample"})
    unet = build({**UNET, "block_out_channels": [16, 16]})
    optimizer = torch.optim.Adam(unet.parameters(), lr=0.005)
    x_0 = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    for _ in range(150):
        some = x_0[torch.randint(len(x_0), (64,))]
        t, eps = torch.randint(1000, (64,)), torch.randn_like(some)
        loss = (unet(scheduler.add_noise(some, eps, t), t).sample - some).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    DDPMPipeline(unet, scheduler).save_pretrained(folder)
    return folder


@pytest.mark.e2e
def test_the_stages_give_the_same_images_and_numbers_on_a_checkpoint_of_diffusers(
    of_digits, tmp_path, monkeypatch
):
    # The stages keep a held-out image that repeats another one; `compare` leaves it out.
    monkeypatch.setattr(control, "repeats", lambda images, rows, limit: np.full(len(rows), -1))
    arguments = ["stage=evaluate", "dpm=pretrained", f"dpm.path={of_digits}"]
    arguments += ["dpm.num_train_images=64", "generate.num_images=120", "attacks=single"]
    arguments += ["generate.num_inference_steps=4", "extract=none", "extract.num_images=60"]
    arguments += ["extract/refine=fixed_point", "extract.refine.steps=3"]
    arguments += ["evaluate.false_positive_rates=[0.5]"]
    done = subprocess.run(
        [sys.executable, "-m", "sidepipe", *arguments, "runtime.accelerator=cpu"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (evaluated,) = (tmp_path / "outputs" / "evaluate").glob("*/results.json")
    expected = json.loads(evaluated.read_text())
    at = expected["calibrated"][0]
    (extracted,) = (tmp_path / "outputs" / "extract").glob("*/manifest.json")

    own = sidepipe.load(of_digits, device="cpu")
    refined = own.refine(own.sample(60, num_inference_steps=4), steps=3)
    np.testing.assert_array_equal(refined, load_shards(extracted.parent))
    train, heldout = sidepipe.load_split(tmp_path / "outputs" / "dpm")
    assert (len(train), len(heldout)) == (64, 1797 - 64)
    found = sidepipe.compare(refined, train=train, heldout=heldout, false_positive_rate=0.5)
    assert found.threshold == at["threshold"]
    assert 0 < found.hits == at["train"]["count"] < 60
    assert found.unique == at["train"]["unique"]
    assert found.heldout_hits == at["heldout"]["scaled"]
    assert found.excess.share == at["excess"]["share"]
    assert list(found.excess.interval) == at["excess"]["interval"]
    assert list(found.true_rate_interval) == at["true_rate_interval"]
    gallery = np.load(evaluated.parent / "gallery.npy")
    np.testing.assert_array_equal(np.stack([pair.images for pair in found.pairs]), gallery)


# models


def test_images_depend_on_seed_and_place_alone(loaded):
    images = loaded.sample(6, seed=1, num_inference_steps=3, precision="32-true")
    again = loaded.sample(3, seed=1, num_inference_steps=3, precision="32-true")
    assert np.abs(images[:3].astype(int) - again).max() <= 1
    assert not np.array_equal(images, loaded.sample(6, seed=2, num_inference_steps=3))
    assert images.dtype == np.uint8


def test_an_artifact_and_its_folder_load_like_the_checkpoint(loaded, artifact):
    expected = loaded.sample(3, num_inference_steps=3)
    for path in (artifact, artifact.parent, artifact / "model"):
        found = sidepipe.load(path, device="cpu").sample(3, num_inference_steps=3)
        np.testing.assert_array_equal(found, expected)
    train, heldout = sidepipe.load_split(artifact)
    np.testing.assert_array_equal(train, TRAIN[::-1])
    np.testing.assert_array_equal(heldout, HELDOUT[::-1])


def test_a_folder_of_several_artifacts_is_ambiguous(artifact, tmp_path):
    for name in ("one", "two"):
        write_manifest_of_dpm(tmp_path / "dpm" / name)
    with pytest.raises(ValueError, match=r"path must be a folder of one .* \['one', 'two'\]; name"):
        sidepipe.load(tmp_path / "dpm")


def write_manifest_of_dpm(folder):
    folder.mkdir(parents=True)
    write_manifest(folder, {"stage": "dpm", "key": folder.name, "inputs": {}})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.sample(0), "num_images must be >= 1, got 0"),
        (lambda m: m.sample(1, seed=-1), r"seed must be in \[0, 2\*\*32\), got -1"),
        (lambda m: m.sample(1, num_inference_steps=1001), r"num_inference_steps must be in \[1, 1"),
        (lambda m: m.sample(1, eta=2), r"eta must be in \[0, 1\], got 2"),
        (lambda m: m.sample(1, eta=1, sampler="dpm_solver_pp"), "eta must be 0 for dpm_solver_pp"),
        (
            lambda m: m.sample(1, sampler="dim"),
            "sampler does not accept 'dim'; did you mean 'ddim'",
        ),
        (lambda m: m.sample(1, precision="fp8"), "precision does not accept 'fp8'"),
        (lambda m: m.sample(1, timestep_spacing="x"), "timestep_spacing does not accept 'x'"),
        (lambda m: m.refine(TRAIN, t=1000), r"t must be in \[0, 1000\), the timesteps of the m"),
        (lambda m: m.refine(TRAIN, t=-1), r"t must be in \[0, 1000\)"),
        (lambda m: m.refine(TRAIN, steps=0), "steps must be >= 1, got 0"),
        (lambda m: m.sample(2.5), "num_images must be a whole number, got 2.5"),
        (lambda m: m.sample("5"), "num_images must be a whole number, got '5'"),
        (lambda m: m.sample(True), "num_images must be a whole number, got True"),
        (lambda m: m.sample(None), "num_images must be a whole number, got None"),
        (lambda m: m.sample(1, seed=0.5), "seed must be a whole number, got 0.5"),
        (
            lambda m: m.sample(1, num_inference_steps=5.0),
            "num_inference_steps must be a whole number, got 5.0",
        ),
        (lambda m: m.sample(1, eta="0"), "eta must be a number, got '0'"),
        (lambda m: m.sample(1, eta=float("nan")), r"eta must be in \[0, 1\], got nan"),
        (lambda m: m.sample(1, classes=5), "classes must be a list or None, got 5"),
        (lambda m: m.refine(TRAIN, t=6.5), "t must be a whole number, got 6.5"),
        (lambda m: m.refine(TRAIN, steps="8"), "steps must be a whole number, got '8'"),
        (lambda m: m.refine(TRAIN, noise="1"), "noise must be a number, got '1'"),
        (lambda m: m.refine(TRAIN, eta=2), r"eta must be in \[0, 1\], got 2"),
        (
            lambda m: m.refine(TRAIN, t=5, denoising_steps=6),
            r"denoising_steps must be in \[1, t = 5\], a timestep each, got 6",
        ),
        (lambda m: m.refine(TRAIN, relaxation=2), r"relaxation must be in \[1, 2\), and 1 with"),
        (
            lambda m: m.refine(TRAIN, noise=1, relaxation=1.5),
            r"and 1 with noise > 0 or denoising_steps > 1, got 1\.5",
        ),
        (lambda m: m.refine(TRAIN, seed=None), "seed must be a whole number, got None"),
        (
            lambda m: m.refine(TRAIN / 255),
            r"images must be uint8, got 'float64'; convert values in \[",
        ),
        (lambda m: m.refine(TRAIN[:0]), "images must be >= 1 images, got 0"),
        (lambda m: m.refine(TRAIN[0]), r"images must be of shape \(n, h, w, c\), got \(8, 8, 1\)"),
        (lambda m: m.refine(list(TRAIN)), r"images must be a uint8 array .* got 'list'; numpy"),
        (lambda m: m.refine(random_images(2, shape=(1, 8, 8))), "of 1 or 3 channels, the last ax"),
        (lambda m: m.refine(random_images(2, shape=(4, 4, 1))), r"of shape \(n, 8, 8, 1\), got"),
    ],
)
def test_wrong_arguments_of_a_model_are_named(loaded, call, message):
    with pytest.raises(ValueError, match=message):
        call(loaded)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"path": "no/such/folder"}, FileNotFoundError, "path names no/such/folder, which is not"),
        ({"path": "."}, FileNotFoundError, "path must name a folder written by save_pretrained"),
        ({"variant": "fp16"}, ValueError, r"variant must be one of \['default'\]"),
        ({"device": "gpu0"}, ValueError, "device does not accept 'gpu0'"),
        ({"batch_size": 0}, ValueError, "batch_size must be >= 1 or None, got 0"),
        ({"batch_size": "8"}, ValueError, "batch_size must be a whole number, got '8'"),
        ({"path": None}, ValueError, "path must be a path, as text or a pathlib.Path, got None"),
        ({"path": "outputs/dpm"}, FileNotFoundError, "path names outputs/dpm, .*make demo"),
        ({"path": "/nope"}, FileNotFoundError, "path names /nope, which is not a .*; remedy: name"),
    ],
)
def test_wrong_arguments_of_load_are_named(
    checkpoint, tmp_path, monkeypatch, arguments, error, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=f"^{message}"):
        sidepipe.load(**{"path": str(checkpoint), **arguments})


@pytest.mark.parametrize(("made", "name"), [(tiny_stable_diffusion, "text"), (tiny_sdxl, "SDXL")])
def test_a_model_with_text_is_sent_to_the_command(tmp_path, made, name):
    message = (
        f"path must be a model without text, which load takes, got the {name} model in {tmp_path}; "
        "remedy: run the command sidepipe dpm=stable_diffusion dpm.path=FOLDER"
    )
    made(tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sidepipe.load(tmp_path, device="cpu")


def test_a_model_that_the_hub_does_not_have_is_one_line(monkeypatch):
    def download(*_, **__):
        raise OSError("Cannot load model google/nothing-here:\nsee the stack trace above")

    monkeypatch.setattr("diffusers.DiffusionPipeline.download", download)
    with pytest.raises(
        FileNotFoundError, match=r"^path must be a folder or the id of a model on"
    ) as e:
        sidepipe.load("google/nothing-here", device="cpu")
    assert "\n" not in str(e.value)
    assert e.value.__suppress_context__


def test_images_need_no_decoding(loaded):
    with pytest.raises(ValueError, match="model must be one of table rows, got 'a model of images"):
        loaded.decode(np.zeros((1, *loaded.image_shape), np.uint8))


def test_a_split_needs_an_artifact(checkpoint):
    with pytest.raises(ValueError, match="path must be a path"):
        sidepipe.load_split(None)
    with pytest.raises(FileNotFoundError, match="path must be a finished artifact outputs/dpm"):
        sidepipe.load_split(checkpoint)


# comparisons


def test_planted_copies_are_hits_and_pairs():
    found = sidepipe.compare(GENERATED, train=TRAIN, heldout=HELDOUT)
    assert (found.num_images, found.hits, found.heldout_hits, found.unique) == (20, 10, 0, 10)
    assert found.excess.share == 0.5
    low, high = found.excess.interval
    assert 0.2 < low < 0.5 < high < 0.8
    np.testing.assert_array_equal(found.hit, [True] * 10 + [False] * 10)
    assert [(p.generated, p.train) for p in found.pairs[:10]] == [(i, i) for i in range(10)]
    for pair in found.pairs:
        expected = [GENERATED[pair.generated], TRAIN[pair.train], HELDOUT[pair.heldout]]
        np.testing.assert_array_equal(pair.images, expected)
    assert found.false_positive_rate == 1 / 200
    assert "too few for a false positive rate of 0.1 %; used: 0.5 %" in found.warnings[0]
    assert "10 of 20 generated images hit a training image (10 different ones)" in str(found)


def test_missing_weights_are_an_error_before_any_image_is_read():
    with pytest.raises(FileNotFoundError, match=r"^features: path must be a file, got no/weights"):
        sidepipe.compare("nowhere", train="x", heldout="y", features=SSCD("no/weights", None))


@pytest.mark.parametrize("features", ["pixels", Pixels()], ids=["name", "object"])
def test_features_are_a_name_or_an_encoder(features):
    found = sidepipe.compare(GENERATED, train=TRAIN, heldout=HELDOUT, features=features)
    assert (found.metric, found.hits) == ("cosine", 10)


def test_heldout_images_are_hit_as_well_by_a_model_that_copies_nothing():
    found = sidepipe.compare(HELDOUT[:20], train=TRAIN, heldout=HELDOUT[:60])
    assert found.hits <= 1
    assert found.heldout_hits == 20
    assert found.excess.interval[1] < 0
    assert "there are more held-out hits than hits" in found.warnings[-2]
    assert "are train and heldout swapped" in found.warnings[-2]


@pytest.mark.parametrize(("train", "heldout"), [(20, 0), (0, 20), (10, 8)])
def test_generated_images_that_are_real_ones_are_a_warning(train, heldout):
    copies = np.concatenate([TRAIN[:train], HELDOUT[:heldout]])
    others = random_images(20 - len(copies), seed=5)
    found = sidepipe.compare(np.concatenate([copies, others]), train=TRAIN, heldout=HELDOUT)
    expected = f"{train} of 20 generated images are exact copies of training images, and {heldout} "
    assert found.warnings[-1].startswith(expected)


@pytest.mark.parametrize(("train", "heldout"), [(17, 0), (10, 0), (0, 0)])
def test_fewer_exact_copies_are_a_finding_and_no_warning(train, heldout):
    copies = np.concatenate([TRAIN[:train], HELDOUT[:heldout]])
    near = np.clip(TRAIN[train : train + 3].astype(int) + 1, 0, 255).astype(np.uint8)
    others = random_images(17 - len(copies), seed=5)
    found = sidepipe.compare(np.concatenate([copies, near, others]), train=TRAIN, heldout=HELDOUT)
    assert not [text for text in found.warnings if "exact copies" in text or "swapped" in text]


def test_the_report_is_one_page_with_the_answer_the_numbers_and_the_pairs(tmp_path):
    found = sidepipe.compare(GENERATED, train=TRAIN, heldout=HELDOUT)
    path = found.report(tmp_path / "page.html", title="My <model>")
    page = path.read_text()
    assert "My &lt;model&gt;" in page
    assert "<b>10 of 40 training images are reproduced" in page
    assert "<em>generated images</em>" in page
    assert page.count('class="hit"') >= 10
    assert "false positive rate of 0.1 %" in page
    assert "http" not in page.replace("http-equiv", "")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(FileNotFoundError, match="path must be a file in an existing folder"):
        found.report(tmp_path / "nowhere" / "page.html")
    for write in (found.report, found.save):
        with pytest.raises(
            ValueError, match=r"must be a path, as text or a pathlib\.Path, got None"
        ):
            write(None)


@pytest.mark.parametrize(
    ("generated", "kind", "said"),
    [
        (np.repeat(TRAIN[:1] ^ 1, 30, axis=0), "alike", "gives the same image 30 of 30 times"),
        (
            np.full((30, 8, 8, 1), 128, np.uint8),
            "constant",
            "gives an image of a single color 30 of 30 times",
        ),
    ],
    ids=["same", "constant"],
)
def test_a_collapsed_model_is_no_finding_in_any_form(generated, kind, said, tmp_path):
    found = sidepipe.compare(generated, train=TRAIN, heldout=HELDOUT)
    assert found.hits == 30
    assert any(f"{said}: no finding" in text for text in found.warnings)
    assert found.excess is None
    assert str(found).splitlines()[1] == "excess of hits over held-out hits: collapsed"
    row = found.table().splitlines()[3]
    assert row.split() == ["excess", "of", "hits", "over", "held-out", "hits", "collapsed"]
    assert "No finding" in found.save(tmp_path / "found").joinpath("report.html").read_text()
    saved = json.loads((tmp_path / "found" / "result.json").read_text())
    assert saved["excess"] is None
    assert saved["counts"]["collapse"]["kind"] == kind


@pytest.mark.parametrize("number", [1, 150, 200])
def test_exact_copies_of_one_image_are_the_first_line(number, tmp_path):
    others = random_images(200 - number, seed=5)
    generated = np.concatenate([np.repeat(TRAIN[:1], number, axis=0), others])
    found = sidepipe.compare(generated, train=TRAIN, heldout=HELDOUT)
    finding = f"1 training image is reproduced exactly ({number} of 200 generated images)."
    assert str(found).splitlines()[0] == finding
    assert finding in found.report(tmp_path / "report.html").read_text()
    assert not any("no finding" in text for text in found.warnings)
    assert any("are the generated images real ones?" in t for t in found.warnings) == (number > 180)


def test_exact_copies_do_not_count_where_they_are_blank_or_heldout_images_too():
    blank = np.full((1, 8, 8, 1), 128, np.uint8)
    train = np.concatenate([TRAIN, blank, HELDOUT[:1]])
    others = random_images(100, seed=5)
    for copied in (blank, HELDOUT[:1]):
        found = sidepipe.compare(
            np.concatenate([copied, others]), train=train, heldout=HELDOUT, on_duplicates="keep"
        )
        assert "exactly" not in str(found).splitlines()[0]


@pytest.mark.parametrize(
    ("number", "finding"),
    [
        (20, "Too few images for a conclusion: 0 of 20 generated images match a training image."),
        (300, "No copy of a training image was found among 300 images."),
    ],
)
def test_no_hit_is_no_absence(number, finding):
    # Black and white pixels are further from real images than these are from each other.
    others = np.where(random_images(number, seed=7) > 127, 255, 0).astype(np.uint8)
    found = sidepipe.compare(others, train=TRAIN, heldout=HELDOUT, features="pixels_l2")
    assert (found.hits, found.heldout_hits) == (0, 0)
    assert str(found).splitlines()[0] == finding


@pytest.mark.parametrize("features", ["pixels_l2", "pixels"])
def test_heldout_images_of_another_kind_are_a_warning_and_make_no_collapse(features):
    digits = load_digits().images[:, :, :, None]
    images = np.random.default_rng(0).permutation((digits * 15.9).astype(np.uint8))
    train, real, generated = images[:400], images[400:800], images[800:900]
    sets = {"train": train, "features": features, "on_duplicates": "drop"}
    noise = sidepipe.compare(generated, heldout=random_images(200), **sets)
    assert noise.hits == 100  # none of them is a copy
    assert any("times as far from training images as" in text for text in noise.warnings)
    assert not any("no finding" in text for text in noise.warnings)
    fine = sidepipe.compare(generated, heldout=real, **sets)
    assert not any("times as far" in text for text in fine.warnings)
    again = sidepipe.compare(np.repeat(real[:1], 100, axis=0), heldout=random_images(200), **sets)
    assert any("the same image 100 of 100 times" in text for text in again.warnings)


def test_a_sound_model_has_an_excess_in_every_form():
    found = sidepipe.compare(GENERATED, train=TRAIN, heldout=HELDOUT)
    assert str(found).splitlines()[1].startswith("excess of hits over held-out hits: 50.00 % (95 ")
    assert found.table().splitlines()[3].startswith("excess of hits over held-out hits        +10")


def test_duplicates_across_the_split_are_an_error_unless_dropped_or_kept():
    heldout = np.concatenate([HELDOUT, TRAIN[3:5]])
    message = r"2 of 202 held-out images duplicate .*\(2 exactly\): heldout\[200\] = train\[3\]"
    with pytest.raises(ValueError, match=message):
        sidepipe.compare(GENERATED, train=TRAIN, heldout=heldout)
    dropped = sidepipe.compare(GENERATED, train=TRAIN, heldout=heldout, on_duplicates="drop")
    assert dropped.hits == sidepipe.compare(GENERATED, train=TRAIN, heldout=HELDOUT).hits
    assert "they are left out" in dropped.warnings[0]
    # Two copies of 202 set the threshold: no image could be a hit, which is an error, not a zero.
    with pytest.raises(ValueError, match=r"no image could be a hit .*on_duplicates='drop'"):
        sidepipe.compare(GENERATED, train=TRAIN, heldout=heldout, on_duplicates="keep")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"generated": GENERATED[:19]},
            "generated must be >= 20 images, got 19; pass more images",
        ),
        ({"heldout": HELDOUT[:19]}, "heldout must be >= 20 images, got 19"),
        ({"train": TRAIN[:1]}, "train must be >= 2 images, got 1"),
        ({"train": TRAIN[:0]}, "train must be >= 1 images, got 0"),
        (
            {"generated": GENERATED / 255},
            "generated must be uint8, got 'float64'; convert values in",
        ),
        ({"heldout": HELDOUT.astype(int)}, "heldout must be uint8, got 'int64'; convert it"),
        ({"train": random_images(40, shape=(9, 9, 1))}, "train must be 8 x 8 pixels, as generated"),
        (
            {"train": random_images(40, shape=(8, 8, 3))},
            "train must be of 1 channel, as generated",
        ),
        ({"train": [1]}, r"train must be a uint8 array \(n, h, w, c\), got 'list'"),
        ({"features": "sscd"}, r"features must be one of \['pixels', 'pixels_l2'\], got 'sscd'"),
        ({"false_positive_rate": 1}, r"false_positive_rate must be in \(0, 1\), got 1"),
        ({"on_duplicates": "ignore"}, "on_duplicates does not accept 'ignore'"),
        ({"device": "tpu"}, "device does not accept 'tpu'"),
        ({"size": 0}, "size must be >= 1 or None, got 0"),
        ({"size": "8"}, "size must be a whole number, got '8'"),
        ({"size": True}, "size must be a whole number, got True"),
        ({"channels": True}, "channels must be a whole number, got True"),
        ({"features": 3}, "features must be one of .* or an encoder, got 3"),
        ({"features": None}, "features must be one of .* or an encoder, got None"),
        ({"features": Pixels}, "features must be one of .* or an encoder, got .*; pass an object"),
        ({"false_positive_rate": "0.1"}, "false_positive_rate must be a number, got '0.1'"),
        ({"false_positive_rate": None}, "false_positive_rate must be a number, got None"),
        ({"heldout": None}, "heldout must be images of the same kind .* no count can be trusted"),
        ({"groups": 3}, "groups must be a CSV file or .*, got 'int'"),
        ({"groups": ["a"]}, "groups must be a CSV file or .*, got 'list'"),
        ({"groups": {"train": 3, "heldout": 4}}, r"groups\['train'\] must be a list .*, got 3"),
    ],
)
def test_wrong_arguments_of_compare_are_named(changes, message):
    arguments = {"generated": GENERATED, "train": TRAIN, "heldout": HELDOUT, **changes}
    with pytest.raises(ValueError, match=f"^{message}"):
        sidepipe.compare(arguments.pop("generated"), **arguments)


# folders


def save_folder(folder, images, suffix="png"):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(
            folder / f"{i:04d}.{suffix}"
        )


def test_folders_give_what_their_arrays_give(tmp_path):
    expected = sidepipe.compare(GENERATED, train=TRAIN, heldout=HELDOUT)
    for name, images in (("a", GENERATED), ("b", TRAIN), ("c", HELDOUT)):
        save_folder(tmp_path / name, images)
    found = sidepipe.compare(tmp_path / "a", train=str(tmp_path / "b"), heldout=tmp_path / "c")
    assert found._counts == expected._counts
    mixed = sidepipe.compare(GENERATED, train=tmp_path / "b", heldout=HELDOUT)
    assert mixed._counts == expected._counts


def test_images_of_other_sizes_need_a_named_size(tmp_path):
    large = TRAIN.repeat(2, axis=1).repeat(2, axis=2)
    save_folder(tmp_path / "large", large)
    with pytest.raises(
        ValueError, match=r"train must be 8 x 8 pixels, as generated, got .*size=64"
    ):
        sidepipe.compare(GENERATED, train=tmp_path / "large", heldout=HELDOUT)
    for train in (tmp_path / "large", large):
        found = sidepipe.compare(GENERATED, train=train, heldout=HELDOUT, size=8)
        assert found.hits == 10
    Image.fromarray(TRAIN[0, :, :5, 0]).save(tmp_path / "large" / "narrow.png")
    with pytest.raises(
        ValueError, match=r"train must be images of one size, got '16 x 16 \(40\), 8 x 5"
    ):
        sidepipe.compare(GENERATED, train=tmp_path / "large", heldout=HELDOUT)


def test_without_held_out_images_the_error_states_their_purpose():
    with pytest.raises(
        ValueError, match=r"^heldout must be .* set the threshold of a hit; .* heldout=\.\.\."
    ):
        sidepipe.compare(GENERATED, train=TRAIN)


@pytest.mark.parametrize(
    ("name", "folders", "fitting"),
    [
        ("train", ["Test", "Training set"], "Training set"),
        ("heldout", ["train", "val", "held-out"], "held-out"),
        ("heldout", ["real/train", "real/valid"], "real/valid"),
    ],
)
def test_of_several_partitions_the_one_that_fits_the_argument_is_proposed(
    tmp_path, name, folders, fitting
):
    for folder in folders:
        save_folder(tmp_path / folder, TRAIN[:2])
    arguments = {"train": TRAIN, "heldout": HELDOUT, name: tmp_path}
    with pytest.raises(ValueError, match=f"{name}={str(tmp_path / fitting)!r}$"):
        sidepipe.compare(GENERATED, **arguments)


@pytest.mark.parametrize(
    ("name", "folders"),
    [("train", ["cats/train", "cats/test", "dogs/train"]), ("train", ["val", "test"])],
)
def test_without_a_folder_that_fits_none_is_proposed(tmp_path, name, folders):
    for folder in folders:
        save_folder(tmp_path / folder, TRAIN[:2])
    with pytest.raises(ValueError, match=f"name a folder that holds the images of {name} alone$"):
        sidepipe.compare(GENERATED, train=tmp_path, heldout=HELDOUT)


def test_a_folder_of_both_partitions_or_none_is_refused(tmp_path):
    for name in ("train", "test"):
        save_folder(tmp_path / "both" / name, TRAIN)
    with pytest.raises(
        ValueError, match=r"train must be a folder of one partition, got \['test', 't"
    ):
        sidepipe.compare(GENERATED, train=tmp_path / "both", heldout=HELDOUT)
    with pytest.raises(
        FileNotFoundError, match=r"heldout must be a folder of images, .* which is no f"
    ):
        sidepipe.compare(GENERATED, train=TRAIN, heldout=tmp_path / "nowhere")


def test_a_broken_file_is_named(tmp_path):
    save_folder(tmp_path / "train", TRAIN)
    (tmp_path / "train" / "0003.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(ValueError, match=r"0003\.png cannot be read"):
        sidepipe.compare(GENERATED, train=tmp_path / "train", heldout=HELDOUT)


def test_the_default_encoder_is_that_of_the_pipeline():
    assert api.compare.__kwdefaults__["features"] == "pixels_l2"
    assert measuring.ENCODERS.keys() == set(comparing.WITHOUT_SETTINGS)
    assert measuring.ENCODERS["pixels_l2"] is PixelsL2


def test_the_smallest_numbers_of_images_are_those_of_the_pipeline():
    assert comparing.LEAST == {"generated": MIN_IMAGES, "train": 2, "heldout": MIN_UNSEEN}


def test_duplicates_are_named_by_argument_and_file(tmp_path):
    for name, images in (("a", TRAIN), ("b", np.concatenate([HELDOUT, TRAIN[3:4]]))):
        save_folder(tmp_path / name, images)
    with pytest.raises(ValueError, match=r"\(1 exactly\): heldout/0200\.png = train/0003\.png;"):
        sidepipe.compare(GENERATED, train=tmp_path / "a", heldout=tmp_path / "b")


def test_a_broken_file_is_left_out_with_a_warning_on_request(tmp_path):
    save_folder(tmp_path / "train", TRAIN)
    (tmp_path / "train" / "9999.png").write_bytes(b"")
    (tmp_path / "train" / "notes.mp4").write_bytes(b"x")
    found = sidepipe.compare(
        GENERATED, train=tmp_path / "train", heldout=HELDOUT, on_bad_file="skip"
    )
    assert found.hits == 10
    assert "train: 1 file is not read: 1 .mp4" in found.warnings
    said = "train: left out because it cannot be read, 1 image: 9999.png"
    assert said in found.warnings


def test_a_resize_is_named_and_stated(tmp_path):
    wide = random_images(40, seed=3, shape=(8, 16, 1))
    save_folder(tmp_path / "wide", wide)
    whole = [Image.fromarray(x[:, :, 0]).resize((8, 8), Image.Resampling.LANCZOS) for x in wide]
    expected = {"crop": wide[:, :, 4:12], "stretch": np.stack(whole)[..., None]}
    words = {"crop": "from the central square", "stretch": "without keeping the aspect ratio"}
    for resize, images in expected.items():
        found = sidepipe.compare(
            images[:20], train=tmp_path / "wide", heldout=HELDOUT, size=8, resize=resize
        )
        assert found.hits == 20
        assert {pair.train_gamma for pair in found.pairs if pair.train < 20} == {0}
        assert found.warnings[0].startswith("train: 40 of 40 images are")
        assert words[resize] in found.warnings[0]


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_square_images_are_resized_and_not_cropped(tmp_path, resize):
    save_folder(tmp_path / "train", TRAIN)
    large = Image.fromarray(TRAIN[0, :, :, 0]).resize((16, 16), Image.Resampling.NEAREST)
    large.save(tmp_path / "train" / "0000.png")
    found = sidepipe.compare(
        GENERATED, train=tmp_path / "train", heldout=HELDOUT, size=8, resize=resize
    )
    assert found.warnings[0] == "train: 1 of 40 images is resized to 8 x 8 pixels"


def test_one_of_a_kind_is_named_in_the_singular(tmp_path):
    save_folder(tmp_path / "train", TRAIN)
    frames = [Image.fromarray(image[:, :, 0]) for image in random_images(2, seed=9)]
    frames[0].save(tmp_path / "train" / "a.tif", save_all=True, append_images=frames[1:])
    far = np.zeros((18, 8, 8, 1), np.uint8)
    generated = np.concatenate([TRAIN[:1], HELDOUT[:1], far])
    found = sidepipe.compare(generated, train=tmp_path / "train", heldout=HELDOUT[:41])
    assert "train: of 1 file with several images, only the first one is read" in found.warnings
    assert "(1 different one); 1 held-out hit\n" in str(found)


def test_images_of_one_size_stay_whole_if_they_are_no_squares(tmp_path):
    wide = TRAIN.repeat(2, axis=2)
    save_folder(tmp_path / "wide", wide)
    others = HELDOUT.repeat(2, axis=2)
    found = sidepipe.compare(wide[:20], train=tmp_path / "wide", heldout=others)
    assert found.hits == found.unique == 20
    assert found.pairs[0].images.shape == (3, 8, 16, 1)
    assert found.pairs[0].train_gamma == 0


def test_gray_and_color_agree_by_a_named_number_of_channels(tmp_path):
    color = TRAIN.repeat(3, axis=3)
    save_folder(tmp_path / "color", color)
    with pytest.raises(ValueError, match="of 1 channel, as generated, got 3; channels=1 conv"):
        sidepipe.compare(GENERATED, train=color, heldout=HELDOUT)
    for train in (color, tmp_path / "color"):
        for channels in (1, 3):
            found = sidepipe.compare(GENERATED, train=train, heldout=HELDOUT, channels=channels)
            assert found.hits == 10
            assert found.pairs[0].images.shape == (3, 8, 8, channels)


def test_sixteen_bit_gray_is_gray(tmp_path):
    for suffix in ("pgm", "png", "tif"):
        wide = TRAIN[..., 0].astype(np.uint16) * 257
        folder = tmp_path / suffix
        folder.mkdir()
        for i, image in enumerate(wide):
            if suffix == "pgm":
                header = b"P5 8 8 65535\n"
                (folder / f"{i:02d}.pgm").write_bytes(header + image.astype(">u2").tobytes())
            else:
                Image.fromarray(image).save(folder / f"{i:02d}.{suffix}")
        found = sidepipe.compare(GENERATED, train=folder, heldout=HELDOUT)
        assert found.hits == 10
        assert found.pairs[0].train_gamma == 0


def test_images_on_their_side_by_exif_have_one_size_with_upright_ones(tmp_path):
    wide = TRAIN.repeat(2, axis=2)
    save_folder(tmp_path / "wide", wide)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it
    on_its_side = Image.fromarray(np.rot90(wide[0, :, :, 0]))
    on_its_side.save(tmp_path / "wide" / "0000.png", exif=exif)
    found = sidepipe.compare(wide[:20], train=tmp_path / "wide", heldout=HELDOUT.repeat(2, axis=2))
    assert found.hits == found.unique == 20


# audit


def test_an_audit_is_that_of_the_stage(checkpoint, artifact, tmp_path):
    """The stage on the artifact, whose split has the best control first, and the function."""
    settings = {"draws": 2, "levels": [60, 300], "num_images": None, "gallery_images": 3, "seed": 4}
    settings |= {"probes": 3, "sampled": 20, "budget": 200, "invmm_images": 0}
    inputs = {"data": artifact.parents[1] / "data" / artifact.name, "dpm": artifact}
    l2 = {"_target_": "sidepipe.features.encoders.PixelsL2"}
    ids = "".join(f"{i},{i:04d},train,\n" for i in range(240))
    (inputs["data"] / "ids.csv").write_text(f"index,id,partition,identity\n{ids}")
    both = {"features": l2, "false_positive_rates": [0.02]}
    for name, stage in (
        ("reference", Reference(**both)),
        (
            "audit",
            AuditStage(
                refine_t=60,
                contrast_t=300,
                refine_steps=2,
                groups=None,
                precision="32-true",
                **both,
                **settings,
            ),
        ),
    ):
        inputs[name] = tmp_path / name
        inputs[name].mkdir()
        stage.run(Job(inputs[name], inputs, Runtime(accelerator="cpu")))
    scores = load_scores(inputs["audit"])
    train, heldout = sidepipe.load_split(artifact)
    found = sidepipe.audit(
        sidepipe.load(checkpoint, device="cpu"),
        train=train,
        heldout=heldout,
        steps=2,
        draws=2,
        levels=[60, 300],
        false_positive_rate=0.02,
        seed=4,
        precision="32-true",
        probes=3,
        sampled=20,
        budget=200,
    )
    results = load_audit(inputs["audit"])
    for name, value in results["extraction"].items():
        assert found.extraction[name] == pytest.approx(value, rel=1e-3)
    assert found.inference == results["inference"]
    assert f"p-value that the set was trained on: {results['inference']['p_value']:.2g}" in str(
        found
    )
    same = [name for name in scores if name not in ("index", "id")]
    for name in same:
        assert found.scores[name].tolist() == pytest.approx(
            scores[name].tolist(), abs=1e-5, nan_ok=True
        ) or (found.scores[name].tolist() == scores[name].tolist())
    assert found.scores["index"].tolist() == [*range(40), *range(40)]
    assert sorted(found.flagged.tolist()) == np.flatnonzero(scores["flagged"][:40]).tolist()
    assert "the model returns to " in str(found)
    assert not [text for text in found.warnings if "swapped" in text]
    written = found.save(tmp_path / "scores.csv").read_text().splitlines()
    assert len(written) == 81


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t": 1000}, r"t must be in \[0, 1000\), the timesteps of the model, got 1000"),
        ({"t": 6.5}, "t must be a whole number, got 6.5"),
        ({"steps": "8"}, "steps must be a whole number, got '8'"),
        ({"draws": True}, "draws must be a whole number, got True"),
        ({"levels": 60}, "levels must be a list of timesteps, got 60"),
        ({"levels": [60.5]}, "levels must be a whole number, got 60.5"),
        ({"seed": None}, "seed must be a whole number, got None"),
        ({"features": 3}, "features must be one of .* or an encoder, got 3"),
        ({"false_positive_rate": "0.1"}, "false_positive_rate must be a number, got '0.1'"),
        ({"heldout": None}, "heldout must be images of the same kind"),
        ({"model": "outputs/dpm"}, "model must be a Model of sidepipe.load, got 'str'"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"draws": 0}, "draws must be >= 1, got 0"),
        ({"probes": 0}, "probes must be >= 1, got 0"),
        ({"sampled": -1}, "sampled must be >= 0, got -1"),
        ({"budget": 0}, "budget must be >= 1, got 0"),
        ({"levels": [60, 30]}, "levels must be ascending timesteps"),
        ({"levels": [60, 1000]}, r"levels must be in \[0, 1000\)"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*32\), got -1"),
        ({"precision": "bf16-true"}, "precision does not accept"),
        ({"features": "sscd"}, "features must be one of"),
        ({"false_positive_rate": 0}, r"false_positive_rate must be in \(0, 1\)"),
        ({"train": TRAIN[:1]}, "train must be >= 2 images, got 1"),
        ({"heldout": HELDOUT[:19]}, "heldout must be >= 20 images, got 19"),
        ({"heldout": TRAIN}, "heldout must hold no duplicates of train"),
        (
            {
                "train": random_images(40, shape=(4, 4, 1)),
                "heldout": random_images(40, 5, (4, 4, 1)),
            },
            r"train must be of shape \(n, 8, 8, 1\), got \(40, 4, 4, 1\); audit images",
        ),
    ],
)
def test_wrong_arguments_of_audit_are_named(loaded, changes, message):
    with pytest.raises(ValueError, match=message):
        sidepipe.audit(**{"model": loaded, "train": TRAIN, "heldout": HELDOUT} | changes)


def test_an_audit_with_train_and_heldout_swapped_is_a_warning(loaded, monkeypatch):
    returned = auditing.tables.counts
    below = {"excess": {"share": -0.5, "interval": [-0.6, -0.4]}}
    monkeypatch.setattr(auditing.tables, "counts", lambda table: {**returned(table), **below})
    found = sidepipe.audit(loaded, train=TRAIN, heldout=HELDOUT, steps=1, levels=(), sampled=0)
    assert found.extraction is None
    assert "are train and heldout swapped" in found.warnings[-1]


def test_an_audit_is_saved_into_an_existing_folder(loaded, tmp_path):
    found = sidepipe.audit(loaded, train=TRAIN, heldout=HELDOUT, steps=1, levels=(), sampled=0)
    with pytest.raises(FileNotFoundError, match="path must be a file in an existing folder"):
        found.save(tmp_path / "nowhere" / "audit.csv")
