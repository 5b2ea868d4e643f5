"""A page as the tests ask about it, and how one is made."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image
from tests.stages.report.planted import RUNTIME

from sidepipe.engine.stage import Job
from sidepipe.stages.report.stage import Report, page_path

# Captions of the tables.
HITS = "Generated images that match a training image"
BANDS = "The paper's measures, in percent of the images"
COST = "Settings and cost of each attack"
RAREFACTION = "Training images found, and the estimated rest"
NOVELTY = "Hits already among plain samples, and new hits"
OVERLAP = "Overlap of the attacks"
BLIND = "Candidates ranked without the training images"
RULES = "Images that published rules classify as copies"
QUALITY = "Image quality"
DISTANCES = "Distance to training images compared with held-out images"
# Signs that say where a line may break.
PLAIN = {0x2011: "-", 0xA0: " ", 0x200B: None}
REPORT = Report(title="What came out")


def report(folder, outputs):
    """The summary and the page of a report on the attacks of `outputs`."""
    folder.mkdir()
    summary = REPORT.run(Job(folder, outputs.inputs, RUNTIME))
    return summary, Page(page_path(folder).read_text())


class Page(HTMLParser):
    """What the tests ask of a page: tables by caption, visible words, headings, tags, addresses."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.addresses, self.words = {}, [], [], []
        self.headings, self.captions, self.cell, self.open = [], [], None, []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        names = ("src", "href", "action", "srcset", "data", "poster")
        self.addresses += [value for name, value in attrs if name in names]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)
        if tag == "table":
            self.rows, self.caption = [], ""
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        self.open.pop()
        if tag == "table":
            self.tables[self.caption.partition(" · ")[0]] = self.rows
            self.captions.append(self.caption)
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell.translate(PLAIN))
            self.cell = None

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.words.append(data)
        if "caption" in self.open:
            self.caption += data
        if "h2" in self.open:
            self.headings[-1] += data
        if self.cell is not None:
            self.cell += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def cells(self, table):
        """{attack: cells} of a table whose head has two rows."""
        return {name: cells for name, *cells in self.tables[table][2:]}

    def cell_of(self, table, attack, column):
        return self.cells(table)[attack][self.tables[table][1].index(column) - 1]


def pixels(image, side=8):
    """The pixels of a small image on the page, which is enlarged by a whole factor."""
    with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
        enlarged = np.asarray(picture)
    factor = len(enlarged) // side
    plain = enlarged[::factor, ::factor]
    assert factor > 1
    assert np.array_equal(enlarged, np.kron(plain, np.ones((factor, factor), np.uint8)))
    return plain


def results(outputs, name):
    return json.loads((outputs.inputs[name] / "results.json").read_text())


def rows_of(outputs, name, file):
    with (outputs.inputs[name] / file).open(newline="") as opened:
        return list(csv.DictReader(opened))


def hit_images(outputs, name):
    rows = rows_of(outputs, name, "nearest.csv")
    return {row["train_index"] for row in rows if row["hit"] == "1"}
