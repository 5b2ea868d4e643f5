"""Training on the classes of the data, with a null class."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from tests.tiny import DIGITS, RUNTIME, SETTINGS, checked

from sidepipe.engine.stage import Job
from sidepipe.stages.dpm.classes import ClassDPM
from sidepipe.stages.dpm.module import ClassModule
from sidepipe.stages.generate.stage import load_denoiser


def of_classes(**changes):
    return ClassDPM(**{**SETTINGS, "num_class_labels": 10, "class_dropout": 0.2, **changes})


def test_the_result_is_an_official_model_with_the_digits_and_a_null_class(tmp_path, data):
    stage = of_classes()
    checked(stage, {"data": DIGITS}, RUNTIME)
    stage.check_data(data, {"data": DIGITS}, RUNTIME)
    stage.run(Job(tmp_path, {"data": data}, RUNTIME))
    unet = DDPMPipeline.from_pretrained(tmp_path / "model").unet
    assert unet.config["num_class_embeds"] == stage.num_classes() == 11
    about = json.loads((tmp_path / "classes.json").read_text())
    assert about == {"null_class": 10, "names": list("0123456789")}
    denoiser = load_denoiser(tmp_path, "32-true", by_class=True)
    assert denoiser.classes == list(range(10))
    assert len(list((tmp_path / "previews").glob("*.png"))) == 2


class Recorder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.classes = []

    def forward(self, x_t, t, class_labels):
        from types import SimpleNamespace

        self.classes.append(class_labels)
        return SimpleNamespace(sample=x_t * self.weight)


def test_a_share_of_the_classes_is_dropped_in_training_alone(tmp_path):
    network = Recorder()
    module = ClassModule(
        network,
        torch.linspace(0.9, 0.1, 10),
        "epsilon",
        null_class=10,
        class_dropout=0.3,
        lr=0.1,
        weight_decay=0.0,
        lr_warmup_steps=0,
        random_flip=False,
        seed=0,
        preview_folder=tmp_path,
        image_shape=(1, 8, 8),
    )
    images, classes = torch.zeros(4000, 8, 8, 1, dtype=torch.uint8), torch.arange(4000) % 10
    for training in (True, False):
        module.train(training)
        module.loss(images, classes, torch.Generator().manual_seed(0))
    dropped = network.classes[0] == 10
    assert abs(dropped.float().mean() - 0.3) < 0.03
    assert network.classes[0][~dropped].equal(classes[~dropped])
    assert network.classes[1].equal(classes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_class_labels": 1}, r"dpm.num_class_labels must be >= 2, got 1"),
        (
            {"class_dropout": 0.0},
            r"dpm.class_dropout must be in \(0, 1\), or the null",
        ),
        (
            {"num_class_labels": 9},
            r"must be 10, the classes of the data: 0, 1, 2, 3",
        ),
    ],
)
def test_wrong_settings_are_refused(data, changes, message):
    with pytest.raises(ValueError, match=message):
        of_classes(**changes).check_data(data, {"data": DIGITS}, RUNTIME)


def test_data_without_classes_are_refused(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8, 1), np.uint8))
    rows = "".join(f"{i},{i},train,{who}\n" for i, who in enumerate(["a", "b", ""]))
    (tmp_path / "ids.csv").write_text(f"index,id,partition,identity\n{rows}")
    with pytest.raises(ValueError, match=r"data must be images that all have a class, got 'images"):
        of_classes()._classes(tmp_path)
