"""Pruning: planted directions are found, masks cover the rows, and an artifact has them."""

from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tests.models.text.tiny import PIPELINES, tiny_text_model
from tests.stages.mitigate.replaying import artifacts_of_pipeline
from tests.stages.mitigate.test_stage import mitigate
from tests.tiny import RUNTIME
from torch import nn

from sidepipe.engine.stage import Job, NoMaterial
from sidepipe.models.text.trajectory import prompt_noise
from sidepipe.stages.detect.groups import halves_of_images
from sidepipe.stages.detect.stage import PROMPTS
from sidepipe.stages.mitigate import pruning
from sidepipe.stages.mitigate.stage import MASKS, load, load_prompts_asked

INPUTS, OUTPUTS, PLANTED = 200, 6, [17, 101]


@pytest.fixture
def planted():
    """A layer whose inputs 17 and 101 are large for memorized prompts, and norms of both sets."""
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
    with torch.no_grad():
        layer.weight.copy_(0.5 + torch.rand(OUTPUTS, INPUTS))
    ordinary = torch.rand(3, INPUTS)
    memorized = ordinary * 0.99
    memorized[:, PLANTED] = 50.0
    return {"layer": layer}, {"layer": memorized}, {"layer": ordinary}


def test_the_weights_of_planted_inputs_are_the_mask(planted) -> None:
    layers, memorized, ordinary = planted
    mask = pruning.masks_of(layers, memorized, ordinary, row_share=0.01)["layer"]
    assert mask.nonzero()[:, 1].unique().tolist() == PLANTED
    assert mask[:, PLANTED].all()


def test_inputs_that_ordinary_prompts_use_as_much_are_kept(planted) -> None:
    layers, memorized, ordinary = planted
    ordinary["layer"][:, PLANTED] = 50.0
    mask = pruning.masks_of(layers, memorized, ordinary, row_share=0.01)["layer"]
    assert not mask.any()


def test_the_masks_of_steps_are_united(planted) -> None:
    layers, memorized, ordinary = planted
    memorized["layer"][1, PLANTED] = 0.0
    memorized["layer"][1, 5] = 50.0
    mask = pruning.masks_of(layers, memorized, ordinary, row_share=0.01)["layer"]
    assert mask.nonzero()[:, 1].unique().tolist() == [5, *PLANTED]


def test_a_random_mask_has_as_many_weights_in_each_row(planted) -> None:
    layers, memorized, ordinary = planted
    masks = pruning.masks_of(layers, memorized, ordinary, row_share=0.01)
    masks["layer"][0] = False
    random = pruning.shuffled(masks, seed=0)
    assert random["layer"].sum(1).tolist() == masks["layer"].sum(1).tolist()
    assert not random["layer"].equal(masks["layer"])
    assert pruning.density(random) == pruning.density(masks) == 10 / 1200


def test_the_overlap_is_that_of_sets() -> None:
    one, other = torch.zeros(2, 4, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool)
    one[0, :3] = other[0, 1:4] = True
    assert pruning.overlap({"a": one}, {"a": other}) == 2 / 4
    assert pruning.overlap({"a": one}, {"a": one}) == 1
    assert pruning.overlap({"a": ~one & one}, {"a": ~one & one}) is None


@pytest.mark.parametrize(("kind", "number"), [("feed_forward", 4), ("cross_attention", 8)])
def test_norms_are_those_of_the_prompts_half_whatever_the_batch(kind, number) -> None:
    model = tiny_text_model()
    layers = pruning.linear_layers(model.network, kind)
    assert len(layers) == number
    x_T, e = prompt_noise(model, 0, [0, 1, 2], 1), model.encode(["marigold", "noon", "two"])
    settings = {"guidance_scale": 3.0, "num_inference_steps": 5, "num_steps": 2}
    norms = pruning.input_norms(model, layers, x_T, e, batch_size=2, **settings)
    one = pruning.input_norms(model, layers, x_T, e, batch_size=3, **settings)
    for name, values in norms.items():
        torch.testing.assert_close(values, one[name])
        # Rows of A have norm 1: the squares add up to the number of tokens.
        tokens = values.square().sum(1)
        torch.testing.assert_close(tokens, tokens.round())
    if kind == "cross_attention":
        # Keys read the embedding alone, the same at every step, and not that of the empty prompt.
        expected = nn.functional.normalize(e, dim=2).square().sum((0, 1)) / 3
        for values in norms.values():
            torch.testing.assert_close(values.square(), expected.expand(2, -1))


def test_prompts_of_one_image_are_in_one_half() -> None:
    table = pd.DataFrame({"number": range(8), "nearest": [4, 4, 4, 9, 9, -1, -1, 7]})
    ours, rest = halves_of_images(table, seed=0)
    assert sorted([*ours["number"], *rest["number"]]) == [*range(8)]
    assert set(ours["nearest"]) & set(rest["nearest"]) <= {-1}
    with pytest.raises(NoMaterial, match="memorized prompts of two images"):
        halves_of_images(table.loc[table["nearest"] == 4], seed=0)


@pytest.fixture(scope="module", params=PIPELINES)
def stable_diffusion(request, tmp_path_factory):
    """Inputs of a random model, in which detect found two memorized prompts."""
    inputs = artifacts_of_pipeline(request.param, tmp_path_factory.mktemp("sd"))
    table = pd.read_csv(inputs["detect"] / PROMPTS, index_col="number", keep_default_na=False)
    table["memorized"] = [True, True, False, False, False]
    table.to_csv(inputs["detect"] / PROMPTS)
    return inputs


@pytest.mark.parametrize("mask", ["memorized", "ordinary", "random"])
def test_stable_diffusion_is_pruned_and_judged_by_halves(stable_diffusion, tmp_path, mask) -> None:
    method = {"name": "prune", "mask": mask, "num_steps": 2, "row_share": 0.1}
    settings: Any = {"adversary": {"num_steps": 2, "lr": 0.1}, "method": method}
    mitigate(**settings, num_inference_steps=3).run(Job(tmp_path, stable_diffusion, RUNTIME))
    results, masks = load(tmp_path), load_file(tmp_path / MASKS)
    assert all(name.endswith(".ff.net.2") for name in masks)
    assert 0 < results["made"]["density"] < 0.3
    assert results["made"]["num_prompts"] == {"used": 1, "heldout": 1, "ordinary": 1}
    table = load_prompts_asked(tmp_path)
    assert table["used"].tolist().count(True) == 1
    for found in (results["memorized"], results["adversary"]):
        assert {"memorized", "other", "memorized_used", "memorized_heldout"} <= set(found)
    assert results["memorized"]["memorized_heldout"]["prompts"]["of"] == 1
    assert results["heldout_loss"]["of"] == 20
