import json

import numpy as np
import pandas as pd
import pytest
from tests.composing import composed

from sidepipe.base.table_encoding import Encoding
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.data.published_tables import PUBLISHED
from sidepipe.stages.data.stage import (
    Data,
    load,
    load_encoding,
    load_identities,
    load_ids,
    load_partitions,
    load_table,
)
from sidepipe.stages.data.tables import EMBEDDED

NOTHING = {"file": None, "heldout_file": None, "folder": "tables", "target": None, "kinds": {}}


def data(name="diabetes", **source):
    target = "sidepipe.stages.data.tables.Table"
    settings = {"size": 1, "channels": 1, "center_crop": None, "on_bad_file": "error"}
    return Data(source={"_target_": target, "name": name, **NOTHING, **source}, **settings)


def made(tmp_path, stage, root="."):
    out = tmp_path / "out"
    out.mkdir()
    return out, stage.run(Job(out, {}, Runtime(data_root=str(root))))


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_table_of_scikit_learn_becomes_vectors_that_decode_to_it(name, tmp_path):
    out, summary = made(tmp_path, data(name))
    rows, encoding, frame = load(out), load_encoding(out), load_table(out)
    assert rows.dtype == np.float32
    assert list(rows.shape) == [summary["num_images"], *summary["shape"]]
    assert rows.shape[3] == encoding.width
    pd.testing.assert_frame_equal(encoding.decode(rows[:, 0, 0]), frame)
    assert len(load_ids(out)) == len(set(load_ids(out))) == len(frame)
    assert summary["partitions"] == {"train": len(frame)}
    json.dumps(summary)


def test_columns_of_the_embedded_tables_have_their_kinds(tmp_path):
    out, summary = made(tmp_path, data("diabetes"))
    assert summary["table"]["columns"] == {"numeric": 10, "categorical": 1}
    assert load_table(out)["sex"].unique().tolist() == ["2", "1"]
    assert set(load_identities(out)) == {""}  # the target is a number


def test_your_files_are_partitions_and_the_encoding_is_fitted_on_the_first_alone(tmp_path):
    train = pd.DataFrame({"a": [1.5, 2.5, 2.5, 9.5], "b": ["x", "y", "y", None]})
    train.to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"b": ["z", "y"], "a": [4.5, 2.5]}).to_csv(tmp_path / "rest.csv", index=False)
    stage = data(file="train.csv", heldout_file="rest.csv", target="b")
    out, summary = made(tmp_path, stage, tmp_path)
    assert load_partitions(out).tolist() == ["train"] * 4 + ["test"] * 2
    assert load_ids(out).tolist()[-1] == "test row 2"
    assert load_identities(out).tolist() == ["x", "y", "y", "", "z", "y"]
    found = {"target": "b", "columns": {"numeric": 1, "categorical": 1}}
    assert summary["table"] == {**found, "missing_values": 1, "duplicate_rows": 2}
    encoding = load_encoding(out)
    alone = Encoding.fit(load_table(out)[:4], encoding.schema)
    np.testing.assert_array_equal(encoding.maps["a"], alone.maps["a"])
    assert encoding.schema.columns[1].categories == ("x", "y", "z")


def test_no_model_of_rows_is_trained_on_heldout_rows_by_default():
    files = ["data.source.file=/a.csv", "data.source.heldout_file=/b.csv"]
    config = composed("data=table", "dpm=table", *files)
    assert config.dpm.train_partitions == ["train"]


def test_a_changed_file_is_noticed(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("a,b\n1,x\n2,y\n")
    stage, runtime = data(file=str(file)), Runtime()
    _, summary = made(tmp_path, stage)
    assert stage.source_changed(summary, runtime) is None
    file.write_text("a,b\n1,x\n2,y\n3,z\n")
    assert "changed" in str(stage.source_changed(summary, runtime))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ({"name": "iris"}, "data.source.name does not accept 'iris'"),
        ({"heldout_file": "a.csv"}, "data.source.heldout_file must be null"),
        ({"file": "a.csv", "heldout_file": "./a.csv"}, "another file than data.source.file"),
        ({"name": "adult", "target": "incom"}, "data.source.target does not accept 'incom'"),
        ({"file": "a.csv", "target": "nope"}, "data.source.target does not accept 'nope'.* a, b"),
    ],
)
def test_wrong_sources_are_refused_in_the_plan(source, says, tmp_path):
    (tmp_path / "a.csv").write_text("a;b\n1;x\n")
    with pytest.raises(ValueError, match=says):
        data(**source).check({}, Runtime(data_root=str(tmp_path)))


