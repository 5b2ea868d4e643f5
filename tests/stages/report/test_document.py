"""The page as a document: its pairs, its links and labels, and that it needs nothing else."""

import re
from html.parser import HTMLParser

import numpy as np
from tests.stages.report.conftest import NASTY
from tests.stages.report.pages import HITS, pixels, rows_of
from tests.stages.report.planted import ATTACKS

from sidepipe.stages.report.stage import page_path


def test_a_page_on_prompts_needs_nothing_from_outside(prompted):
    made, _, page = prompted
    assert all(address.startswith("data:image/") for address in page.addresses)
    text = page_path(made.folder / "report").read_text()
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|<base", text)


def test_the_page_needs_nothing_from_outside(page, folder):
    policies = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'unsafe-inline'"
    ]
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    text = page_path(folder).read_text()
    assert not re.search(r"https?:|url\(|@import|<link|<iframe|<base", text)


def test_every_picture_has_a_text(page, prompted):
    for one in (page, prompted[2]):
        assert all(image["alt"].strip() for image in one.all("img"))


def test_every_link_leads_somewhere(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    links = [attrs["href"] for attrs in page.all("a")]
    assert links == [f"#gallery-{number}" for number in (1, 2, 3)]
    assert {link[1:] for link in links} <= set(ids)
    assert len(set(ids)) == len(ids)


def test_every_head_of_a_table_says_what_it_heads(page, prompted):
    for one in (page, prompted[2]):
        assert {attrs.get("scope") for attrs in one.all("th")} == {"col", "colgroup", "row"}
        assert len(one.tables) == len(one.all("table"))  # each has a caption of its own


def test_every_control_has_a_label(folder):
    text = page_path(folder).read_text()
    labeled = "".join(re.findall(r"<label>.*?</label>", text, re.DOTALL))
    for control in ("<input", "<select"):
        assert labeled.count(control) == text.count(control) > 0


def every_page(folder, *others):
    return [folder, *(made.folder / "report" for made, *_ in others)]


def test_every_tag_is_closed(made, folder, unusual, similar, blind, prompted, unknown):
    void = {"meta", "img", "br", "input", "!doctype"}

    class Balance(HTMLParser):
        def __init__(self, text):
            super().__init__()
            self.open_tags = []
            self.feed(text)

        def handle_starttag(self, tag, attrs):
            self.open_tags.extend([tag] if tag not in void else [])

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag, self.getpos()

    for one in every_page(folder, unusual, similar, blind, prompted, unknown):
        assert Balance(page_path(one).read_text()).open_tags == []


def test_the_name_of_an_attack_is_text_and_nothing_else(unusual, similar):
    for (_, _, page), scripts in ((unusual, 0), (similar, 2)):
        assert len(page.all("script")) == scripts
        assert NASTY in page.cells(HITS)


# Pairs


def cards(page):
    """(attack, said, training image, gamma) of every pair, in the order of the page."""
    gallery = page.text.split("The closest pairs", 1)[1].split("Without the training images")[0]
    found = r"(\w+)(new hit|no hit|hit) · training image (\S+).*?training ?([\d.]+) "
    return re.findall(found, gallery)


def closeness(named):
    return float(named[1]["train_gamma"])


def test_without_a_script_all_pairs_stand_there_by_closeness_and_name_the_hits(page, outputs):
    words = {("0", "0"): "no hit", ("1", "0"): "hit", ("1", "1"): "new hit"}
    expected = [
        (name, words[row["hit"], row["new"]], row["train_id"], f"{float(row['train_gamma']):.3f}")
        for rank in zip(*(rows_of(outputs, name, "gallery.csv") for name in ATTACKS), strict=True)
        for name, row in sorted(zip(ATTACKS, rank, strict=True), key=closeness)
    ]
    assert cards(page) == expected
    assert len(expected) == 6 * len(ATTACKS)
    assert {name for name, *_ in expected[:3]} == set(ATTACKS)


def pair_images(page):
    """The attributes of the three images of every pair, after the three beside the answer."""
    alts = ("generated image", "its nearest training image", "its nearest held-out image")
    images = [image for image in page.all("img") if image["alt"].startswith(alts)][9:]
    return [images[i : i + 3] for i in range(0, 3 * 6 * len(ATTACKS), 3)]


def test_a_small_image_is_embedded_pixel_for_pixel_and_enlarged_by_a_whole_factor(page, outputs):
    name = cards(page)[0][0]
    triple = np.load(outputs.inputs[name] / "gallery.npy")[0]
    for shown, image in zip(pair_images(page)[0], triple, strict=True):
        assert shown["src"].startswith("data:image/png;base64,")
        assert np.array_equal(pixels(shown), image[:, :, 0])
        assert int(shown["width"]) % 8 == 0
        assert shown["class"] == "pixels"
