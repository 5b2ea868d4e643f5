"""Models of table rows in the pipeline's own stages: what is found is what is true."""

import json

import numpy as np
import pytest
from tests.composing import composed, planned

import sidepipe
from sidepipe.base.tables import conform, read_table
from sidepipe.engine import pipeline
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.plan import plan
from sidepipe.stages.audit.stage import load_scores
from sidepipe.stages.data.stage import load as load_rows
from sidepipe.stages.data.stage import load_encoding, load_table
from sidepipe.stages.dpm.stage import load_subset
from sidepipe.stages.generate.stage import load as load_generated
from sidepipe.stages.generate.stage import load_denoiser

SMALL = (
    *("experiment=demo_table", "runtime.accelerator=cpu", "runtime.num_threads=1"),
    *("runtime.compile=false", "generate.num_images=60", "generate.num_inference_steps=10"),
    *("extract.num_images=40", "label.num_clusters=4", "label.min_cohesion=-1"),
    *("evaluate.gallery_pairs=4", "evaluate.false_positive_rates=[0.02]"),
)
TRAINED = ("dpm.max_steps=30", "dpm.ema_start_step=5", "dpm.lr_warmup_steps=5", "dpm.unet.width=16")
EXACT = ("dpm=exact", "dpm.bandwidth=0", "dpm.num_train_images=100")


