"""The charts of a classifier for tracking: its quality by noise level, with keys for dashboards."""

from collections.abc import Iterable, Mapping

TRAINED_CROSS_ENTROPY = "classifier/val/cross_entropy"  # drawn over optimizer steps
NOISE_LEVEL = "classifier/quality/t"  # the x axis of those below
CROSS_ENTROPY, ACCURACY = "classifier/quality/cross_entropy", "classifier/quality/accuracy"
LABEL_ENTROPY = "classifier/quality/label_entropy"


def curves(quality: Iterable[Mapping[str, float]]) -> dict[str, list[dict[str, float]]]:
    """quality: the rows of `quality.csv`, each drawn at the middle of its noise levels."""
    rows = [
        {
            NOISE_LEVEL: (row["t_from"] + row["t_to"]) / 2,
            CROSS_ENTROPY: row["cross_entropy"],
            ACCURACY: row["accuracy"],
            LABEL_ENTROPY: row["label_entropy"],
        }
        for row in quality
    ]
    return {NOISE_LEVEL: rows}
