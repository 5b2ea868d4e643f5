"""Stage `search`: a trigger is found, and Stable Diffusion's parts run both searches."""

from pathlib import Path
from typing import Any

import pytest
from tests.composing import planned
from tests.models.text.tiny import PIPELINES
from tests.stages.mitigate.replaying import Replaying, artifacts, artifacts_of_pipeline
from tests.tiny import RUNTIME
from transformers import BertConfig, BertForMaskedLM, BertModel, BertTokenizer, GPT2Tokenizer

from sidepipe.engine.stage import Job
from sidepipe.stages.report.document import template_of
from sidepipe.stages.report.search import section
from sidepipe.stages.search import stage as module
from sidepipe.stages.search.searches import GeneticSearch, GibbsSearch
from sidepipe.stages.search.stage import load, load_found

PIXELS_L2 = {"_target_": "sidepipe.features.encoders.PixelsL2"}
SETTINGS: Any = {
    "num_prompts": 3,
    "prompt_length": 1,
    "num_generations": 2,
    "copied_share": 0.5,
    "features": PIXELS_L2,
    "near_duplicates": {"features": PIXELS_L2, "threshold": 0.01},
    "num_inference_steps": 4,
    "guidance_scale": 1.0,
    "precision": "32-true",
    "seed": 0,
}
GIBBS: Any = {
    "num_iterations": 2,
    "num_candidates": 50,
    "temperature": 0.01,
    "num_latents": 2,
    "masked_language_model": None,
}
GENETIC: Any = {"population": 4, "num_rounds": 1, "mutation_rate": 0.2, "num_seeds": 2}


def gibbs(**changes: Any) -> GibbsSearch:
    return GibbsSearch(**{**SETTINGS, **GIBBS, **changes})


def genetic(**changes: Any) -> GeneticSearch:
    return GeneticSearch(**{**SETTINGS, **GENETIC, **changes})


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """Inputs whose model replays training image 3 for the word marigold, and an empty folder."""
    inputs, images = artifacts(tmp_path / "planted")
    monkeypatch.setattr(module, "load_placed_model", lambda *about: Replaying(images[3]))
    folder = tmp_path / "search"
    folder.mkdir()
    return inputs, folder


def test_the_trigger_of_a_memorized_image_is_found(planted) -> None:
    inputs, folder = planted
    gibbs().run(Job(folder, inputs, RUNTIME))
    found = load_found(folder)
    assert found["prompt"].tolist() == ["marigold"] * 3
    assert found["nearest"].tolist() == [3] * 3
    assert found["copies"].tolist() == [2] * 3
    of = load(folder)["sources"]["search"]
    # Three prompts, and one image.
    assert (of["memorized"], of["different"], of["known_images"], of["recall"]) == (3, 1, 1, 1)
    evaluations = [row[0] for row in of["curve"]]
    assert evaluations[-1] == of["evaluations"] == found["evaluations"].sum() + 3 * 2 * 2 * 4
    assert evaluations == sorted(evaluations)
    assert not (folder / "parts").exists()


def test_the_report_shows_images_by_cost_for_each_source(planted) -> None:
    inputs, folder = planted
    gibbs().run(Job(folder, inputs, RUNTIME))
    part = section(folder)
    assert part.summary["search"] == 1
    table, drawings = part.tables[0], dict.fromkeys(part.drawings, "data:")
    assert table.rows[0][1][:4] == ["3", "3", "1", "100"]
    assert "3 prompts replay 1 different training images" in part.text
    page = template_of("search.html.j2").render(
        tables={table.name: table}, figures=drawings, **part.content
    )
    assert "<b>3</b> of 3 prompts" in page
    assert page.count("<li>marigold") == 3


def test_ordinary_captions_and_random_prompts_are_compared_at_equal_numbers(planted) -> None:
    inputs, folder = planted
    gibbs(num_prompts=2).run(Job(folder, inputs, RUNTIME))
    sources = load(folder)["sources"]
    assert set(sources) == {"search", "random_prompts", "training_captions"}
    assert all(of["prompts"] == 2 for of in sources.values())
    assert sources["random_prompts"]["evaluations"] == 2 * 2 * 2 * 4


