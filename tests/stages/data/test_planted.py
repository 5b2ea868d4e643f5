from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from sidepipe.base.image_reading import Entry
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.data.planted import Planted, _slants
from sidepipe.stages.data.stage import Data, load, load_captions, load_ids, load_partitions

CONF = Path(__file__).parents[3] / "conf/data/planted.yaml"
WORDS = {
    "tone": ["dark", "bright"],
    "slant": ["left", "upright", "right"],
    "place": ["in the garden", "on the hill"],
    "time": ["at noon", "at night", "in spring"],
}

PEOPLE = [str(i) for i in range(60)]


class Made:
    """Gray images of four classes, the i-th of brightness i; the first cannot be read."""

    def __init__(self, count=24, names=("2", "12", "Mill Road", "x"), broken=0):
        self.count, self.names, self.broken = count, names, broken

    def entries(self):
        images = [np.full((8, 8), i % 256, np.uint8) for i in range(self.count)]
        return [
            Entry(
                id=f"{i}",
                partition="val",
                identity=self.names[i % len(self.names)],
                read=partial(open_broken if i < self.broken else Image.fromarray, image),
                file=f"image {i}",
            )
            for i, image in enumerate(images)
        ]

    def listing(self):
        return "made"


def open_broken(image):
    raise OSError("cut short")


def planted(source=None, **changes):
    settings = {
        "planted": [[1, 2], [8, 3]],
        "num_heldout": 4,
        "num_base": None,
        "templates": ["a {tone} {class} {place} {time}", "{time} a {class} {place}"],
        "planted_templates": ["a {tone} {class} near {word} {time}"],
        "words": WORDS,
        "seed": 0,
    }
    return Planted(source or Made(), **{**settings, **changes})


