"""The command `sidepipe compare`: the numbers of the function, files, refusals in one line."""

import csv
import hashlib
import json
import sys

import numpy as np
import pytest
from PIL import Image
from tests.test_imports import heavy, probed

import sidepipe
from sidepipe.cli import main as command_line

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (40, 8, 8), dtype=np.uint8)
HELDOUT = RNG.integers(0, 256, (100, 8, 8), dtype=np.uint8)
GENERATED = np.concatenate([TRAIN[:10], RNG.integers(0, 256, (15, 8, 8), dtype=np.uint8)])


def save_folder(folder, images):
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}.png")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    for name, images in (("generated", GENERATED), ("train", TRAIN), ("heldout", HELDOUT)):
        save_folder(root / name, images)
    return root


@pytest.fixture
def run(folders, tmp_path, monkeypatch, capsys):
    """Runs the command in a folder with links to the images; gives the exit code and the texts."""
    for name in ("generated", "train", "heldout"):
        (tmp_path / name).symlink_to(folders / name)
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["sidepipe", "compare", *arguments])
        code = 0
        try:
            command_line.main()
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().out

    return command


ALL = ("generated", "train=train", "heldout=heldout")


def test_a_warning_stands_in_the_table_and_not_in_the_log_as_well(run, caplog):
    _, out = run(*ALL, "out=found")
    assert out.count("are too few for a false positive rate") == 1
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_command_gives_the_numbers_of_the_function(run, folders, tmp_path):
    code, out = run(*ALL, "out=found", "false_positive_rate=0.05", "features=pixels")
    assert code == 0
    expected = sidepipe.compare(
        folders / "generated",
        train=folders / "train",
        heldout=folders / "heldout",
        false_positive_rate=0.05,
        features="pixels",
    )
    found = json.loads((tmp_path / "found" / "result.json").read_text())
    assert (found["hits"], found["unique"]) == (expected.hits, expected.unique)
    assert found["excess"]["interval"] == list(expected.excess.interval)
    assert found["counts"] == json.loads(json.dumps(expected._counts))
    assert "Report: found/report.html" in out
    assert out.splitlines()[0].startswith(f"{expected.unique} of ")


def test_pairs_name_the_files_of_every_hit(run, tmp_path):
    assert run(*ALL, "out=found")[0] == 0
    with (tmp_path / "found" / "pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["hit_on"], r["generated"], r["nearest"]) for r in rows] == [
        ("train", f"{i:04d}.png", f"{i:04d}.png") for i in range(10)
    ]
    assert all(float(r["distance"]) == 0 <= float(r["threshold"]) for r in rows)


