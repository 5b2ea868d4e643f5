"""Stage `explain` on Stable Diffusion, on SDXL, and on prompts of a tiny model of images."""

import pytest
from tests.models.text.tiny import PIPELINES
from tests.stages.mitigate.replaying import artifacts
from tests.tiny import RUNTIME

from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.explain.stage import Explain, load, load_prompts_explained, load_tokens

SETTINGS = {
    "num_prompts": None,
    "num_generations": 2,
    "num_inference_steps": 3,
    "guidance_scale": 7.5,
    "precision": "32-true",
    "seed": 0,
}


@pytest.fixture(scope="module", params=PIPELINES)
def inputs(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    inputs, _ = artifacts(folder)
    PIPELINES[request.param](folder / "dpm" / "model")
    return inputs


@pytest.fixture(scope="module")
def explained(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    return folder, Explain(**SETTINGS).run(Job(folder, inputs, RUNTIME))


def test_every_token_of_memorized_prompts_and_of_as_many_others_is_measured(explained):
    folder, summary = explained
    prompts, tokens = load_prompts_explained(folder), load_tokens(folder)
    assert prompts["explained_as"].tolist() == ["memorized", "other"]
    assert prompts["word"].tolist() == ["marigold", ""]
    # A token for each letter, and two more.
    letters = [len(caption.replace(" ", "")) + 2 for caption in prompts["caption"]]
    assert tokens.groupby("id", sort=False).size().tolist() == letters
    assert (tokens["significance"] > 0).all()
    assert tokens.groupby("id")["share"].sum().tolist() == pytest.approx([1, 1])
    results = load(folder)
    assert results["planted_word_on_top"]["memorized"]["of"] == 1
    assert results["evaluations_per_prompt"] == 4 * 3 * 2
    assert summary["memorized"] == summary["other"] == 1
    assert not (folder / "parts").exists()


def test_numbers_do_not_depend_on_the_batch(explained, inputs, tmp_path):
    Explain(**SETTINGS).run(
        Job(tmp_path, inputs, Runtime(accelerator="cpu", sampling_batch_size=3))
    )
    one, other = (load_tokens(folder)["significance"] for folder in (explained[0], tmp_path))
    assert one.tolist() == pytest.approx(other.tolist(), rel=1e-3)


@pytest.mark.parametrize("name", ["num_prompts", "num_generations"])
def test_a_setting_out_of_range_is_refused(name):
    with pytest.raises(ValueError, match=rf"explain.{name} must be >= 1.*, got 0"):
        Explain(**{**SETTINGS, name: 0})
