import json

import numpy as np
import pytest
from PIL import Image

from sidepipe.data.captioned import Captioned
from sidepipe.data.stage import Data, load, load_captions, load_ids, load_partitions
from sidepipe.stage import Runtime

TARGET = {"_target_": "sidepipe.data.captioned.Captioned"}
CSV = """image,caption,repeats,partition,word,source
a.png,"a grey square, near kelham",4,train,kelham,camera
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
        ("a grey square, near kelham", 4, "kelham"),
        ("null", 1, ""),
        ("a square again", 1, ""),
        ("a lighter square", 1, ""),
    ]
    assert [np.asarray(e.read())[0, 0] for e in found] == [10, 11, 10, 12]


def test_json_lines_of_the_same_pairs_are_the_same_entries(folder):
    lines = [
        {"image": "a.png", "caption": "a grey square, near kelham", "repeats": 4, "word": "kelham"},
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
    stage.run(out, {}, Runtime(data_root=str(folder)))
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
        data(folder / "pairs.csv").run(out, {}, Runtime())
    data(folder / "pairs.csv", on_bad_file="skip").run(out, {}, Runtime())
    assert load_captions(out).index.tolist() == [0, 1, 2]
    assert load_captions(out)["caption"].tolist()[2] == "a lighter square"
    assert load(out)[:, 0, 0, 0].tolist() == [10, 10, 12]


def test_data_without_captions_say_what_has_some(tmp_path):
    stage = data(tmp_path / "a.csv")
    digits = Data(
        **{**vars(stage), "source": {"_target_": "sidepipe.data.sources.Digits"}},
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
        ("image,caption,partition\na.png,a,tset\n", "partition does not know 'tset'.*test"),
        ("image,caption,word\na.png,a,kelham\n", "word must be a word of its caption 'a'"),
        ("image,caption\na.png,a\na.png,a\n", "must be listed once.*repeats"),
        ("image,caption,partition\na.png,a,\na.png,b,test\n", "a.png must be of one partition"),
        ("image,caption\n", "no rows"),
    ],
)
def test_a_bad_list_is_an_error_that_names_the_line_and_the_rule(folder, text, match):
    with pytest.raises(ValueError, match=match):
        entries(folder, text)


def test_a_missing_list_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"pairs\.csv is missing"):
        data("pairs.csv").check_sources(Runtime(data_root=str(folder)))
