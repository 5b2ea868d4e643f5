"""Finished artifacts for the report: scanned digits, attacks that plant copies, scored by the real
evaluate stage."""

import csv
import json

import numpy as np
from sklearn.datasets import load_digits

from sidepipe.base.images import save_grid
from sidepipe.engine import artifacts
from sidepipe.engine.shards import write_shard
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.evaluate.stage import Evaluate
from sidepipe.stages.reference.stage import Reference

RUNTIME = Runtime(accelerator="cpu")
NUM_LABELS = 20
L2 = {
    "features": {"_target_": "sidepipe.features.encoders.PixelsL2"},
    "truth": "train",
    "bands": {"low": [0.1, 0.125], "mid": [0.075, 0.1], "high": [None, 0.075]},
    "curve": [0.0, 0.2, 21],
    "false_positive_rates": [0.001, 0.01],
    "gallery_pairs": 6,
}
COSINE = {
    "features": {"_target_": "sidepipe.features.encoders.Pixels"},
    "truth": "train",
    "bands": {"low": [0.9, 0.95], "mid": [0.95, 0.98], "high": [0.98, None]},
    "curve": [0.0, 1.0, 21],
    "false_positive_rates": [0.02],
    "gallery_pairs": 6,
}
GUIDANCE = {
    "guidance_scale": 1.5,
    "guidance_schedule": "constant",
    "max_guidance_norm": None,
    "t_min": 0,
    "t_max": None,
    "targets": "uniform",
    "target_fraction": 0.1,
}
# name -> (surrogate, share of planted copies, guidance)
ATTACKS = {
    "unconditional": ("none", 0.05, {}),
    "side": ("classifier", 0.1, {}),
    "early": ("posterior", 0.25, {"t_min": 200, "targets": "top_cohesion"}),
}


