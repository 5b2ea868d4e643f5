"""An owner's audit: the training images that a model returns to, next to held-out images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32, Int64

from sidepipe.api.comparing import LEAST, check_features
from sidepipe.api.control import Calibrated, calibrated, warn_of_swapped
from sidepipe.api.decoding import Reading
from sidepipe.api.images import Images, ImageSet, ImagesOrFolder, read_sets
from sidepipe.api.measuring import encoder_of, real_names
from sidepipe.api.model import Model
from sidepipe.api.naming import as_arguments, as_new_file, require_numbers, require_whole
from sidepipe.api.result import Estimate
from sidepipe.base.files import whole_file, write_table
from sidepipe.base.groups import Groups
from sidepipe.base.settings import PRECISIONS, Precision, require, require_known
from sidepipe.diffusion.sampler import require_x_0
from sidepipe.features.encoders import Device, Encoder
from sidepipe.features.pairs import blocks
from sidepipe.memorization.audit import Move, Probe, closeness, returns
from sidepipe.memorization.real import encode_rows
from sidepipe.memorization.thresholds import threshold_at_false_positive_rate
from sidepipe.models.contrast import log_loss_ratio
from sidepipe.stages.audit import tables
from sidepipe.stages.audit.move import mover
from sidepipe.stages.audit.stage import PART
from sidepipe.stages.audit.subjects import by_subject

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Audit:
    """Training images that a model returns to. ``sidepipe.audit`` makes it.

    The model returns to an image where the refined image is at least as close to the image itself
    as ``threshold``, which ``false_positive_rate`` of the held-out images reach for a training
    image.

    Attributes:
        num_train: number of training images.
        num_heldout: number of held-out images, at most as many.
        flagged: indices in ``train`` of the images that the model returns to, the closest first.
        heldout_flagged: number of held-out images that the model returns to.
        excess: the share of training images less the share of held-out images.
        scores: a pandas DataFrame with a row per image; docs/audit.md has the columns.
        subjects: a DataFrame with a row per subject of ``groups``, ``None`` without.
        threshold: a distance (``metric`` ``"l2"``) or a similarity (``"cosine"``).
        false_positive_rate: the share of held-out images that may reach the threshold.
        metric: ``"l2"``, where smaller is closer, or ``"cosine"``, where larger is closer.
        features: name and version of the encoder.
        evaluations_per_image: evaluations of the network.
        warnings: limitations of the numbers, as sentences; they are also logged.
    """

    num_train: int
    num_heldout: int
    flagged: Int64[np.ndarray, "k"]
    heldout_flagged: int
    excess: Estimate
    scores: pd.DataFrame = field(repr=False)
    subjects: pd.DataFrame | None = field(repr=False)
    threshold: float
    false_positive_rate: float
    metric: str
    features: str
    evaluations_per_image: int
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        low, high = (100 * end for end in self.excess.interval)
        lines = [
            f"the model returns to {len(self.flagged):,} of {self.num_train:,} training images and "
            f"to {self.heldout_flagged:,} of {self.num_heldout:,} held-out images",
            f"excess: {100 * self.excess.share:.1f} % (95 % interval {low:.1f} to {high:.1f} %)",
        ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def save(self, path: str | Path = "audit.csv") -> Path:
        """Write the scores as a CSV file.

        Args:
            path: the file to write or replace.

        Returns:
            The path.

        Raises:
            FileNotFoundError: where the folder of the file does not exist.

        Example:
            >>> import sidepipe
            >>> model = sidepipe.load(checkpoint)
            >>> found = sidepipe.audit(model, train=train, heldout=heldout, steps=2, levels=())
            >>> found.save(folder / "audit.csv").name
            'audit.csv'
        """
        file = as_new_file("path", path)
        with whole_file(file) as temporary:
            write_table(temporary, self.scores)
        return file


def audit(
    model: Model,
    *,
    train: ImagesOrFolder,
    heldout: ImagesOrFolder | None = None,
    t: int = 60,
    steps: int = 8,
    levels: Sequence[int] = (60, 150, 300),
    draws: int = 4,
    contrast_t: int = 300,
    groups: Groups | None = None,
    features: str | Encoder = "pixels_l2",
    false_positive_rate: float = 0.001,
    on_duplicates: Literal["error", "drop", "keep"] = "error",
    seed: int = 0,
    precision: Precision = "bf16-mixed",
) -> Audit:
    """Find the training images that a model returns to, without sampling.

    A class-conditional model with a null class is evaluated without a class.

    Each image is refined. Where the model has memorized it, the refined image is the image itself.
    The same number of held-out images is the control: a model also returns to images that it never
    saw, and the claim is the difference.

    Args:
        model: from ``sidepipe.load``.
        train: uint8 ``(n, height, width, channels)`` of the size of the model, or a folder of
            images; at least 2.
        heldout: images of the same kind that the model never saw, which are required; at least 20.
        t: timestep of refinement, in ``[0, num_train_timesteps)``.
        steps: evaluations of refinement per image, >= 1.
        levels: timesteps of the noise that copies of an image get, ascending; ``()`` for none.
        draws: copies per level, >= 1.
        contrast_t: timestep at which the losses of a model with a base are compared, for the
            column ``contrast``, log(loss of the base / loss of the model).
        groups: as in ``compare``: all images of one subject are one finding, in ``subjects``.
        features: as in ``compare``.
        false_positive_rate: as in ``compare``.
        on_duplicates: as in ``compare``.
        seed: of the noise, in ``[0, 2**32)``.
        precision: ``"bf16-mixed"``, ``"16-mixed"`` or ``"32-true"``.

    Returns:
        Flagged images, the control, and all scores by image.

    Raises:
        ValueError: where an argument is out of its range, or the images do not fit the model.
        FileNotFoundError: where a folder is missing.

    Source:
        docs/audit.md. P-values: Bates et al., "Testing for Outliers with Conformal p-Values", 2023.

    Example:
        >>> import sidepipe
        >>> model = sidepipe.load(checkpoint)
        >>> found = sidepipe.audit(model, train=train, heldout=heldout, steps=2, levels=())
        >>> found.num_train, found.num_heldout, found.evaluations_per_image
        (40, 40, 6)
    """
    require(isinstance(model, Model), "model", "a Model of sidepipe.load", type(model).__name__)
    require_whole(t=t, steps=steps, draws=draws, contrast_t=contrast_t, seed=seed)
    is_list = isinstance(levels, Sequence | np.ndarray) and not isinstance(levels, str)
    require(is_list, "levels", "a list of timesteps", levels)
    probe = Probe(t, steps, list(levels), draws)
    _check(model, probe, contrast_t)
    require_numbers(false_positive_rate=false_positive_rate)
    require(0 < false_positive_rate < 1, "false_positive_rate", "in (0, 1)", false_positive_rate)
    require(0 <= seed < 2**32, "seed", "in [0, 2**32)", seed)
    require_known("on_duplicates", on_duplicates, ["error", "drop", "keep"])
    require_known("precision", precision, PRECISIONS)
    check_features(features)
    sets = read_sets({"train": train, "heldout": heldout}, LEAST, Reading(), groups)
    shape, rule = sets["train"].images.shape, ", ".join(map(str, model.image_shape))
    remedy = "audit images of the size that the model makes"
    require(shape[1:] == model.image_shape, "train", f"of shape (n, {rule})", shape, remedy)
    encoder = encoder_of(features)
    device = model._runtime.torch_device()
    encode = partial(encode_rows, encoder, device=device)
    known = calibrated(sets, encoder.metric, encode, false_positive_rate, on_duplicates)
    move = mover(model._denoiser, probe, seed, precision, model._runtime)
    contrast = _contrast(model, contrast_t, draws, seed)
    return _audited(known, encoder, probe, move, sets, device, contrast)


def _subjects(sets: Mapping[str, ImageSet]) -> np.ndarray | None:
    """The subject of each image, training images first; None without groups."""
    train, heldout = sets["train"].groups, sets["heldout"].groups
    return None if train is None or heldout is None else np.array([*train, *heldout])


def _contrast(
    model: Model, t: int, draws: int, seed: int
) -> Callable[..., Float32[np.ndarray, "n"]] | None:
    """`log_loss_ratio` of images, the `first` of which has a number; None without a base."""
    if model._base is None:
        return None
    device = model._runtime.torch_device()
    of_model, of_base = model._denoiser.to(device), model._base.to(device)
    return partial(log_loss_ratio, of_model, of_base, t=t, draws=draws, seed=seed)


def _check(model: Model, probe: Probe, contrast_t: int) -> None:
    """Raises ValueError where the model cannot be probed so; has it evaluated without a class."""
    for level in probe.levels:
        require_whole(levels=level)
    most, levels, classes = model.num_train_timesteps, list(probe.levels), model.num_classes
    rule, remedy = "one without classes, or with a null class", "pass null_class to sidepipe.load"
    without = classes is None or model.null_class is not None
    require(without, "model", rule, f"one of {classes} classes", remedy)
    for one in (model._denoiser, model._base):
        if classes is not None and one is not None:
            one.guide_by_class(0.0)
    rule = f"in [0, {most}), the timesteps of the model"
    require(0 <= probe.t < most, "t", rule, probe.t)
    fits = model._base is None or 0 <= contrast_t < most
    require(fits, "contrast_t", rule, contrast_t)
    require(probe.steps >= 1, "steps", ">= 1", probe.steps)
    require(probe.draws >= 1, "draws", ">= 1", probe.draws)
    require(sorted(set(levels)) == levels, "levels", "ascending timesteps", levels)
    require(all(0 <= level < most for level in levels), "levels", rule, levels)
    denoiser = model._denoiser
    require_x_0(denoiser.prediction_type, denoiser.alphas_cumprod, [probe.t, *levels])


def _audited(
    known: Calibrated,
    encoder: Encoder,
    probe: Probe,
    move: Move,
    images: Mapping[str, ImageSet],
    device: Device,
    contrast: Callable[..., Float32[np.ndarray, "n"]] | None,
) -> Audit:
    real, metric = known.real, encoder.metric
    threshold = threshold_at_false_positive_rate(real.real_gamma, known.rate, metric)
    sets = {"train": real.train, "heldout": real.unseen.part(slice(len(real.train.rows)))}
    found, first = {}, 0
    for name, of in sets.items():
        scored = partial(
            returns,
            features=of.features,
            move=move,
            encoder=encoder,
            probe=probe,
            threshold=threshold,
            device=device,
        )
        found[name] = _in_parts(scored, known.data, of.rows, first)
        if contrast is not None:
            found[name]["contrast"] = contrast(known.data[of.rows], first=first)
        first += len(of.rows)
    names = np.array(real_names(images))
    table = tables.scores(sets, found, metric, threshold, probe.levels, names, _subjects(images))
    table.loc[table["kind"] == "heldout", "index"] -= len(real.train.rows)
    order = np.argsort(-closeness(found["train"]["gamma"], metric), kind="stable")
    evaluations = probe.evaluations + (0 if contrast is None else 2 * probe.draws)
    return _result(table, order, threshold, known, encoder, evaluations)


def _result(
    table: pd.DataFrame,
    order: Int64[np.ndarray, "n"],
    threshold: float,
    known: Calibrated,
    encoder: Encoder,
    evaluations: int,
) -> Audit:
    """order: the training images, the closest first."""
    counts = tables.counts(table)
    low, high = counts["excess"]["interval"]
    finding = "the model returns to a larger share of held-out images than of training images"
    warn_of_swapped((low, high), finding, known.warnings)
    return Audit(
        num_train=counts["num_train"],
        num_heldout=counts["num_heldout"],
        flagged=order[: counts["flagged"]],
        heldout_flagged=counts["heldout_flagged"],
        excess=Estimate(counts["excess"]["share"], (low, high)),
        scores=table,
        subjects=by_subject(table, encoder.metric) if "subject" in table else None,
        threshold=threshold,
        false_positive_rate=known.rate,
        metric=encoder.metric,
        features=encoder.transform,
        evaluations_per_image=evaluations,
        warnings=tuple(known.warnings),
    )


def _in_parts(
    scored: Callable[..., dict[str, np.ndarray]],
    data: Images,
    rows: Int64[np.ndarray, "n"],
    first: int,
) -> dict[str, np.ndarray]:
    """The scores of the images in `rows`, of which few have their noised copies in memory."""
    parts = []
    for own in blocks(len(rows), PART):
        with as_arguments():
            parts.append(scored(images=data[rows[own]], own=own, first=first + own.start))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
