"""A latent model from the command line: every row of attacks, trials, labels and the audit."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.test_end_to_end import sidepipe

pytestmark = pytest.mark.e2e
ROWS = (
    "attacks=latent",
    "+attacks.classified={extract: {surrogate: classifier}}",
    "+attacks.cut={extract: {surrogate: {name: posterior, neighbors: 20}}}",
    "+attacks.tuned={extract: {surrogate: none, refine: fixed_point, tuned: true}}",
    "+attacks.union={extract: {surrogate: none, refine: {name: union, levels: [60], kept: 2}}}",
    "+attacks.settled={extract: {surrogate: none, refine: {name: fixed_point, settle: 0.1}}}",
    "+attacks.rounds={extract: {surrogate: posterior, rounds: 2}}",
    "+tune.grid.refine.t=[30,60]",
    "audit=returns",
    "audit.sampled=100",
)
AUTOENCODER = (
    "autoencoder.num_images=300",
    "autoencoder.max_steps=40",
    "autoencoder.lr_warmup_steps=5",
    "autoencoder.validate_every_steps=40",
    "autoencoder.network.block_out_channels=[8,16]",
    "autoencoder.network.down_block_types=[DownEncoderBlock2D,DownEncoderBlock2D]",
    "autoencoder.network.up_block_types=[UpDecoderBlock2D,UpDecoderBlock2D]",
    "dpm.unet.block_out_channels=[8,16]",
    "dpm.unet.down_block_types=[DownBlock2D,DownBlock2D]",
    "dpm.unet.up_block_types=[UpBlock2D,UpBlock2D]",
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of outputs of all rows, and what was printed."""
    folder = tmp_path_factory.mktemp("latent")
    done = sidepipe("experiment=smoke", "dpm=latent", *AUTOENCODER, *ROWS, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "outputs", done.stdout


def test_every_row_has_a_result_and_the_report_states_the_floor(ran: tuple[Path, str]) -> None:
    outputs, printed = ran
    for row in (
        "unconditional",
        "refined",
        "side",
        "classified",
        "cut",
        "tuned",
        "rounds",
        "union",
    ):
        assert row in printed
    results = [json.loads(path.read_text()) for path in outputs.glob("evaluate/*/results.json")]
    assert len(results) == 9
    assert {found["per_start"] for found in results} == {1, 2}
    floors = {json.dumps(found["floor"]) for found in results}
    assert len(floors) == 1
    floor = json.loads(floors.pop())
    assert floor["num_images"] == 64
    assert 0 < floor["median"] <= floor["most"]
    assert "The autoencoder alone puts training images at" in printed.replace("\n", " ")


def test_one_autoencoder_serves_models_of_every_size_and_seed(ran: tuple[Path, str]) -> None:
    outputs, _ = ran
    [made] = outputs.glob("autoencoder/*/manifest.json")
    other = ["dpm.num_train_images=32", "seed=1", "attacks=single", "stage=status"]
    done = sidepipe("experiment=smoke", "dpm=latent", *AUTOENCODER, *other, cwd=outputs.parent)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("autoencoder")]
    assert line.split()[1:3] == [made.parent.name, "done,"]


def test_no_image_of_the_autoencoder_is_compared_with(ran: tuple[Path, str]) -> None:
    outputs, _ = ran
    [rows] = outputs.glob("autoencoder/*/rows.npy")
    apart = set(np.load(rows))
    assert len(apart) == 300
    for name in ("train", "unseen"):
        [rows] = outputs.glob(f"reference/*/{name}_rows.npy")
        assert not set(np.load(rows)) & apart