def test_the_evaluated_prompts_are_counted(planted) -> None:
    inputs, folder = planted
    gibbs(num_candidates=4, num_iterations=1, num_prompts=1).run(Job(folder, inputs, RUNTIME))
    [spent] = load_found(folder)["evaluations"]
    # Two latents: the empty prompt, four random prompts, and four or five words.
    assert spent in (2 * (1 + 4 + 4), 2 * (1 + 4 + 5))


def test_a_prompt_that_does_not_fit_is_refused(planted) -> None:
    inputs, folder = planted
    with pytest.raises(
        ValueError, match=r"search.prompt_length must be <= 10, the tokens .*got 11"
    ):
        gibbs(prompt_length=11).run(Job(folder, inputs, RUNTIME))


def test_it_is_refused_before_training() -> None:
    searched = ("data=planted", "dpm=words8", "detect=prompts", "attacks=none", "search=gibbs")
    with pytest.raises(ValueError, match=r"search.prompt_length must be <= 14, .*, got 15"):
        planned(*searched, "search.prompt_length=15")
    planned(*searched, "search.prompt_length=14")


@pytest.fixture(scope="module", params=PIPELINES)
def stable_diffusion(request, tmp_path_factory):
    return artifacts_of_pipeline(request.param, tmp_path_factory.mktemp("sd"))


@pytest.mark.parametrize("make", [gibbs, genetic])
def test_stable_diffusion_runs_every_search(stable_diffusion, tmp_path, make) -> None:
    small = {"num_prompts": 2, "prompt_length": 3, "num_inference_steps": 2, "guidance_scale": 7.5}
    make(**small).run(Job(tmp_path, stable_diffusion, RUNTIME))
    results, found = load(tmp_path), load_found(tmp_path)
    assert results["search_method"] == make().kind
    assert len(found) == 2
    assert min(found["evaluations"].tolist()) > 0
    assert found["prompt"].str.split().str.len().tolist() == [3, 3]


@pytest.fixture
def bert(tmp_path):
    """A random BERT of a few words."""
    folder = tmp_path / "bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bold", "marigold", "##s", "noon"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=10, intermediate_size=8, **sizes)).save_pretrained(folder)
    return str(folder)


def test_a_masked_language_model_proposes_its_whole_words(planted, bert) -> None:
    inputs, folder = planted
    gibbs(masked_language_model=bert, num_prompts=1).run(Job(folder, inputs, RUNTIME))
    assert load_found(folder)["prompt"].tolist() == ["marigold"]


def test_a_language_model_without_a_mask_token_is_refused(tmp_path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    files = (str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    GPT2Tokenizer(*files).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"search.masked_language_model must be .* a mask token"):
        gibbs(masked_language_model=str(tmp_path))._language_model()


def test_a_language_model_that_cannot_be_read_or_has_no_head_is_refused(bert, tmp_path) -> None:
    nothing = gibbs(masked_language_model=str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"masked_language_model names .*, which is not a"):
        nothing._language_model()
    (Path(bert) / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"masked_language_model cannot be read: OSError") as error:
        gibbs(masked_language_model=bert)._language_model()
    assert "\n" not in str(error.value)
    BertModel(BertConfig.from_pretrained(bert)).save_pretrained(bert)
    with pytest.raises(ValueError, match=r"must be a model with all its weights, got .*cls.predic"):
        gibbs(masked_language_model=bert)._language_model()


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (gibbs, "num_prompts", 0),
        (gibbs, "temperature", 0.0),
        (gibbs, "num_candidates", 0),
        (genetic, "population", 3),
        (genetic, "mutation_rate", 1.5),
        (genetic, "num_seeds", 1),
    ],
)
def test_a_setting_out_of_range_is_refused(make, name, value) -> None:
    with pytest.raises(ValueError, match=f"search.{name} must be"):
        make(**{name: value})
