"""The script of docs/results/conditional.md: its numbers are those of the artifacts."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

RESULTS = Path(__file__).parents[1] / "docs" / "results"
sys.path.insert(0, str(RESULTS))
import figures  # noqa: E402
import pages  # noqa: E402
from text import table_of  # noqa: E402


def written(folder, results, tables=None, settings=None):
    """A finished artifact."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results))
    for name, table in (tables or {}).items():
        pd.DataFrame(table).to_csv(folder / name, index=False)
    manifest = {"stage": "any", "key": folder.name, "settings": settings or {}, "inputs": {}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": {}, "summary": {}}))
    return folder


def curve(cost, found):
    """Each prompt costs as much, and the prompts of these places find another of ten images."""
    seen = [sum(place <= i for place in found) for i in range(12)]
    return [[cost * (i + 1), n, n / 10] for i, n in enumerate(seen)]


def source(cost, found):
    about = {"prompts": 12, "memorized": len(found) + 1, "curve": curve(cost, found)}
    return {**about, "different": len(found), "evaluations": 12 * cost}


def search(folder, cost=1000, found=(0, 4), words=(9,)):
    sources = {"search": source(cost, found), "random_prompts": source(400, words)}
    prompts = {"copies": [4, 2, 1], "nearest": [7, 8, 9], "prompt": ["a", "b", "c"]}
    settings = {"copied_share": 0.5, "num_generations": 4}
    return written(folder, {"sources": sources}, {"prompts.csv": prompts}, settings)


def test_a_curve_is_read_after_some_prompts_and_the_last(tmp_path):
    found = table_of("search", [f"gibbs:0={search(tmp_path / 'a')}"])
    own = found[found["search"] == "gibbs"]
    assert own["prompts"].tolist() == [1, 2, 5, 10, 12]
    assert own["evaluations"].tolist() == [1000, 2000, 5000, 10000, 12000]
    assert own["different"].tolist() == [1, 1, 2, 2, 2]
    assert own["recall"].tolist() == ["10.0", "10.0", "20.0", "20.0", "20.0"]
    assert own["memorized"].tolist() == ["", "", "", "", 3]
    assert set(found["seed"]) == {"0"}


def test_random_prompts_of_one_model_count_once_and_must_agree(tmp_path):
    one, other = search(tmp_path / "a"), search(tmp_path / "b", cost=9)
    found = table_of("search", [f"gibbs:0={one}", f"genetic:0={other}"])
    names = ("gibbs", "genetic", "random_prompts")
    assert found["search"].value_counts().to_dict() == dict.fromkeys(names, 5)
    differs = search(tmp_path / "c", words=(1, 2))
    with pytest.raises(ValueError, match=r"two artifacts have .*'random_prompts'"):
        table_of("search", [f"gibbs:0={one}", f"genetic:0={differs}"])


def mean(value, of=8):
    return {"of": of, "mean": value, "interval": [value / 2, min(1, 2 * value)]}


def test_a_method_has_means_over_images_and_the_adversarys_control(tmp_path):
    ours = {"still": mean(0.25), "recovered": mean(0.5), "gamma": mean(0.1234)}
    theirs = {"still": mean(0), "recovered": mean(0.02), "gamma": mean(0.3)}
    by_image = {
        "memorized": {**ours, "alignment": mean(0.9)},
        "other": {**theirs, "alignment": mean(0.8)},
    }
    unused = {"prompts": {"share": 0.125, "of": 8}}
    results = {"by_image": by_image, "quality": 0.00641, "heldout_loss": mean(0.0986)}
    results |= {"memorized": {"memorized_heldout": unused}}
    results |= {"adversary": {"memorized_heldout": {"before": {}, "after": unused}}}
    results |= {"evaluations_per_image": 116.0}
    folder = written(tmp_path / "a", results)
    [row] = table_of("benchmark", [f"unlearn:1={folder}"]).to_dict("records")
    assert (row["method"], row["seed"], row["memorized_images"]) == ("unlearn", "1", 8)
    assert [row[name] for name in ("still", "still_low", "still_high")] == ["25.0", "12.5", "50.0"]
    assert [row[name] for name in ("recovered", "control")] == ["50.0", "2.0"]
    assert [row[name] for name in ("gamma", "alignment", "alignment_other")] == [
        *("0.123", "0.900", "0.800")
    ]
    assert [row[name] for name in ("kid", "loss_heldout")] == ["0.0064", "0.0986"]
    assert row["evaluations_per_image"] == "116.0"
    assert row["still_unused"] == row["recovered_unused"] == "12.5"
    del ours["recovered"], theirs["recovered"]
    results |= {
        "heldout_loss": None,
        "memorized": {},
        "adversary": None,
        "by_image": {
            "memorized": {**ours, "alignment": mean(0.9)},
            "other": {**theirs, "alignment": mean(0.8)},
        },
    }
    folder = written(tmp_path / "b", results)
    [row] = table_of("benchmark", [f"embedding:1={folder}"]).to_dict("records")
    assert row["still_unused"] == row["recovered_unused"] == ""
    assert row["recovered"] == row["control_high"] == row["loss_heldout"] == ""


def canaries(folder):
    table = {"index": [7, 8, 9, 20], "repeats": [16, 16, 1, 0], "trigger": ["a", "b", "c", "d"]}
    table |= {"share": [1, 0, 0, 0], "rank": [1, 2, 9, 99], "exposure": [8.0, 7.0, 4.8, 1.4]}
    of = [
        {"repeats": n, "extracted": {"of": each, "count": 0, "share": s, "interval": [0.0, 0.9]}}
        for n, each, s in ((0, 1, 0.0), (1, 1, 0.0), (16, 2, 0.5))
    ]
    return written(folder, {"by_repeats": of}, {"canaries.csv": table})


def test_canaries_have_the_median_exposure_and_those_that_a_search_finds(tmp_path):
    folder = canaries(tmp_path / "a")
    found = table_of("canaries", [f"2={folder},{search(tmp_path / 'b')}"])
    assert found["repeats"].tolist() == [0, 1, 16]
    assert found["extracted"].tolist() == ["0.0", "0.0", "50.0"]
    assert found["extracted_high"].tolist() == ["90.0"] * 3
    assert found["exposure_median"].tolist() == ["1.4", "4.8", "7.5"]
    # Image 9 has fewer copies than half.
    assert found["found_by_search"].tolist() == [0, 0, 2]
    assert table_of("canaries", [f"2={folder}"])["found_by_search"].tolist() == [""] * 3


def test_the_files_give_tables_and_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "DATA", tmp_path)
    folders = {seed: search(tmp_path / f"s{seed}", cost=100 * seed) for seed in (1, 2)}
    named = [f"gibbs:{seed}={folder}" for seed, folder in folders.items()]
    table_of("search", named).to_csv(tmp_path / "text_search.csv", index=False)
    page = "<!-- begin table: text_search -->\n<!-- end table -->"
    lines = pages.with_tables(page).splitlines()
    assert "different training images" in lines[1]
    assert len(lines) == 2 + 2 + 2 * 5
    # The means of two models, with their range.
    assert re.search(r"`gibbs` . 12 .*3 .*20.0 .*1,800 \(1,200 to 2,400\)", lines[7])
    figures.draw_search(tmp_path / "search.svg")
    assert (tmp_path / "search.svg").read_text().count("line2d") >= 4
