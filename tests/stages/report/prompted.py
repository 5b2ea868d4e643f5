"""Finished artifacts of prompts for the report: the real stages on planted pairs and an untrained
model, of which a loose threshold calls some prompts memorized."""

from dataclasses import asdict

import numpy as np
import torch
from diffusers import DDPMScheduler
from tests.models.text.tiny import text_encoder, unet
from tests.stages.report.planted import RUNTIME

from sidepipe.engine import artifacts
from sidepipe.engine.stage import Job
from sidepipe.models.text.model import TextModel
from sidepipe.models.text.pipeline import save_model
from sidepipe.models.text.words import word_tokenizer
from sidepipe.stages.data.stage import Data, load_captions, load_partitions
from sidepipe.stages.detect.stage import DetectPrompts
from sidepipe.stages.explain.stage import Explain
from sidepipe.stages.mitigate.stage import Mitigate
from sidepipe.stages.mitigate.strategies import (
    Adversary,
    AttentionScaling,
    LoweredEmbedding,
    NoMethod,
)

SOURCE = {
    "_target_": "sidepipe.stages.data.planted.Planted",
    "source": {"_target_": "sidepipe.stages.data.sources.Digits"},
    "planted": [[1, 4], [4, 4], [16, 4]],
    "num_heldout": 80,
    "num_base": 30,
    "templates": ["a {tone} {slant} {class} {place} {time}"],
    "planted_templates": ["a {tone} {slant} {class} near {word} {time}"],
    "words": {
        "tone": ["faint", "bold"],
        "slant": ["backward", "forward"],
        "place": [f"in room {n}" for n in "abcdefghijk"],
        "time": ["at noon", "at dawn", "at dusk"],
    },
    "seed": 0,
}
TRAJECTORY = {"num_inference_steps": 4, "guidance_scale": 5.0, "precision": "32-true", "seed": 0}
FEATURES = {"_target_": "sidepipe.features.encoders.PixelsL2"}
DETECT = {
    **TRAJECTORY,
    "prompts": None,
    "calibration_prompts": None,
    "truth_images": None,
    "num_train_prompts": 8,
    "num_heldout_prompts": 40,
    "num_generations": 2,
    "signals": ["norm", "hessian", "entropy", "ssim", "tile_l2"],
    "generations": [1, 2],
    "steps": [1, 4],
    "decision": {"generations": 2, "steps": 1},
    "attention_layer": None,
    "features": FEATURES,
    "label_threshold": 0.56,
    "label_false_positive_rate": 0.05,
    "copied_share": 0.5,
    "false_positive_rate": 0.1,
}
EXPLAIN = {**TRAJECTORY, "num_prompts": 24, "num_generations": 1}
MITIGATE = {
    **TRAJECTORY,
    "num_prompts": 4,
    "num_generations": 2,
    "copied_share": 0.5,
    "adversary": Adversary(num_steps=2, lr=0.05),
    "clip": None,
    "features": FEATURES,
}
MAX_TOKENS = 16
METHODS = {
    "none": NoMethod(),
    "embedding": LoweredEmbedding(max_iterations=2),
    "attention": AttentionScaling(),
}


class Prompted:
    """Finished artifacts of data, dpm, detect, explain and mitigate below one folder."""

    def __init__(self, folder, detect=DETECT, methods=METHODS, known=True):
        """known: whether anybody knows what the model was trained on."""
        self.folder, self.known = folder, known
        self.data()
        self.dpm()
        inputs = {"data": "da", "dpm": "dp"}
        self.inputs = {"detect": self.made(DetectPrompts(**detect), "de", inputs, detect)}
        inputs |= {"detect": "de"}
        of_model = {"dpm": "dp", "detect": "de"}
        self.inputs["explain"] = self.made(Explain(**EXPLAIN), "xp", of_model, EXPLAIN)
        for method in methods:
            stage = Mitigate(**MITIGATE, method=METHODS[method])
            made = self.made(stage, f"mi-{method}", inputs, asdict(stage))
            self.inputs[f"mitigate {method}"] = made

    def made(self, stage, key, inputs, settings):
        """Runs the stage and finishes its artifact."""
        folder = self.folder / stage.name / key
        folder.mkdir(parents=True)
        read = {name: self.folder / name / of for name, of in inputs.items()}
        summary = stage.run(Job(folder, read, RUNTIME))
        target = f"{type(stage).__module__}.{type(stage).__qualname__}"
        self.finish(folder, inputs, {"_target_": target, **settings}, summary)
        return folder

    def finish(self, folder, inputs, settings, summary):
        content = {"stage": folder.parent.name, "version": 1, "key": folder.name}
        content |= {"inputs": inputs, "settings": settings, "summary": summary, "seconds": 12.34}
        artifacts.write_manifest(folder, content)

    def data(self):
        settings = {"source": SOURCE, "size": 8, "channels": 1, "center_crop": None}
        settings["on_bad_file"] = "error"
        self.made(Data(**settings), "da", {}, settings)

    def dpm(self):
        """An untrained model that knows the captions' words."""
        data, folder = self.folder / "data" / "da", self.folder / "dpm" / "dp"
        folder.mkdir(parents=True)
        seen, captions = load_partitions(data) == "train", load_captions(data)["caption"]
        seen &= self.known
        np.save(folder / "subset.npy", np.flatnonzero(seen))
        np.save(folder / "heldout.npy", np.flatnonzero(~seen))
        torch.manual_seed(0)
        tokenizer, scheduler = word_tokenizer(captions, MAX_TOKENS), DDPMScheduler()
        parts = {"unet": unet(1, 8), "scheduler": scheduler, "tokenizer": tokenizer}
        parts["text_encoder"] = text_encoder(len(tokenizer), MAX_TOKENS)
        save_model(TextModel(parts).eval(), folder / "model")
        summary = {"num_train_images": int(seen.sum()), "num_heldout_images": int((~seen).sum())}
        summary |= {"num_parameters": 54_000, "num_train_pairs": 114, "epochs": 750.0}
        summary |= {"val/loss_train": 0.0312, "val/loss_heldout": 0.0451}
        target = {"_target_": "sidepipe.stages.dpm.text.TrainTextDPM", "max_steps": 6000}
        self.finish(folder, {"data": "da"}, target, summary)
