"""Copies between train/ and heldout/, from the folders of a user to the report."""

import json
import shutil

import numpy as np
import pytest
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from sklearn.datasets import load_digits
from tests.composing import composed
from tests.tiny import UNET

from sidepipe.base.files import write_json
from sidepipe.base.settings import build
from sidepipe.engine import pipeline, training
from sidepipe.engine.artifacts import write_manifest
from sidepipe.engine.graph import Plan
from sidepipe.engine.plan import plan
from sidepipe.engine.shards import write_shard
from sidepipe.stages.report.stage import load_table, page_path

COST = {"unet_forwards": 600, "surrogate_gradients": 0, "gradient_cost": 0.0}
COST |= {"network_evaluations": 600}
COPIED = np.arange(60) % 20  # which training image each generated image copies


def digits():
    return np.rint(load_digits().images * (255 / 16)).astype(np.uint8)


def noisy(images, noise, seed=0):
    added = np.random.default_rng(seed).normal(0, 255 * noise, images.shape)
    return (images + added).round().clip(0, 255).astype(np.uint8)


def write_images(folder, images):
    if len(images):
        folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{folder.name}{i:04d}.png")


@pytest.fixture
def of_user(tmp_path):
    """A function that writes a user's folders, and plans an attack whose images are given."""
    DDPMPipeline(build(UNET), DDPMScheduler(20)).save_pretrained(tmp_path / "checkpoint")

    def planned(train, heldout, generated, *overrides) -> Plan:
        write_images(tmp_path / "images" / "train", train)
        write_images(tmp_path / "images" / "heldout", heldout)
        the_plan = plan(
            composed(
                *("data=imagefolder", f"data.source.folder={tmp_path}/images", "data.size=8"),
                *("data.channels=1", "dpm=pretrained", f"dpm.path={tmp_path}/checkpoint"),
                *("dpm.train_partitions=[train]", "attacks=single", "extract=none"),
                *(f"extract.num_images={len(generated)}", f"runtime.outputs={tmp_path}/outputs"),
                *("runtime.accelerator=cpu", *overrides),
            )
        )
        for name, images in (("generate", digits()[-50:]), ("extract", generated)):
            node = next(n for n in the_plan.nodes.values() if n.stage.name == name)
            _write_samples(node, node.folder(the_plan.runtime), images[..., None])
        return the_plan

    return planned


def _write_samples(node, folder, images):
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder, 0, images)
    np.save(folder / "targets.npy", np.zeros(len(images), np.int64))
    about = {
        "stage": node.stage.name,
        "version": node.stage.version,
        "key": node.key,
        "settings": node.settings,
        "inputs": {name: read.key for name, read in node.inputs.items()},
    }
    write_json(folder / "settings.json", about)
    summary = {**COST, "num_images": len(images), "num_targets": 0}
    write_manifest(folder, {**about, "summary": summary, "seconds": 1.0, "device": "cpu"})


def hits(the_plan):
    [evaluate] = pipeline.run(the_plan, "evaluate")
    folder = evaluate.folder(the_plan.runtime)
    found = json.loads((folder / "results.json").read_text())
    return found["calibrated"][0]["train"]["count"]


def made(the_plan):
    """The stages that have a finished artifact, but for those that were given."""
    nodes = the_plan.nodes.values()
    done = {n.stage.name for n in nodes if (n.folder(the_plan.runtime) / "manifest.json").exists()}
    return done - {"generate", "extract"}


TRAIN, OTHERS = digits()[:60], digits()[60:460]


def test_two_copies_in_heldout_are_an_error_and_dropped_all_sixty_copies_are_hits(of_user):
    heldout = np.concatenate([OTHERS, TRAIN[:2]])
    wanted = (TRAIN, heldout, TRAIN[COPIED])
    the_plan = of_user(*wanted)
    message = (
        r"2 of 402 held-out images duplicate training images \(2 exactly\): heldout/heldout0400.png"
        r" = train/train0000.png \(equal\), heldout/heldout0401.png = train/train0001.png"
    )
    with pytest.raises(ValueError, match=message):
        pipeline.run(the_plan, "all")
    assert made(the_plan) == {"data"}
    assert hits(of_user(*wanted, "data.on_duplicates=drop")) == 60


