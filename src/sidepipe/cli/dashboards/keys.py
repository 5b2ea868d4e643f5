"""Keys of what runs log and dashboards show, in this one place.

Each begins with its stage. Curves have an x axis of their own; whatever a training logs is drawn
over GLOBAL_STEP.
"""

# Of trainings.
DPM_LOSS, DPM_LOSS_TRAIN = "dpm/loss", "dpm/val/loss_train"
DPM_LOSS_HELDOUT = "dpm/val/loss_heldout"
CLASSIFIER_CROSS_ENTROPY = "classifier/val/cross_entropy"
# Of the classifier by noise level, over its axis t.
NOISE_LEVEL = "classifier/quality/t"
QUALITY_CROSS_ENTROPY = "classifier/quality/cross_entropy"
QUALITY_ACCURACY = "classifier/quality/accuracy"
LABEL_ENTROPY = "classifier/quality/label_entropy"
# One point a run, over the number of training images.
TRAIN_IMAGES = "evaluate/num_train_images"
HITS, HIT_RATE = "evaluate/hits", "evaluate/hit_rate"
HELDOUT_HITS, UNIQUE = "evaluate/heldout_hits", "evaluate/unique"
EXCESS, EXCESS_LOW = "evaluate/excess", "evaluate/excess_low"
EXCESS_HIGH = "evaluate/excess_high"
AT_LEAST, COVERAGE = "evaluate/at_least", "evaluate/coverage"
EVALUATIONS = "evaluate/network_evaluations"
SYNTHETIC_EVALUATIONS = "evaluate/synthetic_evaluations"
# Of rarefaction, over the number of generated images; of the curve, over gamma.
RAREFACTION_IMAGES = "evaluate/rarefaction/num_images"
RAREFACTION_UNIQUE = "evaluate/rarefaction/unique"
RAREFACTION_LOW, RAREFACTION_HIGH = "evaluate/rarefaction/low", "evaluate/rarefaction/high"
THRESHOLD = "evaluate/curve/threshold"
CURVE_AMS_TRAIN, CURVE_AMS_HELDOUT = "evaluate/curve/ams_train", "evaluate/curve/ams_heldout"
CURVE_EXCESS = "evaluate/curve/excess"


def band_key(band: str, score: str) -> str:
    """The key of a band's `score`, "ams" or "ums", on training images."""
    return f"evaluate/{score}_{band}"