class Outputs:
    """Finished artifacts of every stage below one folder, except the report's."""

    def __init__(
        self,
        folder,
        attacks=ATTACKS,
        evaluate=L2,
        num_train=256,
        num_heldout=1200,
        num_images=200,
        skipped=(),
        source="sidepipe.stages.data.sources.Digits",
        seed=0,
    ):
        self.folder, self.num_images, self.rng = folder, num_images, np.random.default_rng(seed)
        self.source = {"_target_": source}
        digits = load_digits().images[: num_train + num_heldout] / 16 * 255
        self.images = digits.round().astype(np.uint8)[..., None]
        self.num_train, self.skipped, self.evaluate = num_train, list(skipped), evaluate
        self.data()
        self.dpm()
        if evaluate["truth"] == "train":
            self.reference()
        self.generate()
        self.label()
        self.classifier()
        self.inputs = {
            name: self.attack(i, *attack) for i, (name, attack) in enumerate(attacks.items())
        }

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
        summary = {"num_images": len(self.images), "shape": [8, 8, 1], "skipped": self.skipped}
        settings = {"source": self.source, "size": 8, "center_crop": None}
        self.finish("data", "da", {}, settings, summary)

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

    def reference(self):
        settings = {name: self.evaluate[name] for name in ("features", "false_positive_rates")}
        inputs = {"data": "da", "dpm": "dp"}
        folders = {name: self.folder / name / key for name, key in inputs.items()}
        summary = Reference(**settings).run(Job(self.start("reference", "re"), folders, RUNTIME))
        self.finish("reference", "re", inputs, settings, summary)

    def generate(self):
        folder = self.start("generate", "ge")
        write_shard(folder, 0, self.samples(0.05, 2 * self.num_images))
        summary = {"num_images": 2 * self.num_images, "unet_forwards": 200_000}
        summary |= {"surrogate_gradients": 0}
        self.finish("generate", "ge", {"dpm": "dp"}, {"num_images": 400}, summary)

    def label(self):
        folder = self.start("label", "la")
        save_grid(folder / "clusters.png", self.images[:96], columns=12)
        with (folder / "clusters.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["cluster", "size", "cohesion", "kept", "label", "labeled"])
            for k in range(NUM_LABELS):
                writer.writerow([k, 4, f"{1 - 0.02 * k:.6f}", 1, k, 4])
        summary = {"num_labels": NUM_LABELS, "num_clusters": 100, "num_labeled": 400}
        summary["transform"] = "pixels-centered-v1"
        summary["cohesion_quantiles"] = [0.41, 0.72, 0.81, 0.9, 0.99]
        self.finish("label", "la", {"generate": "ge"}, {"num_clusters": 100}, summary)

    def classifier(self):
        folder = self.start("classifier", "cl")
        with (folder / "quality.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            names = [
                "t_from",
                "t_to",
                "cross_entropy",
                "accuracy",
                "chance_cross_entropy",
                "chance_accuracy",
                "label_entropy",
            ]
            writer.writerow(names)
            for i in range(10):
                entropy, accuracy = 0.4 + 0.45 * i, 0.9 - 0.09 * i
                row = [100 * i, 100 * i + 100, round(entropy, 6), round(accuracy, 6)]
                writer.writerow([*row, 4.4067, 0.03, 3.9])
        inputs = {"dpm": "dp", "generate": "ge", "label": "la"}
        self.finish("classifier", "cl", inputs, {"max_steps": 2000}, {"num_labels": NUM_LABELS})

    def attack(self, number, surrogate, copied, guidance):
        key = f"ex{number}"
        folder = self.start("extract", key)
        cost = {"gradient_cost": 0.5, "gradient_seconds": 0.62}
        (folder / "gradient_cost.json").write_text(json.dumps(cost))
        write_shard(folder, 0, self.samples(copied, self.num_images))
        targets = self.rng.integers(0, NUM_LABELS, self.num_images)
        np.save(
            folder / "targets.npy", np.full_like(targets, -1) if surrogate == "none" else targets
        )
        used = {"none": ["dpm"], "posterior": ["dpm", "generate", "label"]}
        keys = {"dpm": "dp", "generate": "ge", "label": "la", "classifier": "cl"}
        inputs = {name: keys[name] for name in used.get(surrogate, keys)}
        gradients = 0 if surrogate == "none" else 40 * self.num_images
        summary = {"num_images": self.num_images, "unet_forwards": 50 * self.num_images}
        summary |= {"surrogate_gradients": gradients, "gradient_cost": 0.5 if gradients else 0.0}
        summary |= {"network_evaluations": 50 * self.num_images + gradients // 2}
        if surrogate != "none":
            summary["num_targets"] = 9 if guidance.get("targets") == "top_cohesion" else NUM_LABELS
        settings = {"surrogate": {"name": surrogate}, "guidance": {**GUIDANCE, **guidance}}
        settings |= {"refine": {"name": "none"}}
        self.finish("extract", key, inputs, settings, summary)
        inputs = {"data": "da", "generate": "ge", "reference": "re", "extract": key}
        if self.evaluate["truth"] == "none":
            inputs = {"extract": key}
        folders = {name: self.folder / name / key for name, key in inputs.items()}
        summary = Evaluate(**self.evaluate).run(
            Job(self.start("evaluate", f"ev{number}"), folders, RUNTIME)
        )
        return self.finish("evaluate", f"ev{number}", inputs, self.evaluate, summary)

    def samples(self, copied, number):
        """Blends of two images, seen or not; a share are nearly exact copies of training images.

        Half of the copies are of the first eight training images, as a model repeats a few.
        """
        one, other = self.rng.choice(len(self.images), (2, number))
        one[: number // 2] = self.rng.choice(self.train, number // 2)
        copies = round(number * copied)
        one[: copies // 2] = self.rng.choice(self.train[:8], copies // 2)
        weight = self.rng.uniform(0.5, 0.9, (number, 1, 1, 1))
        weight[:copies] = 1
        blend = weight * self.images[one] + (1 - weight) * self.images[other]
        noisy = blend + self.rng.normal(0, 8, blend.shape)
        return self.rng.permutation(noisy.clip(0, 255).round().astype(np.uint8))
