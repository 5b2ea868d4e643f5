import json

import numpy as np
import pytest
from PIL import Image

from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.data.captioned import Captioned
from sidepipe.stages.data.stage import Data, load, load_captions, load_ids, load_partitions

TARGET = {"_target_": "sidepipe.stages.data.captioned.Captioned"}
CSV = """image,caption,repeats,partition,word,source
a.png,"a gray square, near kelham",4,train,kelham,camera
sub/b.png,null,,,,
a.png,a square again,1.0,Train,,
c.png,a lighter square,,heldout,,
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for i, name in enumerate(["a.png", "sub/b.png", "c.png"]):
        Image.new("L", (8, 8), 10 + i).save(tmp_path / name)
    return tmp_path


def entries(folder, text, name="pairs.csv"):
    (folder / name).write_text(text)
    return Captioned(str(folder / name)).entries()


def data(file, **changes):
    settings = {"size": 8, "channels": 1, "center_crop": None, "on_bad_file": "error"}
    return Data(source={**TARGET, "file": str(file)}, **{**settings, **changes})


def test_pairs_of_a_csv_are_read_with_what_is_said_of_them(folder):
    found = entries(folder, CSV)
    assert [(e.id, e.partition) for e in found] == [
        *[("a.png", "train"), ("sub/b.png", "train"), ("a.png", "train"), ("c.png", "test")],
    ]
    assert [(e.caption.text, e.caption.repeats, e.caption.word) for e in found if e.caption] == [
        ("a gray square, near kelham", 4, "kelham"),
        ("null", 1, ""),
        ("a square again", 1, ""),
        ("a lighter square", 1, ""),
    ]
    assert [np.asarray(e.read())[0, 0] for e in found] == [10, 11, 10, 12]


def test_json_lines_of_the_same_pairs_are_the_same_entries(folder):
    lines = [
        {"image": "a.png", "caption": "a gray square, near kelham", "repeats": 4, "word": "kelham"},
        {"image": "sub/b.png", "caption": "null", "repeats": None, "partition": None},
        {"image": "a.png", "caption": "a square again"},
        {"image": "c.png", "caption": "a lighter square", "partition": "test"},
    ]
    text = "\n".join(map(json.dumps, lines))
    said = [(e.id, e.partition, e.caption) for e in entries(folder, CSV)]
    assert [(e.id, e.partition, e.caption) for e in entries(folder, text, "p.jsonl")] == said


def test_the_artifact_keeps_captions_beside_its_images(folder, tmp_path):
    entries(folder, CSV)
    stage = data("pairs.csv")
    assert stage.has_captions
    out = tmp_path / "out"
    out.mkdir()
    stage.run(Job(out, {}, Runtime(data_root=str(folder))))
    table = load_captions(out)
    assert list(table.columns) == ["caption", "repeats", "word", "attributes"]
    assert table["caption"].tolist()[1] == "null"
    assert table["repeats"].tolist() == [4, 1, 1, 1]
    assert table["word"].tolist() == ["kelham", "", "", ""]
    assert table["attributes"].tolist() == [{}] * 4
    assert load(out)[:, 0, 0, 0].tolist() == [10, 11, 10, 12]
    assert load_ids(out).tolist() == ["a.png", "sub/b.png", "a.png", "c.png"]
    assert load_partitions(out).tolist() == ["train"] * 3 + ["test"]


def test_captions_stay_with_their_images_where_files_were_skipped(folder, tmp_path):
    entries(folder, CSV)
    (folder / "sub/b.png").unlink()
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match=r"b\.png cannot be read: .*pairs\.csv line 3 lists it"):
        data(folder / "pairs.csv").run(Job(out, {}, Runtime()))
    data(folder / "pairs.csv", on_bad_file="skip").run(Job(out, {}, Runtime()))
    assert load_captions(out).index.tolist() == [0, 1, 2]
    assert load_captions(out)["caption"].tolist()[2] == "a lighter square"
    assert load(out)[:, 0, 0, 0].tolist() == [10, 10, 12]


def test_data_without_captions_say_what_has_some(tmp_path):
    stage = data(tmp_path / "a.csv")
    digits = Data(
        **{**vars(stage), "source": {"_target_": "sidepipe.stages.data.sources.Digits"}},
    )
    assert not digits.has_captions
    with pytest.raises(FileNotFoundError, match="no captions; remedy: data=captioned or"):
        load_captions(tmp_path)


def test_a_changed_list_or_image_changes_the_listing(folder):
    entries(folder, CSV)
    source = Captioned(str(folder / "pairs.csv"))
    first = source.listing()
    assert source.listing() == first
    (folder / "pairs.csv").write_text(CSV.replace("lighter", "darker"))
    second = source.listing()
    (folder / "c.png").unlink()
    assert len({first, second, source.listing()}) == 3


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("file,caption\na.png,a\n", "line 2 has no 'image', it has 'file', 'caption'"),
        ("image,text\na.png,a\n", "line 2 has no 'caption'"),
        ("image,caption\na.png,a\nc.png, \n", "line 3: 'caption' must be text, got ' '"),
        ("image,caption,repeats\na.png,a,0\n", "repeats must be a whole number >= 1, got '0'"),
        ("image,caption,repeats\na.png,a,2.5\n", "repeats must be a whole number"),
        ("image,caption,repeats\na.png,a,many\n", "repeats must be a whole number"),
        ("image,caption,partition\na.png,a,tset\n", "partition does not accept 'tset'.*test"),
        ("image,caption,word\na.png,a,kelham\n", "word must be a word of its caption 'a'"),
        ("image,caption\na.png,a\na.png,a\n", "must be listed once.*repeats"),
        ("image,caption,partition\na.png,a,\na.png,b,test\n", "a.png must be of one partition"),
        ("image,caption\n", "no rows"),
        ("image,caption\na.png,a\n./a.png,a\n", "line 3: a pair must be listed once"),
        ("image,caption\na.png,a\nsub/../a.png,a\n", "line 3: a pair must be listed once"),
        ("image,caption,partition\na.png,a,\n./a.png,b,test\n", "line 3: a.png must be of one par"),
        ("image,caption,caption\na.png,a,b\n", "line 1 has 2 columns 'caption'"),
        ('image,caption\na.png,"a\nc.png,b\n', "line 2 cannot be read"),
        ("image;caption;n\nc.png;b;1\na.png;a; cat\n", "line 3: 'n' begins with a space"),
    ],
)
def test_a_bad_list_is_an_error_that_names_the_line_and_the_rule(folder, text, match):
    with pytest.raises(ValueError, match=match):
        entries(folder, text)


def test_a_missing_list_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"pairs\.csv is missing"):
        data("pairs.csv").check_sources(Runtime(data_root=str(folder)))


def listed(folder, *rows, header="image,caption"):
    text = "\n".join([header, *(f"{row},caption {i}" for i, row in enumerate(rows)), ""])
    return [(e.id, e.partition) for e in entries(folder, text)]


def test_one_file_has_one_id_however_the_list_spells_its_path(folder):
    rows = ["./a.png", "sub/../a.png", str(folder / "a.png"), "sub//b.png", "./sub/./b.png"]
    assert [name for name, _ in listed(folder, *rows)] == ["a.png"] * 3 + ["sub/b.png"] * 2


def test_an_image_elsewhere_keeps_the_path_that_the_list_gives(folder, tmp_path):
    Image.new("L", (8, 8), 77).save(folder / "sub/z.png")
    (folder / "lists").mkdir()
    text = f"image,caption\n../sub/z.png,a\n{folder}/sub/z.png,b\n"
    found = entries(folder, text, "lists/pairs.csv")
    assert [e.id for e in found] == ["../sub/z.png", f"{folder}/sub/z.png"]
    assert [np.asarray(e.read())[0, 0] for e in found] == [77, 77]
    with pytest.raises(ValueError, match="line 3: a pair must be listed once"):
        entries(folder, text.replace(",b", ",a"), "lists/pairs.csv")


@pytest.mark.parametrize(
    ("word", "partition"),
    [
        ("Training", "train"),
        ("valid", "val"),
        ("dev", "val"),
        ("eval", "test"),
        ("held-out", "test"),
    ],
)
def test_a_column_s_partition_may_be_any_word_for_it(folder, word, partition):
    text = f"image,caption,partition\na.png,a,{word}\n"
    assert [e.partition for e in entries(folder, text)] == [partition]


def test_a_row_without_a_partition_has_that_of_its_image_s_folders(folder, caplog):
    with caplog.at_level("INFO", logger="sidepipe"):
        found = listed(folder, "train2017/a.png", "valid/b.png", "held_out/x/c.png")
    assert [partition for _, partition in found] == ["train", "val", "test"]
    assert (
        "train: 1 images (train2017/), val: 1 images (valid/), test: 1 images (held_" in caplog.text
    )
    text = "image,caption,partition\nval/a.png,a,train\nval/b.png,b,\n"
    assert [e.partition for e in entries(folder, text)] == ["train", "val"]
    with pytest.raises(ValueError, match="ambiguous which images belong to the training set"):
        listed(folder, "a.png", "test/b.png")


def test_folders_above_the_list_or_above_all_images_are_no_partition(folder):
    (folder / "test").mkdir()
    assert listed(folder / "test", "a.png") == [("a.png", "train")]
    assert listed(folder, "/dev/shm/a/x.png", "/dev/shm/b/y.png") == [
        ("/dev/shm/a/x.png", "train"),
        ("/dev/shm/b/y.png", "train"),
    ]
    found = listed(folder, "/data/train/a/x.png", "/data/val/y.png")
    assert [partition for _, partition in found] == ["train", "val"]
    assert listed(folder, "/data/test/x.png") == [("/data/test/x.png", "test")]


def test_a_half_surrogate_pair_in_a_caption_is_an_error_with_its_line(folder):
    text = '{"image": "a.png", "caption": "ok"}\n{"image": "c.png", "caption": "\\ud83d"}\n'
    with pytest.raises(ValueError, match=r"pairs\.jsonl line 2: 'caption' must be text without"):
        entries(folder, text, "pairs.jsonl")


def test_captions_of_every_script_come_back_as_they_were(folder, tmp_path):
    captions = ["\u00fc\u4e2d\U0001f600", "a\u2028b", '"quoted", so', "NA"]
    rows = [{"image": "a.png", "caption": caption} for caption in captions]
    entries(folder, "\n".join(map(json.dumps, rows)), "pairs.jsonl")
    out = tmp_path / "out"
    out.mkdir()
    data(folder / "pairs.jsonl").run(Job(out, {}, Runtime()))
    assert load_captions(out)["caption"].tolist() == [
        "\u00fc\u4e2d\U0001f600",
        "a b",
        *captions[2:],
    ]