def test_a_plan_needs_no_files():
    data(file="absent.csv", target="b").check({}, Runtime())


@pytest.mark.parametrize("name", ["adult", "default", "news"])
def test_absent_files_are_refused_with_their_names(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=PUBLISHED[name].train[0].replace(".", r"\.")):
        data(name).check_sources(Runtime(data_root=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"data\.source\.file="):
        data(file="a.csv").check_sources(Runtime(data_root=str(tmp_path)))


# First lines of the public files.
ADULT = """39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical,\
 Not-in-family, White, Male, 2174, 0, 40, United-States, <=50K
54, ?, 180211, Some-college, 10, Married-civ-spouse, ?, Husband, Asian-Pac-Islander, Male,\
 0, 0, 60, South, >50K

"""
ADULT_TEST = """|1x3 Cross validator
25, Private, 226802, 11th, 7, Never-married, Machine-op-inspct, Own-child, Black, Male, 0,\
 0, 40, United-States, <=50K.
"""
MAGIC = """28.7967,16.0021,2.6449,0.3918,0.1982,27.7004,22.011,-8.2027,40.092,81.8828,g
93.7035,37.9432,3.1454,0.168,0.1011,53.2566,89.0566,11.8175,14.1224,231.9028,h
"""
SHOPPERS = """Administrative,Administrative_Duration,Informational,Informational_Duration,\
ProductRelated,ProductRelated_Duration,BounceRates,ExitRates,PageValues,SpecialDay,Month,\
OperatingSystems,Browser,Region,TrafficType,VisitorType,Weekend,Revenue
0,0.0,0,0.0,1,0.0,0.2,0.2,0.0,0.0,Feb,1,1,1,1,Returning_Visitor,FALSE,FALSE
3,14.5,1,2.5,2,64.0,0.0,0.1,0.0,0.4,Mar,2,2,1,2,New_Visitor,TRUE,TRUE
"""
NEWS = """url, timedelta, n_tokens_title, data_channel_is_tech, shares
http://a/, 731.0, 12.0, 0.0, 593
http://b/, 730.0, 9.0, 1.0, 711
"""
BEIJING = """No,year,month,day,hour,pm2.5,DEWP,TEMP,PRES,cbwd,Iws,Is,Ir
1,2010,1,1,0,NA,-21,-11,1021,NW,1.79,0,0
2,2010,1,2,1,129,-16,-4,1020,SE,4.92,1,0
"""
LAYOUTS = {
    "adult": ({"adult.data": ADULT, "adult.test": ADULT_TEST}, "<=50K", 15, 2),
    "magic": ({"magic04.data": MAGIC}, "g", 11, 0),
    "shoppers": ({"online_shoppers_intention.csv": SHOPPERS}, "FALSE", 18, 0),
    "news": ({"OnlineNewsPopularity.csv": NEWS}, "593", 3, 0),
    "beijing": ({"PRSA_data_2010.1.1-2014.12.31.csv": BEIJING}, "129", 12, 1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_public_tables_are_read_in_their_layout(name, tmp_path):
    files, label, width, missing = LAYOUTS[name]
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    out, summary = made(tmp_path, data(name, folder=str(tmp_path)))
    encoding, frame = load_encoding(out), load_table(out)
    assert len(encoding.schema.columns) == width
    assert summary["table"]["missing_values"] == missing
    target = frame[encoding.schema.target]
    assert label in {str(value).removesuffix(".0") for value in target}
    if name == "adult":
        assert load_partitions(out).tolist() == ["train", "train", "test"]
        assert target.tolist() == ["<=50K", ">50K", "<=50K"]