def made(tmp_path, *overrides, stage="all"):
    """Runs the pipeline; the folders of its artifacts by their titles, and by their stages."""
    the_plan = plan(composed(*SMALL, f"runtime.outputs={tmp_path}", *overrides))
    pipeline.run(the_plan, stage)
    nodes = the_plan.nodes.values()
    places = {the_plan.title(node): node.folder(the_plan.runtime) for node in nodes}
    done = {title: folder for title, folder in places.items() if folder.is_dir()}
    return {title.split()[0]: folder for title, folder in done.items()} | done


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every stage that takes rows, on a model of a few training steps."""
    few = ("classifier.max_steps=10", "classifier.validate_every_steps=5")
    return made(
        tmp_path_factory.mktemp("trained"),
        *TRAINED,
        *(*few, "classifier.lr_warmup_steps=2", "shadow.num_images=30", "audit.draws=1"),
        *("audit=returns", "audit.levels=[60]", "audit.num_images=20", "audit.sampled=100"),
        "verdict=shadow",
        *("attacks=single", "extract.surrogate=none", "extract/refine=fixed_point"),
        "+attacks.side={extract: {surrogate: classifier}}",
    )


def test_every_stage_takes_rows(trained):
    stages = {title.split()[0] for title in trained}
    assert stages >= {"dpm", "classifier", "shadow", "verdict", "audit", "evaluate", "report"}


def test_generated_rows_are_rows_of_the_table(trained):
    rows = load_generated(trained["generate"])
    encoding = load_encoding(trained["data"])
    assert rows.dtype == np.float32
    assert rows.shape == (60, 1, 1, encoding.width)
    flat = rows.reshape(60, -1)
    np.testing.assert_array_equal(encoding.project(flat), flat)
    assert set(encoding.decode(flat)["sex"]) <= {"1", "2"}


def test_generated_rows_are_written_as_a_table_that_is_compared_like_any(trained):
    path = trained["generate"] / "synthetic.csv"
    schema = load_encoding(trained["data"]).schema
    frame = conform("synthetic", read_table(path), schema)
    encoded = load_encoding(trained["data"]).encode(frame)
    np.testing.assert_allclose(
        encoded, load_generated(trained["generate"]).reshape(60, -1), atol=1e-6
    )


def test_the_page_shows_values_and_no_pictures(trained):
    page = (trained["report"] / "report.html").read_text()
    gallery = page.split('id="gallery"')[1].split("</ol>")[0]
    assert "<img" not in gallery
    assert "The data are rows of a table: an image on this page is a row." in page
    assert "training row" in page.split('class="finding"')[1].split("</p>")[0]
    assert "the same rare values in several columns" in page
    assert "generated images hit" not in page
    assert "UNet" not in page
    assert "parameters on 128 rows, " in (trained["dpm"] / "log.txt").read_text()
    assert "(the table “diabetes”)" in page
    assert "pixels, color" not in page
    assert gallery.count("held-out (") == gallery.count("<li") >= 2
    rows = json.loads((trained["evaluate [side]"] / "results.json").read_text())
    assert rows["transform"] == "rows-v1"
    table, train = load_table(trained["data"]), load_subset(trained["dpm"])[0]
    shown = [f"<td>{value:.0f}</td>" for value in table.loc[train, "age"]]
    assert any(cell in gallery.replace(' class="other"', "") for cell in shown)


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """A model that remembers its rows exactly."""
    audit = ("audit=returns", "audit.levels=[]", "audit.draws=1", "audit.sampled=100")
    audit = ("attacks=checkpoint", *audit)
    folder = tmp_path_factory.mktemp("memory")
    made(folder, *EXACT, *audit, stage="audit")
    return made(folder, *EXACT, *audit, stage="evaluate")


def test_the_exact_memory_is_found_and_its_held_out_rows_are_not(memory):
    for attack, exact in (("unconditional", 40), ("refined", 30)):  # refinement merges close rows
        results = json.loads((memory[f"evaluate [{attack}]"] / "results.json").read_text())
        at = results["calibrated"][0]
        assert at["train"]["count"] == 40, "each generated row is a training row"
        assert results["exact_copies"]["train"] >= exact
        assert results["exact_copies"]["heldout"] == 0
        assert max(at["heldout"]["sets"]) <= 4, "chance alone: 2 % are expected"


def test_generated_rows_of_the_memory_are_training_rows_to_the_bit(memory):
    rows, data = load_generated(memory["generate"]), load_rows(memory["data"])
    train, heldout = (data[part] for part in load_subset(memory["dpm"]))
    known = {row.tobytes() for row in train}
    assert {row.tobytes() for row in rows} <= known
    assert not {row.tobytes() for row in heldout} & known


def test_the_audit_of_the_memory_flags_its_rows_alone(memory):
    table = load_scores(memory["audit"])
    flagged = table["flagged"] == 1
    assert flagged[table["kind"] == "train"].all()
    assert flagged[table["kind"] == "heldout"].mean() < 0.1


def test_a_model_that_overfits_sixteen_rows_gives_them_back(tmp_path):
    few = ("dpm.num_train_images=16", "dpm.max_steps=400", "dpm.batch_size=128")
    rest = ("dpm.lr=0.01", "dpm.unet.width=64", "dpm.unet.num_blocks=2")
    rest += ("dpm.ema_start_step=200", "dpm.ema_decay=0.98", "dpm.preview_every_steps=400")
    folders = made(tmp_path, *few, *rest, "generate.num_inference_steps=25", stage="generate")
    data, train = load_rows(folders["data"]), load_subset(folders["dpm"])[0]
    rows = load_generated(folders["generate"]).reshape(60, -1)
    known = data[train].reshape(16, -1)
    distance = np.linalg.norm(rows[:, None] - known[None], axis=2) / 2
    among = np.linalg.norm(known[:, None] - known[None], axis=2) / 2
    usual = np.median(np.where(np.eye(16) == 1, np.inf, among).min(1))
    assert (distance.min(1) < usual / 3).mean() > 0.8, "most rows lie at one of the sixteen"
    assert len(set(distance.argmin(1))) >= 12, "and nearly all of the sixteen are found"


def test_a_saved_model_is_attacked_as_a_checkpoint_of_its_own_table_alone(trained, tmp_path):
    path = f"dpm.path={trained['dpm'] / 'model'}"
    same = made(tmp_path, "dpm=pretrained", path, "dpm.num_train_images=128", stage="generate")
    np.testing.assert_array_equal(
        load_generated(same["generate"]), load_generated(trained["generate"])
    )
    assert Artifact(same["dpm"]).summary["num_parameters"] > 0
    x_0 = load_denoiser(same["dpm"], "32-true")
    assert x_0.encoding.schema.target == "target"
    other = ("data.source.name=wine", "dpm.num_train_images=100")
    with pytest.raises(ValueError, match="data must be the table that the model of"):
        made(tmp_path, "dpm=pretrained", path, *other, stage="dpm")


def test_the_api_samples_and_refines_rows(trained):
    model = sidepipe.load(trained["dpm"], device="cpu")
    rows = model.sample(5, num_inference_steps=5)
    assert rows.shape == (5, *model.image_shape)
    refined = model.refine(rows, t=60, steps=2)
    encoding = load_encoding(trained["data"])
    np.testing.assert_array_equal(encoding.project(refined[:, 0, 0]), refined[:, 0, 0])
    with pytest.raises(ValueError, match="images must be float32 rows, as from sample"):
        model.refine(np.zeros((5, *model.image_shape), np.uint8))


def test_refined_rows_are_decoded_and_compared_as_data_frames(memory):
    model = sidepipe.load(memory["dpm"], device="cpu")
    split = sidepipe.load_split(memory["dpm"])
    train, heldout = map(model.decode, split)
    rows = model.refine(model.sample(40, num_inference_steps=10), t=60, steps=2)
    frame = model.decode(rows)
    assert list(frame.columns) == list(load_table(memory["data"]).columns)
    result = sidepipe.compare(frame, train=train, heldout=heldout, target="target")
    assert str(result).startswith(f"{result.unique} of 100 training rows are")
    assert result.exact >= 30 > result.exact_heldout == 0
    with pytest.raises(
        ValueError, match=r"uint8.*rows of a table model pass model\.decode\(rows\)"
    ):
        sidepipe.compare(rows, train=split[0], heldout=split[1])
    with pytest.raises(ValueError, match=r"model must be one of images.*stage=audit"):
        sidepipe.audit(model, train=split[0], heldout=split[1])
    with pytest.raises(ValueError, match="images must be float32 rows"):
        model.decode(np.zeros((5, *model.image_shape), np.uint8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["dpm=tiny"], "data must be images for this model, got 'rows of a table'"),
        (["data=digits"], "data must be rows of a table for this model, got 'images'"),
        (
            ["features@evaluate.features=pixels_l2"],
            "evaluate.features must be an encoder of rows of a table, got 'PixelsL2'; remedy",
        ),
        (
            ["features@label.features=pixels"],
            "label.features must be an encoder of rows of a table, got 'Pixels'; "
            "features@label.features=row_directions",
        ),
        (["dpm.augment=cutmix"], "dpm.augment"),
        (["dpm.random_flip=true"], "dpm.random_flip must be false for rows"),
        (["dpm.random_shift=1"], "dpm.random_shift must be 0 for rows"),
        (["attacks=single", "extract.surrogate=lora"], "data must be images for LoRA"),
        (["detect=labels"], "data must be images for detect=labels"),
    ],
)
def test_what_does_not_take_rows_is_refused_at_once(changes, message):
    with pytest.raises(ValueError, match=r"must be|accept") as error:
        planned("experiment=demo_table", *changes)
    assert message.removesuffix("; remedy") in str(error.value)


def test_the_classifier_of_rows_refuses_images():
    with pytest.raises(ValueError, match=r"data must be rows of a table for classifier\.network"):
        planned("experiment=smoke", "classifier=rows")


def test_augmented_rows_change_the_training_and_no_other_stage_before_it():
    def keys(*changes):
        the_plan = planned("experiment=demo_table", *changes)
        return {the_plan.title(node).split()[0]: key for key, node in the_plan.nodes.items()}

    plain, mixed = keys(), keys("dpm.augment=tabcutmix")
    assert plain["data"] == mixed["data"]
    assert plain["dpm"] != mixed["dpm"]
    assert keys("dpm.augment=none") == plain


def test_augmented_rows_are_trained_on(tmp_path):
    from sidepipe.stages.dpm.table import TrainTableDPM

    seen = []

    def averaged(self, job, module, arrays, rows, parts):
        seen.append((arrays[0][rows], [len(part) for part in parts]))
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainTableDPM.__mro__[1], "_averaged", averaged)
        with pytest.raises(InterruptedError):
            made(tmp_path, "dpm.augment=tabcutmix", stage="dpm")
    rows, sizes = seen[0]
    assert rows.shape[0] == 2 * sizes[0] == 256
    first, more = rows[:128, :, 0, 0], rows[128:, :, 0, 0]
    # The first column of a mixed row is that of a training row.
    assert set(more[:, 0]) <= set(first[:, 0])
    assert not (more == first).all()
