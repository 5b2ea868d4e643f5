import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sidepipe.base.settings import bind_nested
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.data.stage import Data, load, load_ids, load_partitions

CONF = Path(__file__).parents[3] / "conf/data"
DIGITS = {"_target_": "sidepipe.stages.data.sources.Digits"}
CELEBA = {"_target_": "sidepipe.stages.data.sources.CelebA", "folder": "celeba", "partitions": None}


def data(source=DIGITS, **changes) -> Data:
    settings = {"size": 8, "channels": 1, "center_crop": None, "on_bad_file": "error"}
    return Data(source=source, **{**settings, **changes})


@pytest.fixture
def celeba(tmp_path) -> Runtime:
    """The runtime under whose data_root six images lie."""
    images = tmp_path / "datasets/celeba/img_align_celeba"
    images.mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (20, 24), (i, 0, 0)).save(images / f"{i}.png")
    lines = [f"{i}.png {i // 2}\n" for i in range(6)]
    (tmp_path / "datasets/celeba/list_eval_partition.txt").write_text("".join(lines))
    return Runtime(data_root=str(tmp_path / "datasets"))


def test_digits_become_an_array_a_table_and_a_picture(tmp_path):
    summary = data().run(Job(tmp_path, {}, Runtime()))
    images = load(tmp_path)
    assert isinstance(images, np.memmap)
    assert images.shape == (1797, 8, 8, 1)
    assert images.dtype == np.uint8
    assert (images.min(), images.max()) == (0, 255)
    with (tmp_path / "ids.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[4] == {"index": "4", "id": "0004", "partition": "train", "identity": "4"}
    assert len(rows) == 1797
    assert load_partitions(tmp_path).tolist() == ["train"] * 1797
    assert load_ids(tmp_path)[1796] == "1796"
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.size == (8 * 66, 8 * 66)
    assert summary["num_images"] == 1797
    assert summary["shape"] == [8, 8, 1]
    assert summary["partitions"] == {"train": 1797}
    assert summary["skipped"] == []
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["ids.csv", "images.npy", "preview.png"]


def test_the_same_settings_write_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        data(size=12, channels=3).run(Job(tmp_path / name, {}, Runtime()))
    for file in ("images.npy", "ids.csv", "preview.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_unfinished_artifact_is_made_anew(tmp_path):
    for name in ("images.npy", "images.tmp", "ids.csv"):
        (tmp_path / name).write_text("half a file")
    data().run(Job(tmp_path, {}, Runtime()))
    assert len(load(tmp_path)) == len(load_ids(tmp_path)) == 1797


def test_a_relative_folder_lies_under_the_data_root(tmp_path, celeba):
    summary = data(CELEBA, channels=3, center_crop=16).run(Job(tmp_path, {}, celeba))
    assert summary["partitions"] == {"train": 2, "val": 2, "test": 2}
    assert load(tmp_path)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_an_absolute_folder_needs_no_data_root(tmp_path, celeba):
    source = {**CELEBA, "folder": f"{celeba.data_root}/celeba", "partitions": ["val", "test"]}
    data(source).run(Job(tmp_path, {}, Runtime(data_root="/nowhere")))
    assert load_partitions(tmp_path).tolist() == ["val", "val", "test", "test"]
    assert load_ids(tmp_path).tolist() == ["2.png", "3.png", "4.png", "5.png"]


def test_rows_stay_with_their_images_where_files_were_skipped(tmp_path, celeba, caplog):
    images = Path(celeba.data_root) / "celeba/img_align_celeba"
    (images / "0.png").unlink()
    (images / "3.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0\.png cannot be read"):
        data(CELEBA).run(Job(tmp_path, {}, celeba))
    summary = data(CELEBA, channels=3, on_bad_file="skip").run(Job(tmp_path, {}, celeba))
    assert summary["skipped"] == ["0.png", "3.png"]
    assert summary["num_images"] == 4
    assert "skipped 2 unreadable images: 0.png, 3.png" in caplog.text
    assert load_ids(tmp_path).tolist() == ["1.png", "2.png", "4.png", "5.png"]
    assert load(tmp_path)[:, 0, 0, 0].tolist() == [1, 2, 4, 5]


def test_a_missing_folder_is_named_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"celeba is not a folder.*runtime\.data_root"):
        data(CELEBA).run(Job(tmp_path, {}, Runtime(data_root=str(tmp_path / "nowhere"))))


def test_changed_source_files_are_noticed_and_absent_ones_are_not_missed(tmp_path, celeba):
    stage = data(CELEBA)
    summary = stage.run(Job(tmp_path, {}, celeba))
    assert stage.source_changed(summary, celeba) is None
    (Path(celeba.data_root) / "celeba/img_align_celeba/5.png").unlink()
    message = stage.source_changed(summary, celeba)
    assert message is not None
    assert "6 files" in message
    assert "5 files" in message
    assert "remedy" in message
    assert stage.source_changed(summary, Runtime(data_root="/nowhere")) is None


def test_the_digits_never_change(tmp_path):
    summary = data().run(Job(tmp_path, {}, Runtime()))
    assert data().source_changed(summary, Runtime()) is None


@pytest.mark.parametrize(("name", "value"), [("size", 3), ("center_crop", 0)])
def test_a_setting_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=rf"data\.{name} must be >= "):
        data(**{name: value})


