"""A collapsed model, and images that are too few, on the first screen and in the terminal."""

import numpy as np
import pytest
from tests.stages.report.pages import report
from tests.stages.report.planted import L2, Outputs

from sidepipe.stages.report.stage import load_table
from sidepipe.stages.report.sweep.page import write_sweep
from sidepipe.stages.report.sweep.points import Point


class Collapsed(Outputs):
    """An attack without planted copies has made one image again and again.

    change: of one pixel of a training image; without it, all images are exact copies.
    """

    change = 1

    def samples(self, copied, number):
        if copied > 0:
            return super().samples(copied, number)
        images = np.repeat(self.images[self.train[:1]], number, axis=0)
        images[:, 0, 0] ^= self.change
        return images


class Exact(Collapsed):
    change = 0


@pytest.fixture(scope="module", params=["train", "none"])
def collapsed(request, tmp_path_factory):
    attacks = {"dead": ("none", 0.0, {}), "alive": ("none", 0.2, {})}
    folder = tmp_path_factory.mktemp(f"collapsed_{request.param}")
    evaluate = {**L2, "truth": request.param}
    made = Collapsed(folder, attacks, evaluate, num_train=256, num_heldout=1200, num_images=60)
    return made, *report(folder / "report", made)


DEAD = "dead: the model gives the same image 60 of 60 times: no finding."


def test_a_collapsed_model_is_named_before_any_number_and_is_no_finding(collapsed, tmp_path):
    made, summary, page = collapsed
    truth = made.evaluate["truth"] == "train"
    assert page.text.index(DEAD) < page.text.index("The model under attack")
    text = load_table(made.folder / "report")
    assert text.splitlines()[0] == f"warning: {DEAD}"
    [row] = [line for line in text.splitlines() if line.startswith("dead ")]
    assert "collapsed" in row
    assert text.isascii()
    assert (
        summary["attacks"]["dead"]["collapse"] == "gives the same image 60 of 60 times: no finding"
    )
    assert summary["attacks"]["alive"]["collapse"] is None
    if truth:
        # Its excess would be the largest: all sixty are copies of a training image.
        assert "The row alive has the largest excess" in page.text
        path = write_sweep(tmp_path, "Sweep", [Point({"seed": 0}, made.inputs)])
        assert DEAD in path.read_text()
        assert "<em>alive</em> has the largest excess" in path.read_text()
        assert (tmp_path / "table.txt").read_text().startswith(f"warning: {DEAD}")
    else:
        assert row.split()[1:5] == ["60", "1", "collapsed", "-"]


def test_where_every_attack_has_collapsed_nothing_is_found(tmp_path):
    made = Collapsed(tmp_path, {"dead": ("none", 0.0, {})}, num_images=60)
    _, page = report(tmp_path / "report", made)
    assert "No finding: nearly all images are alike." in page.text
    assert "are reproduced" not in page.text
    assert not list((tmp_path / "report" / "figures").glob("*.svg"))
    assert "At every threshold" not in page.text


def test_exact_copies_of_one_image_are_a_finding_although_all_images_are_alike(tmp_path):
    made = Exact(tmp_path, {"dead": ("none", 0.0, {})}, num_images=60)
    summary, page = report(tmp_path / "report", made)
    finding = "1 training image is reproduced exactly (60 of 60 generated images)."
    assert finding in page.text
    assert "no finding" not in page.text.lower()
    assert summary["attacks"]["dead"]["collapse"] == "gives the same image 60 of 60 times"


def test_few_images_are_said_to_say_nothing(tmp_path):
    """Of twenty images an interval may reach from below 0 to a large share."""
    attacks = {"plain": ("none", 0.05, {})}
    made = Outputs(tmp_path, attacks, num_train=256, num_heldout=1200, num_images=20)
    summary, page = report(tmp_path / "report", made)
    low, high = summary["attacks"]["plain"]["excess_interval"]
    assert low <= 0
    assert high > 0.05
    expected = "plain: 20 images are too few for a conclusion"
    assert expected in page.text
    assert load_table(tmp_path / "report").startswith(f"warning: {expected}")
    assert "Too few images for a conclusion: " in page.text
