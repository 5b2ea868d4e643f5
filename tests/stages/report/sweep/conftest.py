"""A sweep over sizes and seeds of planted artifacts, scored by the real evaluate stage."""

import pytest
from tests.stages.report.pages import Page
from tests.stages.report.planted import L2, Outputs

from sidepipe.stages.report.sweep.page import write_sweep
from sidepipe.stages.report.sweep.points import Missing, Point

SIZE = "dpm.num_train_images"
SIZES, SEEDS = (64, 256, 1024), (0, 1)
ATTACKS = {"unconditional": ("none", 0.1, {}), "early": ("posterior", 0.3, {"t_min": 200})}
EVALUATE = {**L2, "false_positive_rates": [0.01], "gallery_pairs": 0}
QUEUED, FAILED = Missing("0123456789ab", "queued"), Missing("ba9876543210", "failed: no memory <b>")


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """{(size, seed): artifacts}; the largest size has no second seed."""

    def made(size, seed):
        folder = tmp_path_factory.mktemp(f"size{size}")
        sizes = {"num_train": size, "num_heldout": 700, "num_images": 60}
        source = "sidepipe.stages.data.sources.CelebA"
        return Outputs(folder, ATTACKS, EVALUATE, **sizes, source=source, seed=seed)

    return {(n, seed): made(n, seed) for n in SIZES for seed in SEEDS if (n, seed) != (1024, 1)}


@pytest.fixture(scope="session")
def sizes(planted):
    """A point a size, in no order, all finished."""
    return [Point({SIZE: n}, planted[n, 0].inputs) for n in (1024, 64, 256)]


@pytest.fixture(scope="session")
def seeded(planted):
    """A point a size and seed: of the second seed of the largest nothing is finished."""
    points = [Point({SIZE: n, "seed": s}, p.inputs, p.folder) for (n, s), p in planted.items()]
    return [*points, Point({SIZE: 1024, "seed": 1}, {"unconditional": QUEUED, "early": FAILED})]


@pytest.fixture(scope="session")
def written(seeded, tmp_path_factory):
    """The folder of the report on `seeded`, and its page."""
    folder = tmp_path_factory.mktemp("sweep") / "sizes"
    return folder, Page(write_sweep(folder, "Sizes", seeded).read_text())