def test_kept_exact_copies_that_hide_every_hit_are_an_error_before_the_model_is_read(of_user):
    heldout = np.concatenate([OTHERS, TRAIN[:2]])
    the_plan = of_user(TRAIN, heldout, TRAIN[COPIED], "data.on_duplicates=keep")
    message = (
        r"no image could be a hit at a false positive rate of 0.249 %: 2 of 402 held-out images "
        r"are exact copies of training images \(heldout/heldout040(0.png = train/train0000|"
        r"1.png = train/train0001).png, .*on_duplicates=drop"
    )
    with pytest.raises(ValueError, match=message):
        pipeline.run(the_plan, "all")
    assert made(the_plan) == {"data"}


def test_one_kept_exact_copy_hides_nothing(of_user):
    heldout = np.concatenate([OTHERS, TRAIN[:1]])
    assert hits(of_user(TRAIN, heldout, TRAIN[COPIED], "data.on_duplicates=keep")) == 60


def test_dropped_images_do_not_count_in_the_checks_before_the_model_is_read(of_user):
    # Half of 130 held-out images are enough for a descriptor, half of the 126 that remain are not.
    overrides = ("evaluate=copydet", "descriptor.fraction=0.5", "data.on_duplicates=drop")
    heldout = np.concatenate([OTHERS[:126], TRAIN[:4]])
    the_plan = of_user(TRAIN, heldout, TRAIN[COPIED], *overrides)
    with pytest.raises(ValueError, match=r"descriptor.fraction must be enough for 64 of the 126"):
        pipeline.run(the_plan, "all")
    assert made(the_plan) == {"data"}


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize(
    ("on_duplicates", "message"),
    [
        ("error", r"60 of 60 held-out images duplicate training images"),
        ("drop", r"data.on_duplicates=drop leaves of 60 must be >= 20, got 0"),
    ],
)
def test_heldout_as_a_copy_of_train_is_an_error(of_user, on_duplicates, message, noise):
    heldout = noisy(TRAIN, noise)
    setting = f"data.on_duplicates={on_duplicates}"
    with pytest.raises(ValueError, match=message):
        pipeline.run(of_user(TRAIN, heldout, TRAIN[COPIED], setting), "all")


def test_three_noisy_copies_hide_every_hit_unless_they_are_dropped_and_kept_the_report_warns(
    of_user,
):
    wanted = (
        TRAIN,
        np.concatenate([OTHERS, noisy(TRAIN[:3], 0.01)]),
        noisy(TRAIN[COPIED], 0.02, 1),
    )
    with pytest.raises(ValueError, match=r"3 of 403 held-out images .* \(0 exactly\): .*RMS 0.00"):
        pipeline.run(of_user(*wanted), "all")
    assert hits(of_user(*wanted, "data.on_duplicates=drop")) == 60
    kept = of_user(*wanted, "data.on_duplicates=keep")
    assert hits(kept) == 0
    [report] = pipeline.run(kept, "all")
    folder = report.folder(kept.runtime)
    warning = "warning: 3 of 403 held-out images duplicate training images and were kept"
    assert load_table(folder).startswith(warning)
    page = page_path(folder).read_text()
    assert 0 < page.index("3 of 403 held-out images duplicate training images") < page.index("<h2")
    # The same artifacts, by a command that does not keep them.
    refused = of_user(*wanted)
    with pytest.raises(ValueError, match=r"3 of 403 held-out images duplicate training images"):
        pipeline.run(refused, "all")
    # A sweep and its jobs make one artifact that is not finished, and no other.
    shutil.rmtree(folder)
    [report] = refused.goals("report")
    with pytest.raises(ValueError, match=r"3 of 403 held-out images duplicate training images"):
        pipeline.make(report, refused)
    assert not folder.exists()