def test_a_setting_of_the_source_out_of_range_is_named():
    source = yaml.safe_load((CONF / "mixture.yaml").read_text())["source"]
    with pytest.raises(
        ValueError, match=r"^data\.source cannot be built: data\.source\.components"
    ):
        data({**source, "size": 8, "components": 0}).check_sources(Runtime())


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_data_config_names_arguments_that_exist(file):
    bind_nested("data", yaml.safe_load(file.read_text()))


def test_no_images_are_an_empty_array_of_the_shape_asked_for(tmp_path):
    nothing = data({"_target_": "sidepipe.stages.data.sources.Nothing"}, size=16, channels=3)
    assert nothing.is_empty
    assert not data().is_empty
    summary = nothing.run(Job(tmp_path, {}, Runtime()))
    assert load(tmp_path).shape == (0, 16, 16, 3)
    assert load_partitions(tmp_path).tolist() == []
    assert summary["num_images"] == 0
    assert summary["shape"] == [16, 16, 3]
    assert nothing.source_changed(summary, Runtime()) is None


def folder_of(path: Path, **changes) -> Data:
    source = {"_target_": "sidepipe.stages.data.sources.ImageFolder", "folder": str(path)}
    return data(source, **changes)


def test_files_that_are_not_read_are_counted_in_the_log_and_in_the_summary(tmp_path, caplog):
    source, out = tmp_path / "set", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    Image.new("L", (8, 8), 1).save(source / "a.png")
    frames = [Image.new("L", (8, 8), gray) for gray in (2, 200)]
    frames[0].save(source / "b.gif", save_all=True, append_images=frames[1:])
    (source / "c.zip").write_bytes(b"PK")
    (source / "photo").write_bytes(b"no image")
    (source / "list.txt").write_text("no image")
    with caplog.at_level("INFO", logger="sidepipe"):
        summary = folder_of(source).run(Job(out, {}, Runtime()))
    assert load(out)[:, 0, 0, 0].tolist() == [1, 2]
    assert summary["left_out"] == [(".zip", 1), ("without suffix", 1)]
    assert summary["several_images"] == 1
    assert "2 files are not read: 1 .zip, 1 without suffix" in caplog.text
    assert "1 files hold several images" in caplog.text
    json.dumps(summary)


def test_a_folder_of_unreadable_files_alone_is_an_error_that_names_them(tmp_path):
    for i in range(12):
        (tmp_path / f"{i}.mp4").write_bytes(b"no image")
    with pytest.raises(
        ValueError, match=r"holds no image .*; 12 files are not read: 12 \.mp4; rem"
    ):
        folder_of(tmp_path).run(Job(tmp_path, {}, Runtime()))


def test_names_that_are_not_utf_8_are_kept_with_escapes(tmp_path):
    source, out = tmp_path / "set", tmp_path / "out"
    for folder in (source, out):
        folder.mkdir()
    Image.new("L", (8, 8), 7).save(source / "a.png")
    (source / "a.png").rename(os.fsdecode(os.fsencode(source) + b"/caf\xe9.png"))
    Image.new("L", (8, 8), 8).save(source / "gr\u00fcn.png")
    stage = folder_of(source)
    summary = stage.run(Job(out, {}, Runtime()))
    assert load_ids(out).tolist() == [r"caf\xe9.png", "gr\u00fcn.png"]
    assert load(out)[:, 0, 0, 0].tolist() == [7, 8]
    assert stage.source_changed(summary, Runtime()) is None
    os.truncate(os.fsencode(source) + b"/caf\xe9.png", 30)
    with pytest.raises(ValueError, match=r"caf\\xe9\.png cannot be read") as error:
        stage.run(Job(out, {}, Runtime()))
    str(error.value).encode()
