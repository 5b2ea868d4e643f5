"""Prompts and their roles: planted ones all, no caption twice, unseen ones halved by seed."""

import logging

import numpy as np
import pandas as pd
import pytest
from tests.stages.detect.fakes import Fake

from sidepipe.models.text.prompts import Prompt
from sidepipe.models.text.words import cut_off
from sidepipe.stages.detect.prompts import of_data, of_files


def captions(count=60, planted=4):
    words = ["zyx" if i < planted else "" for i in range(count)]
    texts = [f"caption {i}" for i in range(count)]
    repeats = [16 if word else 1 for word in words]
    return pd.DataFrame({"caption": texts, "repeats": repeats, "word": words})


def chosen(table=None, num_train=5, num_heldout=20, seed=0):
    table = captions() if table is None else table
    ids = np.array([f"image{i}" for i in range(len(table))])
    train, unseen = np.arange(30)[::-1], np.arange(30, 60)
    return of_data(table, ids, train, unseen, num_train, num_heldout, seed)


def test_planted_pairs_are_all_there_and_the_others_as_many_as_asked():
    table = chosen()
    counts = table["role"].value_counts().to_dict()
    assert counts == {"planted": 4, "train": 5, "test": 10, "calibration": 10}
    planted = table[table["role"] == "planted"]
    assert planted["row"].tolist() == [0, 1, 2, 3]
    assert planted["id"].tolist() == ["image0", "image1", "image2", "image3"]
    assert (planted["repeats"] == 16).all()


def test_training_and_unseen_prompts_come_from_their_own_rows_and_unseen_ones_were_seen_0_times():
    table = chosen()
    of_train = table["role"].isin(["planted", "train"])
    assert (table["row"][of_train] < 30).all()
    assert (table["row"][~of_train] >= 30).all()
    assert (table["repeats"][~of_train] == 0).all()
    assert table["row"].is_unique


def test_more_prompts_are_taken_where_there_are_fewer():
    counts = chosen(num_train=1000, num_heldout=1000)["role"].value_counts()
    assert counts.to_dict() == {"planted": 4, "train": 26, "test": 15, "calibration": 15}


def test_the_seed_decides_and_fewer_training_prompts_are_within_more():
    assert chosen().equals(chosen())
    assert not chosen().equals(chosen(seed=1))
    few, many = (chosen(num_train=n).query("role == 'train'")["row"] for n in (3, 8))
    assert set(few) <= set(many)


def test_an_unseen_caption_that_training_saw_is_left_out_and_so_are_doubles():
    table = captions()
    table.loc[40, "caption"] = "caption 7"
    table.loc[41, "caption"] = "caption 42"
    found = chosen(table, num_train=1000, num_heldout=1000)
    assert found["caption"].is_unique
    assert 40 not in found["row"].tolist()
    assert len(found) == 58


def test_prompts_of_files_keep_what_the_file_says_and_calibration_has_none_of_them(caplog):
    prompts = [Prompt("7", "one", memorized=True), Prompt("8", "two"), Prompt("9", "three")]
    with caplog.at_level(logging.WARNING):
        table = of_files(prompts, [Prompt("7", "four", memorized=False), Prompt("1", "two")])
    assert table["caption"].tolist() == ["one", "two", "three", "four"]
    assert table["role"].tolist() == ["test", "test", "test", "calibration"]
    assert table["memorized"].tolist()[0] is True
    assert table["memorized"].isna().tolist() == [False, True, True, False]
    assert "left out 1 prompts as duplicates" in caplog.text


def test_what_the_encoder_does_not_take_is_named(caplog):
    long = "twenty characters ok, and more"
    with caplog.at_level(logging.WARNING):
        assert cut_off(Fake(), ["short", long]) == ["", long[20:]]
    assert "1 of 2 prompts are longer than the 20 tokens" in caplog.text
    assert "loses ', and more'" in caplog.text


def test_prompts_that_fit_say_nothing(caplog):
    assert cut_off(Fake(), ["short"]) == [""]
    assert not caplog.records


@pytest.mark.parametrize("role", ["test", "calibration"])
def test_no_prompt_is_in_two_roles(role):
    table = chosen()
    others = table[table["role"] != role]["caption"]
    assert not set(table[table["role"] == role]["caption"]) & set(others)