def test_held_out_hits_are_rows_too(run, tmp_path):
    assert run("heldout", *ALL[1:], "out=found")[0] == 0
    with (tmp_path / "found" / "pairs.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["hit_on"] == "heldout"]
    # 100 held-out images make two disjoint sets of 40, the size of the training set.
    assert [row["nearest"] for row in rows] == [f"{i:04d}.png" for i in range(80)]
    assert all(row["generated"] == row["nearest"] for row in rows)


def test_the_result_has_what_a_rerun_needs(run, folders, tmp_path):
    assert run(*ALL, "out=found")[0] == 0
    found = json.loads((tmp_path / "found" / "result.json").read_text())
    assert found["command"] == "sidepipe compare generated train=train heldout=heldout out=found"
    assert {"torch", "numpy", "sidepipe"} <= found["packages"].keys()
    assert found["seed"] == 0
    lines = b"".join(
        f"{hashlib.sha256(image.tobytes()).hexdigest()}  {i:04d}.png\n".encode()
        for i, image in enumerate(TRAIN)
    )
    assert found["inputs"]["train"]["sha256"] == hashlib.sha256(lines).hexdigest()
    assert found["inputs"]["train"]["num_images"] == 40


def test_no_folder_is_overwritten(run, tmp_path):
    for expected in ("comparison", "comparison-2"):
        code, out = run(*ALL)
        assert code == 0
        assert f"Report: {expected}/report.html" in out
    code, _ = run(*ALL, "out=comparison")
    assert code.startswith("out must be a new or empty folder, got comparison, which exists; rem")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generated", "train=train"], "heldout is required: a folder of images of the same kind"),
        (["train=train", "heldout=heldout"], "generated is required: a folder of images"),
        ([*ALL, "trian=x"], "trian is no argument of compare; did you mean 'train'?"),
        ([*ALL, "train=x"], "train must be given once, got train and x"),
        (["generated", "train/", "heldout=heldout"], "train/ needs a name: only the folder of gen"),
        (["no/such", *ALL[1:]], "generated must be a folder of images, a NumPy file or"),
        (
            [ALL[0], "train=void", ALL[2]],
            "train: void holds no images; remedy: put images there, or",
        ),
        (
            ["nope", *ALL[1:]],
            "generated must be a folder of images, a NumPy file or a uint8 array "
            "(n, h, w, c), got nope, which is no folder; remedy: check the path",
        ),
        (
            [*ALL, "features=copydet", "features.path=/nope"],
            "features.path must be a folder written by the stage descriptor",
        ),
        (
            [*ALL, "features=sscd", "features.path=/nope", "features.sha256=x"],
            "features.path must be a file, got /nope; download sscd",
        ),
        (
            [*ALL, "features=sscd", "features.path=text/a.mp4", "features.sha256=x"],
            "features.sha256 must be the file's, got x",
        ),
        (
            [*ALL, "features=dinov2", "features.path=./nope"],
            "features.path names ./nope, which is not a folder; remedy: name a folder",
        ),
        ([*ALL[:2], "heldout=few"], "heldout must be >= 20 images, got 3; pass more images"),
        ([*ALL[:2], "heldout=mixed"], "heldout must be images of one size, got '8 x 8 (20), 9 x"),
        ([*ALL[:2], "heldout=wide"], "heldout must be 8 x 8 pixels, as generated, got (8, 16); si"),
        ([*ALL[:2], "heldout=color"], "heldout must be of 1 channel, as generated, got 3; chan"),
        ([*ALL[:2], "heldout=broken"], "heldout: broken/0050.png cannot be read: "),
        ([*ALL[:2], "heldout=text"], "heldout: text holds no image that can be read; 1 file is"),
        ([*ALL, "size=big"], "size must be a whole number, got 'big'"),
        ([*ALL, "size=0"], "size must be >= 1 or None, got 0"),
        ([*ALL, "resize=pad"], "resize does not accept 'pad'; known: crop, stretch"),
        ([*ALL, "false_positive_rate=2"], "false_positive_rate must be in (0, 1), got 2.0"),
        ([*ALL, "features=ssdc"], "features does not accept 'ssdc'; did you mean 'sscd'?"),
        ([*ALL, "features=sscd"], "features.path is required by features=sscd; for example"),
        ([*ALL, "features=sscd", "features.pth=x"], "features.pth is no setting of features=sscd"),
        (
            [*ALL, "features=sscd", "features.size=x"],
            "features.size must be a whole number, got 'x",
        ),
        ([*ALL, "device=tpu"], "device does not accept 'tpu'"),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_before_anything_is_compared(run, tmp_path, arguments, message):
    make_bad_folders(tmp_path)
    code, out = run(*arguments)
    assert code.startswith(message)
    assert "\n" not in code
    assert out == ""
    assert not (tmp_path / "comparison").exists()


def make_bad_folders(root):
    (root / "void").mkdir()
    save_folder(root / "few", HELDOUT[:3])
    save_folder(root / "mixed", [*HELDOUT[:20], np.zeros((9, 8), np.uint8)])
    save_folder(root / "wide", np.repeat(HELDOUT, 2, axis=2))
    save_folder(root / "color", np.stack([HELDOUT] * 3, axis=3))
    save_folder(root / "broken", HELDOUT)
    (root / "broken" / "0050.png").write_bytes(b"")
    (root / "text").mkdir()
    (root / "text" / "a.mp4").write_bytes(b"\0")


def test_refusals_import_nothing_heavy(folders, tmp_path):
    save_folder(tmp_path / "mixed", [*HELDOUT[:20], np.zeros((9, 8), np.uint8)])
    arguments = [f"{folders}/generated", f"train={folders}/train", f"heldout={tmp_path}/mixed"]
    done = probed("cli.main", "compare", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("heldout must be images of one size, got '8 x 8 (20), 9 x 8 (1)'")
    assert done.stderr.count("\n") == 1
    assert heavy(done) == []


def test_help_is_in_words_and_imports_nothing_heavy():
    for words in (["--help"], []):
        done = probed("cli.main", "compare", *words)
        assert done.returncode == 0
        assert "sidepipe compare generated/ train=train/ heldout=heldout/" in done.stdout
        assert max(map(len, done.stdout.splitlines())) <= 100
        assert heavy(done) == []


def test_help_names_every_argument_of_the_function():
    from inspect import signature

    from sidepipe.cli.compare import HELP

    for name in signature(sidepipe.compare).parameters:
        assert f"  {name}" in HELP, name


def test_a_killed_command_resumes_and_leaves_no_cache(run, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sidepipe.api.result.Result, "save", killed)
        assert run(*ALL)[0] != 0
    names = {path.name for path in (tmp_path / "comparison-cache").iterdir()}
    assert {path.partition(".")[2] for path in names} >= {"pixels", "npy", "train.json"}
    assert not (tmp_path / "comparison").exists()
    with monkeypatch.context() as patched:
        patched.setattr("sidepipe.api.decoding.read_images", killed)
        patched.setattr("sidepipe.features.encoders.PixelsL2._encode_batch", killed)
        assert run(*ALL)[0] == 0
    assert not (tmp_path / "comparison-cache").exists()
    assert (tmp_path / "comparison" / "result.json").exists()


def test_a_cache_that_is_named_stays(run, tmp_path):
    assert run(*ALL, "cache=mine")[0] == 0
    assert any((tmp_path / "mine").iterdir())
    assert run(*ALL, "cache=none")[0] == 0
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"generated", "train", "heldout", "mine", "comparison", "comparison-2"}