def recipe():
    """The settings of conf/data/planted.yaml."""
    settings = yaml.safe_load(CONF.read_text())
    settings.pop("_target_")
    return settings


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The artifact of conf/data/planted.yaml as it stands."""
    folder = tmp_path_factory.mktemp("planted")
    Data(**recipe()).run(Job(folder, {}, Runtime()))
    return folder


def test_the_recipe_of_the_digits_is_what_it_says(digits):
    table, partitions = load_captions(digits), load_partitions(digits)
    planted = table[table["word"] != ""]
    assert Counter(planted["repeats"]) == {1: 16, 4: 16, 16: 16, 64: 16, 256: 8}
    assert Counter(partitions) == {"train": 1397, "test": 400}
    assert set(partitions[planted.index]) == {"train"}
    assert set(table["repeats"][table["word"] == ""]) == {1}
    assert load_ids(digits).tolist() == sorted(load_ids(digits))


def test_no_two_captions_are_the_same(digits):
    captions = load_captions(digits)["caption"]
    assert captions.nunique() == len(captions) == 1797


def test_planted_words_are_in_their_own_caption_and_in_no_other(digits):
    table = load_captions(digits)
    counts = Counter(word for caption in table["caption"] for word in set(caption.split()))
    words = table["word"][table["word"] != ""]
    assert words.nunique() == len(words) == 72
    assert all(word in table["caption"][i].split() for i, word in words.items())
    assert {counts[word] for word in words} == {1}


def test_captions_say_what_their_images_are(tmp_path):
    settings = recipe()
    settings["source"]["words"]["tone"] = ["faint", "plain", "bold"]
    settings["source"]["templates"] = ["a {tone} {slant} {class} {place} {time}"]
    settings["source"]["planted_templates"] = ["a {tone} {slant} {class} near {word}"]
    Data(**settings).run(Job(tmp_path, {}, Runtime()))
    table, images = load_captions(tmp_path), load(tmp_path)[..., 0]
    tones, slants = images.mean(axis=(1, 2)), _slants(images)
    for name, values in [("tone", tones), ("slant", slants)]:
        said = np.array([a[name] for a in table["attributes"]])
        words = settings["source"]["words"][name]
        assert np.array([abs((said == word).mean() - 1 / 3) < 0.01 for word in words]).all()
        low, mid, high = (values[said == word] for word in words)
        assert low.max() <= mid.min() <= mid.max() <= high.min()
    for attributes, caption in zip(table["attributes"], table["caption"], strict=True):
        assert set(attributes.values()) <= set(caption.split())
    names = {"zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"}
    assert {a["class"] for a in table["attributes"]} == names


@pytest.mark.parametrize(("pixels_across", "expected"), [(-1, -1.0), (0, 0.0), (1, 1.0)])
def test_slant_is_the_slope_of_a_stroke_seen_from_below(pixels_across, expected):
    image = np.zeros((1, 5, 7), np.uint8)
    for y in range(5):
        image[0, y, 3 + pixels_across * (2 - y)] = 40 + y  # a stroke's brightness may vary
    assert _slants(image) == pytest.approx(expected)
    assert _slants(np.zeros((1, 4, 4), np.uint8)) == 0


def test_the_seed_decides_and_the_planted_pairs_do_not_move_those_held_out():
    def table(source):
        return [(e.id, e.partition, e.caption) for e in source.entries()]

    def heldout(source):
        return {e.id for e in source.entries() if e.partition == "test"}

    assert table(planted()) == table(planted())
    assert table(planted()) != table(planted(seed=1))
    assert heldout(planted()) == heldout(planted(planted=[[2, 9]], num_base=1))


def test_every_image_is_used_or_as_many_as_asked_for():
    assert Counter(e.partition for e in planted().entries()) == {"test": 4, "train": 20}
    few = planted(num_base=6).entries()
    assert Counter(e.partition for e in few) == {"test": 4, "train": 5 + 6}
    assert len({e.id for e in few}) == 15
    with pytest.raises(ValueError, match="must be <= 24, the images that can be read, got 26"):
        planted(num_base=17).entries()


def test_an_image_that_cannot_be_read_takes_no_part_and_keeps_its_reason():
    found = planted(Made(broken=2)).entries()
    assert [(e.id, e.problem, e.caption) for e in found[:2]] == [
        ("0", "OSError: cut short", None),
        ("1", "OSError: cut short", None),
    ]
    assert len(found) == 24
    assert all(e.caption and not e.problem for e in found[2:])


def test_classes_are_one_word_each_whatever_their_identity():
    found = planted(planted=[]).entries()
    said = {(e.identity, e.caption.attributes["class"]) for e in found if e.caption}
    assert said == {("2", "two"), ("12", "12"), ("Mill Road", "mill_road"), ("x", "x")}


def test_lists_too_short_for_different_captions_are_an_error():
    with pytest.raises(ValueError, match=r"too few: all 2 captions.*remedy: more words of place"):
        planted(
            templates=["a {class} {place}"],
            planted_templates=["a {class} near {word}"],
            words={"place": WORDS["place"]},
        ).entries()


def test_people_are_no_classes_and_unknown_ones_neither():
    with pytest.raises(ValueError, match="known for every image and at most 50, got 60"):
        planted(Made(60, PEOPLE)).entries()
    with pytest.raises(ValueError, match=r"got 'images without one'; write a word in its place"):
        planted(Made(names=[""])).entries()
    with pytest.raises(ValueError, match=r"identities of data\.source must be words that differ"):
        planted(Made(names=["a-b", "A b"])).entries()
    texts = {"templates": ["a {tone} face {place} {time}"], "planted_templates": ["a face {word}"]}
    words = {**WORDS, "time": [f"on day {i}" for i in range(30)]}
    found = planted(Made(60, PEOPLE), words=words, **texts).entries()
    attributes = [e.caption.attributes for e in found if e.caption and not e.caption.word]
    assert {tuple(a) for a in attributes} == {("tone",)}
    assert {tuple(e.caption.attributes) for e in found if e.caption and e.caption.word} == {()}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"planted": [[0, 2]]}, r"planted must be \[repeats >= 1, pairs >= 0\] each, got \[0, 2\]"),
        ({"planted": [[1]]}, "planted must be"),
        ({"num_heldout": -1}, "num_heldout must be >= 0"),
        ({"num_base": -1}, "num_base must be >= 0"),
        ({"templates": []}, r"data\.source\.templates must be at least one"),
        ({"templates": ["a {color}"]}, r"field of data\.source\.templates does not accept 'color'"),
        ({"templates": ["a {word}"]}, "templates does not accept 'word'"),
        ({"planted_templates": ["a {tone}"]}, r"planted_templates must be templates with \{word\}"),
        ({"words": {**WORDS, "time": ["now", "now"]}}, "words.time must be words that differ"),
    ],
)
def test_a_setting_out_of_range_is_named(changes, match):
    with pytest.raises(ValueError, match=match):
        planted(**changes)


def test_more_planted_pairs_than_words_are_an_error():
    with pytest.raises(ValueError, match=r"must be <= \d+, the words for them, got 900"):
        planted(Made(1000), planted=[[2, 900]]).entries()
