import numpy as np
import pytest

from sidepipe.features.near import NearDuplicates
from sidepipe.stages.extract.rounds import Seen, per_thousand, spans_of_rounds, summary_of

NEAR = NearDuplicates(features={"_target_": "sidepipe.features.encoders.PixelsL2"}, threshold=0.05)


@pytest.mark.parametrize(
    ("num_images", "rounds", "shard_size", "starts", "size"),
    [
        (2000, 3, 1000, [0, 667, 1334], 667),
        (2000, 1, 1000, [0], 1000),
        (90, 3, 10, [0, 30, 60], 10),
        (90, 3, 16, [0, 30, 60], 15),
        (10, 4, 100, [0, 3, 6, 9], 3),
        (4, 3, 100, [0, 2], 2),
    ],
)
def test_rounds_are_equally_long_and_end_with_a_shard(num_images, rounds, shard_size, starts, size):
    spans, shards_of = spans_of_rounds(num_images, rounds, shard_size)
    assert [span.start for span in spans] == starts
    assert [span.stop for span in spans] == [*starts[1:], num_images]
    assert shards_of == size <= shard_size
    assert all(span.start % size == 0 for span in spans)


def originals(count):
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1)).astype(np.uint8)


def test_what_is_seen_grows_and_only_what_repeats_for_the_first_time_is_new():
    x = originals(8)
    seen = Seen(NEAR, "cpu", x[[0, 0, 1, 2, 3, 4]])
    assert seen.add(x[[0, 1, 5]]) == 1  # the second of image 1
    assert seen.add(x[[5, 1, 0, 6, 6, 6]]) == 2  # image 5 again, and 6 three times
    assert seen.add(x[[5, 6, 7]]) == 0
    assert len(seen.images) == len(seen.features) == 6 + 3 + 6 + 3
    assert seen.num_synthetic == 6


def test_reached_are_clusters_aimed_at_and_what_that_made_however_they_are_clustered_anew():
    x = originals(8)
    seen = Seen(NEAR, "cpu", x[:6])
    labels = np.array([0, 0, 1, 1, 2, -1])
    assert seen.reached_labels(labels).tolist() == []
    seen.aim(labels, np.array([1, 1]))
    assert seen.reached_labels(labels).tolist() == [1]
    seen.add(x[6:])
    # The cluster is in two, one of the new images lies elsewhere, and one in none.
    assert seen.reached_labels(np.array([0, 5, 1, 2, 4, 4, 3, -1])).tolist() == [1, 2, 3]


def test_plain_sampling_is_judged_by_the_last_synthetic_images_as_a_round_of_its_own():
    x = originals(8)
    seen = Seen(NEAR, "cpu", x[[0, 0, 1, 2, 3, 4, 1, 5, 5, 0]])
    # The last four: image 1 again, 5 twice, and 0, which was repeated before.
    assert seen.plain_rate(4, 50) == pytest.approx(1000 * 2 / (4 * 50))
    # At most half of them, whatever a round has: the same, and one more image, which is alone.
    assert seen.plain_rate(400, 50) == pytest.approx(1000 * 2 / (5 * 50))
    seen.add(x[[6, 6]])
    assert seen.plain_rate(4, 50) == pytest.approx(1000 * 2 / (4 * 50))


def test_the_cost_of_rounds_is_that_of_one_attack():
    rows = [
        {"num_images": 10, "unet_forwards": 100, "surrogate_gradients": 80, "targets": 3}
        | {"network_evaluations": 140},
        {"num_images": 5, "unet_forwards": 50, "surrogate_gradients": 0, "targets": 0}
        | {"network_evaluations": 50},
    ]
    summary = summary_of(rows, 2.5)
    assert summary["num_images"] == 15
    assert summary["unet_forwards"] == 150
    assert summary["network_evaluations"] == 190
    assert summary["gradient_cost"] == pytest.approx(0.5)
    assert summary["num_targets"] == 3
    assert summary["rounds"] == rows
    assert summary_of(rows[1:], 2.5)["gradient_cost"] == 0
    assert per_thousand(3, 1500) == 2
