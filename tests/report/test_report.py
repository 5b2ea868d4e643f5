"""The report on small artifacts: scanned digits, attacks that plant copies, scored by the real
evaluate stage."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sidepipe import artifacts
from sidepipe.evaluate.stage import Evaluate
from sidepipe.images import save_grid
from sidepipe.report.stage import Report, load_table, page_path
from sidepipe.stage import Runtime

RUNTIME = Runtime(accelerator="cpu")
REPORT = Report(title="What came out")
L2 = {
    "features": {"_target_": "sidepipe.features.encoders.PixelsL2"},
    "bands": {"low": [0.1, 0.125], "mid": [0.075, 0.1], "high": [None, 0.075]},
    "curve": [0.0, 0.2, 21],
    "false_positive_rates": [0.001, 0.01],
    "gallery_pairs": 6,
}
COSINE = {
    "features": {"_target_": "sidepipe.features.encoders.Pixels"},
    "bands": {"low": [0.9, 0.95], "mid": [0.95, 0.98], "high": [0.98, None]},
    "curve": [0.0, 1.0, 21],
    "false_positive_rates": [0.01],
    "gallery_pairs": 6,
}
GUIDANCE = {"guidance_scale": 1.5, "t_min": 0, "t_max": None, "targets": "uniform", "target_fraction": 0.1}
# name -> (surrogate, share of planted copies, guidance)
ATTACKS = {
    "unconditional": ("none", 0.05, {}),
    "side": ("classifier", 0.1, {}),
    "early": ("posterior", 0.25, {"t_min": 200, "targets": "top_cohesion"}),
}


class Outputs:
    """Finished artifacts of every stage below one folder, except the report's."""

    def __init__(
        self, folder, attacks=ATTACKS, evaluate=L2, num_train=256, num_heldout=1200, num_images=200, skipped=()
    ):
        self.folder, self.num_images, self.rng = folder, num_images, np.random.default_rng(0)
        digits = load_digits().images[: num_train + num_heldout] / 16 * 255
        self.images = digits.round().astype(np.uint8)[..., None]
        self.num_train, self.skipped, self.evaluate = num_train, list(skipped), evaluate
        self.data()
        self.dpm()
        self.generate()
        self.label()
        self.classifier()
        self.inputs = {name: self.attack(i, *attack) for i, (name, attack) in enumerate(attacks.items())}

    def start(self, stage, key):
        folder = self.folder / stage / key
        folder.mkdir(parents=True)
        return folder

    def finish(self, stage, key, inputs, settings, summary):
        content = {"stage": stage, "version": 1, "key": key, "settings": settings, "seconds": 12.34}
        folder = self.folder / stage / key
        artifacts.write_manifest(folder, {**content, "inputs": inputs, "summary": summary})
        return folder

    def data(self):
        folder = self.start("data", "da")
        np.save(folder / "images.npy", self.images)
        with (folder / "ids.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["index", "id", "partition", "identity"])
            writer.writerows([i, f"{i:04d}", "train", ""] for i in range(len(self.images)))
        source = {"_target_": "sidepipe.data.sources.Digits"}
        summary = {"num_images": len(self.images), "shape": [8, 8, 1], "skipped": self.skipped}
        self.finish("data", "da", {}, {"source": source, "size": 8, "center_crop": None}, summary)

    def dpm(self):
        folder = self.start("dpm", "dp")
        order = self.rng.permutation(len(self.images))
        self.train, self.heldout = order[: self.num_train], order[self.num_train :]
        np.save(folder / "subset.npy", self.train)
        np.save(folder / "heldout.npy", self.heldout)
        sizes = {"num_train_images": len(self.train), "num_heldout_images": len(self.heldout)}
        losses = {"val/loss_train": 0.0312, "val/loss_heldout": 0.0451}
        summary = {**sizes, "num_parameters": 268_000, "epochs": 750.0, **losses}
        self.finish("dpm", "dp", {"data": "da"}, {"max_steps": 6000, "lr": 0.001}, summary)

    def generate(self):
        self.start("generate", "ge")
        summary = {"num_images": 4000, "unet_forwards": 200_000, "surrogate_gradients": 0}
        self.finish("generate", "ge", {"dpm": "dp"}, {"num_images": 4000}, summary)

    def label(self):
        folder = self.start("label", "la")
        save_grid(folder / "clusters.png", self.images[:96], columns=12)
        summary = {"num_labels": 82, "num_clusters": 100, "num_labelled": 4000, "transform": "pixels-centred-v1"}
        summary["cohesion_quantiles"] = [0.41, 0.72, 0.81, 0.9, 0.99]
        self.finish("label", "la", {"generate": "ge"}, {"num_clusters": 100}, summary)

    def classifier(self):
        folder = self.start("classifier", "cl")
        with (folder / "quality.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            names = ["t_from", "t_to", "cross_entropy", "accuracy", "chance_cross_entropy", "chance_accuracy"]
            writer.writerow(names)
            for i in range(10):
                entropy, accuracy = 0.4 + 0.45 * i, 0.9 - 0.09 * i
                writer.writerow([100 * i, 100 * i + 100, round(entropy, 6), round(accuracy, 6), 4.4067, 0.03])
        inputs = {"dpm": "dp", "generate": "ge", "label": "la"}
        self.finish("classifier", "cl", inputs, {"max_steps": 2000}, {"num_labels": 82})

    def attack(self, number, surrogate, copied, guidance):
        key = f"ex{number}"
        folder = self.start("extract", key)
        (folder / "shards").mkdir()
        np.save(folder / "shards" / "000000.npy", self.samples(copied))
        np.save(folder / "targets.npy", np.full(self.num_images, -1 if surrogate == "none" else 3))
        used = {"none": ["dpm"], "posterior": ["dpm", "generate", "label"]}
        keys = {"dpm": "dp", "generate": "ge", "label": "la", "classifier": "cl"}
        inputs = {name: keys[name] for name in used.get(surrogate, keys)}
        gradients = 0 if surrogate == "none" else 40 * self.num_images
        summary = {"num_images": self.num_images, "unet_forwards": 50 * self.num_images}
        summary |= {"surrogate_gradients": gradients}
        if surrogate != "none":
            summary["num_targets"] = 9 if guidance.get("targets") == "top_cohesion" else 82
        self.finish("extract", key, inputs, {"surrogate": surrogate, **GUIDANCE, **guidance}, summary)
        inputs = {"data": "da", "dpm": "dp", "extract": key}
        folders = {name: self.folder / name / key for name, key in inputs.items()}
        summary = Evaluate(**self.evaluate).run(self.start("evaluate", f"ev{number}"), folders, RUNTIME)
        return self.finish("evaluate", f"ev{number}", inputs, self.evaluate, summary)

    def samples(self, copied):
        """Blends of two images, seen or not, and a share of nearly exact copies of training images."""
        one, other = self.rng.choice(len(self.images), (2, self.num_images))
        one[: self.num_images // 2] = self.rng.choice(self.train, self.num_images // 2)
        weight = self.rng.uniform(0.5, 0.9, (self.num_images, 1, 1, 1))
        weight[: round(self.num_images * copied)] = 1
        blend = weight * self.images[one] + (1 - weight) * self.images[other]
        return (blend + self.rng.normal(0, 8, blend.shape)).clip(0, 255).round().astype(np.uint8)


class Page(HTMLParser):
    """What the tests ask of a page: tables, texts, addresses and images."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.scripts, self.addresses, self.images, self.words, self.meta = [], 0, [], [], [], []
        self.buttons, self.cell, self.skip = [], None, None
        self.feed(text)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.addresses += [attrs[name] for name in ("src", "href", "action", "srcset") if name in attrs]
        if tag == "img":
            self.images.append(attrs)
        if tag == "meta":
            self.meta.append(attrs)
        if tag in ("script", "style"):
            self.scripts += tag == "script"
            self.skip = tag
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.skip = None
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.cell)
            self.cell = None

    def handle_data(self, data):
        if self.skip is None:
            self.words.append(data)
        if self.cell is not None:
            self.cell += data

    def rows(self, table):
        """The rows of attacks of the `table`-th table, as {name: cells}."""
        return {row[0]: row[1:] for row in self.tables[table][2:]}


def report(folder, outputs, stage=REPORT):
    folder.mkdir()
    summary = stage.run(folder, outputs.inputs, RUNTIME)
    return summary, Page(page_path(folder).read_text())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outputs")
    outputs = Outputs(folder, skipped=["bad.jpg", "worse.jpg"])
    return outputs, folder / "report", *report(folder / "report", outputs)


def results(outputs, name):
    return json.loads((outputs.inputs[name] / "results.json").read_text())