def test_a_small_set_gets_a_larger_rate_and_the_report_opens_with_it(of_user):
    the_plan = of_user(TRAIN, OTHERS[:100], TRAIN[COPIED])
    [report] = pipeline.run(the_plan, "all")
    text = load_table(report.folder(the_plan.runtime))
    first, second = text.split("\n\n")[0].split("warning: ")[1:]
    assert first.startswith("attack: 60 of 60 generated images are exact copies of training images")
    assert second.startswith("100 held-out images are too few for a false positive rate of 0.1 %")
    assert hits(the_plan) == 60


def test_too_few_held_out_images_are_an_error_before_the_model_is_read(of_user):
    the_plan = of_user(TRAIN, OTHERS[:19], TRAIN[COPIED])
    with pytest.raises(ValueError, match=r"that nothing was trained on must be >= 20, .* got 19"):
        pipeline.run(the_plan, "all")
    assert made(the_plan) == {"data"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dpm.train_partitions=[training]", r"names 'training', but the data's partitions are"),
        ("dpm.num_train_images=61", r"dpm.num_train_images must be in \[1, 60\]"),
        ("evaluate=copydet", r"descriptor.fraction must be enough for 64 of the 100 images"),
        (
            "dpm.train_partitions=[train,test]",
            r"evaluate needs held-out images, and the model is trained on all of data.*the data's "
            r"partitions are test \(100\), train \(60\), in the folders heldout/ \(100\), "
            r"train/ \(60\)",
        ),
    ],
)
def test_what_does_not_fit_the_data_is_an_error_before_the_model_is_read(
    of_user, override, message
):
    the_plan = of_user(TRAIN, OTHERS[:100], TRAIN[COPIED], override)
    with pytest.raises(ValueError, match=message):
        pipeline.run(the_plan, "all")
    assert made(the_plan) == {"data"}


def trained(tmp_path, num_images, *overrides):
    """The plan of the README's command for a folder with a train/ folder alone."""
    write_images(tmp_path / "images" / "train", digits()[:num_images])
    return plan(
        composed(
            *("data=imagefolder", f"data.source.folder={tmp_path}/images", "data.size=8"),
            *("data.channels=1", "dpm=tiny", f"runtime.outputs={tmp_path}/outputs", *overrides),
        )
    )


def test_a_folder_without_held_out_images_is_an_error_before_training(tmp_path):
    overrides = ("dpm.num_train_images=null", "dpm.train_partitions=[train]")
    the_plan = trained(tmp_path, 160, *overrides)
    with pytest.raises(ValueError, match=r"evaluate needs held-out images, .*remedy: lower dpm"):
        pipeline.run(the_plan, "all")
    assert made(the_plan) == {"data"}


def test_a_folder_of_160_images_is_trained_on_with_a_larger_rate(tmp_path, monkeypatch, caplog):
    the_plan = trained(tmp_path, 160, "dpm.num_train_images=80")
    monkeypatch.setattr(training, "fit", stop)
    with pytest.raises(KeyError, match="training starts"):
        pipeline.run(the_plan, "all")
    assert "80 held-out images are too few for a false positive rate of 0.1 %" in caplog.text


def test_a_pool_of_several_partitions_is_a_single_warning(tmp_path, monkeypatch, caplog):
    write_images(tmp_path / "images" / "test", OTHERS[20:100])
    the_plan = trained(tmp_path, 80, "dpm.num_train_images=80")
    monkeypatch.setattr(training, "fit", stop)
    with pytest.raises(KeyError, match="training starts"):
        pipeline.run(the_plan, "all")
    assert caplog.text.count("drawn from every partition") == 1


def stop(*arguments, **options):
    raise KeyError("training starts")


def test_a_fault_of_a_later_stage_is_a_warning_where_only_the_model_is_asked_for(of_user, caplog):
    override = "dpm.train_partitions=[train,test]"
    the_plan = of_user(TRAIN, OTHERS[:100], TRAIN[COPIED], override)
    pipeline.run(the_plan, "dpm")
    assert made(the_plan) == {"data", "dpm"}
    assert "evaluate needs held-out images" in caplog.text
