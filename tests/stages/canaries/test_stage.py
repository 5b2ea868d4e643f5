"""Stage `canaries` on models whose memory is known: extraction, ranks and the report."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tests.stages.mitigate.replaying import Replaying
from tests.tiny import CANARY_DIGITS, DIGITS, RUNTIME

from sidepipe.base.files import write_json
from sidepipe.base.images import to_model
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.engine.stage import Job
from sidepipe.stages.canaries import audits as module
from sidepipe.stages.canaries.audits import ImageCanaries, TriggeredCanaries
from sidepipe.stages.canaries.stage import load, load_table
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.report.canaries import section
from sidepipe.stages.report.document import template_of

SETTINGS: Any = {
    "features": {"_target_": "sidepipe.features.encoders.PixelsL2"},
    "false_positive_rate": 0.05,
    "num_noises": 3,
    "precision": "32-true",
    "seed": 0,
}
TRIGGERED = TriggeredCanaries(
    **SETTINGS, num_generations=2, num_candidates=15, num_inference_steps=4, guidance_scale=1.0
)
# Row of the data: repeats and trigger. The model replays rows 1, 2 and 3 for their triggers.
CANARIES = {
    1: (64, "ba do ba mi"),
    2: (64, "do do mi ba"),
    3: (64, "mi ba do do"),
    4: (1, "ba ba mi mi"),
    50: (0, "mi mi mi do"),
    51: (0, "do ba ba ba"),
    52: (0, "mi do ba ba"),
}
REMEMBERED = (1, 2, 3)


class Remembering(Replaying):
    """Predicts the image of a remembered trigger, and gray for all other prompts."""

    def __init__(self, images):
        super().__init__(images[0])
        self.known = {CANARIES[row][1]: row for row in REMEMBERED}
        self.images = torch.cat([torch.zeros(1, 1, 4, 4), to_model(torch.from_numpy(images))])

    def encode(self, prompts):
        e = torch.zeros(len(prompts), 12, 2)
        e[:, 0, 0] = torch.tensor([1 + self.known.get(prompt, -1) for prompt in prompts])
        return e

    def eps(self, x_t, t, e):
        alpha_bar = self.alphas_cumprod[torch.as_tensor(t).expand(len(x_t))][:, None, None, None]
        x_0 = self.images[e[:, 0, 0].long()]
        return (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()

    def to_latents(self, images):
        return to_model(images)


@pytest.fixture
def inputs(tmp_path):
    """Folders of data and dpm: 40 training images, and 40 unseen ones."""
    images = np.random.default_rng(0).integers(256, size=(80, 4, 4, 1)).astype(np.uint8)
    for name in ("data", "dpm", "generate/shards", "canaries"):
        (tmp_path / name).mkdir(parents=True)
    np.save(tmp_path / "data/images.npy", images)
    table = pd.DataFrame.from_dict(CANARIES, orient="index", columns=["repeats", "trigger"])
    table.to_csv(tmp_path / "data/canaries.csv", index_label="index")
    np.save(tmp_path / "dpm/subset.npy", np.arange(40))
    np.save(tmp_path / "dpm/heldout.npy", np.arange(40, 80))
    write_json(tmp_path / "dpm/manifest.json", {"files": {}, "summary": {"epochs": 2.5}})
    return {name: tmp_path / name for name in ("data", "dpm", "generate")}, tmp_path / "canaries"


@pytest.fixture
def triggered(inputs, monkeypatch):
    images = load_images(inputs[0]["data"])
    monkeypatch.setattr(module, "load_placed_model", lambda *about: Remembering(np.array(images)))
    TRIGGERED.run(Job(inputs[1], inputs[0], RUNTIME))
    return inputs[1]


def test_remembered_canaries_are_extracted_and_rank_first(triggered):
    table = load_table(triggered)
    assert table.index[table["share"] == 1].tolist() == list(REMEMBERED)
    assert table.index[table["rank"] == 1].tolist() == list(REMEMBERED)
    assert table.loc[list(REMEMBERED), "exposure"].tolist() == [4, 4, 4]
    # For all others every string gives the same gray, and ties rank a canary last.
    assert table.loc[table["repeats"] < 64, "exposure"].tolist() == [0, 0, 0, 0]
    assert table.loc[table["repeats"] < 64, "share"].tolist() == [0, 0, 0, 0]


def test_the_results_have_rows_by_repeats_and_the_cost(triggered):
    results = load(triggered)
    rows = {row["repeats"]: row["extracted"] for row in results["by_repeats"]}
    assert {repeats: (of["count"], of["of"]) for repeats, of in rows.items()} == {
        64: (3, 3),
        1: (0, 1),
        0: (0, 3),
    }
    assert results["evaluations"] == 7 * 2 * 2 * 4
    assert (results["num_candidates"], results["epochs"]) == (16, 2.5)
    # 3 of 3 is at least 29 %, and 0 of 3 at most 71 %.
    assert results["leaks_from"] is None
    assert not (triggered / "parts").exists()


def test_the_report_answers_in_a_sentence(triggered):
    part = section(triggered)
    assert "No tested number of repeats leaks: 3 of 3 canaries" in part.text
    assert "traces from 64 times per epoch" in part.text
    results = load(triggered)
    write_json(triggered / "results.json", {**results, "leaks_from": 64})
    part = section(triggered)
    assert "repeats 64 times per epoch (160 times in all) leaks: 3 of 3 canaries" in part.text
    assert "0 of 3 controls" in part.text
    table = part.tables[0]
    assert [name for name, _ in table.rows] == ["0 (controls)", "1 per epoch", "64 per epoch"]
    assert table.rows[2][1][:2] == ["160", "3 of 3"]
    drawings = dict.fromkeys(part.drawings, "data:")
    page = template_of("canaries.html.j2").render(
        tables={table.name: table}, figures=drawings, **part.content
    )
    assert "one of 2 images by their trigger" in page


def test_a_search_extracts_the_canaries_that_its_memorized_prompts_replay(triggered, tmp_path):
    search = tmp_path / "search"
    search.mkdir()
    found = {"prompt": ["x"] * 3, "score": 1.0, "copies": [4, 1, 2], "nearest": [1, 2, 4]}
    pd.DataFrame(found).to_csv(search / "prompts.csv", index=False)
    settings = {"copied_share": 0.5, "num_generations": 4}
    write_json(search / "manifest.json", {"files": {}, "settings": settings})
    table = section(triggered, search).tables[0]
    assert [cells[-1] for _, cells in table.rows] == ["0 of 3", "1 of 1", "1 of 3"]


class Overfitted(torch.nn.Module):
    """The optimal denoiser of its training images."""

    def __init__(self, images, alphas_cumprod):
        super().__init__()
        self.images, self.alphas_cumprod = to_model(torch.from_numpy(images)), alphas_cumprod

    def forward(self, x_t, t, **kwargs):
        alpha_bar = self.alphas_cumprod[t][:, None, None, None]
        distance = (x_t[:, None] - alpha_bar.sqrt()[:, None] * self.images).square().flatten(2)
        logits = -distance.sum(2) / (2 * (1 - alpha_bar.flatten(1)))
        x_0 = (logits.softmax(1)[..., None, None, None] * self.images).sum(1)
        eps = (x_t - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
        return type("Output", (), {"sample": eps})()


def test_images_without_captions_are_found_among_synthetic_ones(inputs, monkeypatch):
    inputs, folder = inputs
    images = np.array(load_images(inputs["data"]))
    alphas_cumprod = torch.linspace(0.999, 0.01, 100)
    network = Overfitted(images[:40], alphas_cumprod)
    denoiser = Denoiser(network, alphas_cumprod, "epsilon", (1, 4, 4))
    monkeypatch.setattr(module, "load_denoiser", lambda *about: denoiser)
    made = images[[1, 1, 2, 7, 9]]
    monkeypatch.setattr(module, "load_generated", lambda folder: made)
    ImageCanaries(**SETTINGS).run(Job(folder, inputs, RUNTIME))
    table = load_table(folder)
    assert table["share"].tolist() == [0.4, 0.2, 0, 0, 0, 0, 0]
    trained = table["repeats"] > 0
    assert table.loc[trained, "rank"].tolist() == [1, 1, 1, 1]
    assert table.loc[~trained, "rank"].min() > 1
    assert load(folder)["num_candidates"] == 38  # a canary, and 40 unseen images but 3 controls
    assert "among the synthetic images" in section(folder).text


def test_the_audit_is_that_of_the_data():
    with pytest.raises(ValueError, match=r"data.canaries must be set, for canaries"):
        TRIGGERED.check({"data": DIGITS}, RUNTIME)
    with pytest.raises(ValueError, match=r"canaries must be that of the data.*canaries=images"):
        TRIGGERED.check({"data": CANARY_DIGITS}, RUNTIME)
    ImageCanaries(**SETTINGS).check({"data": CANARY_DIGITS}, RUNTIME)
    with pytest.raises(ValueError, match=r"canaries.num_noises must be >= 1"):
        replace(TRIGGERED, num_noises=0)
