"""An owner's audit: the training images that a model returns to, next to held-out images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int64

from sidepipe.api.audited import Audit
from sidepipe.api.comparing import LEAST, check_features
from sidepipe.api.control import Calibrated, calibrated, warn_of_swapped
from sidepipe.api.decoding import Reading
from sidepipe.api.images import Images, ImageSet, ImagesOrFolder, read_sets
from sidepipe.api.measuring import encoder_of, real_names
from sidepipe.api.model import Model
from sidepipe.api.naming import as_arguments, require_numbers, require_whole
from sidepipe.api.result import Estimate
from sidepipe.base.groups import Groups
from sidepipe.base.settings import PRECISIONS, Precision, require, require_known
from sidepipe.diffusion.sampler import require_x_0
from sidepipe.features.encoders import Encoder
from sidepipe.features.pairs import blocks
from sidepipe.memorization.audit import Probe, closeness, returns
from sidepipe.memorization.real import Encoded, encode_rows
from sidepipe.memorization.thresholds import threshold_at_false_positive_rate
from sidepipe.stages.audit import tables
from sidepipe.stages.audit.chances import with_probabilities
from sidepipe.stages.audit.move import mover, refined_samples
from sidepipe.stages.audit.single import evaluations, single_scores
from sidepipe.stages.audit.stage import PART
from sidepipe.stages.audit.subjects import by_subject

if TYPE_CHECKING:
    import pandas as pd


def audit(
    model: Model,
    *,
    train: ImagesOrFolder,
    heldout: ImagesOrFolder | None = None,
    t: int = 60,
    steps: int = 8,
    levels: Sequence[int] = (60, 150, 300),
    draws: int = 4,
    probes: int = 16,
    contrast_t: int = 300,
    sampled: int = 1000,
    budget: int = 10_000,
    groups: Groups | None = None,
    features: str | Encoder = "pixels_l2",
    false_positive_rate: float = 0.001,
    on_duplicates: Literal["error", "drop", "keep"] = "error",
    seed: int = 0,
    precision: Precision = "bf16-mixed",
) -> Audit:
    """Find the training images that a model returns to, and the probability of their extraction.

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
        probes: evaluations of the score divergence, >= 1.
        contrast_t: timestep at which the losses of a model with a base are compared, for the
            column ``contrast``, log(loss of the base / loss of the model).
        sampled: refined samples of the model that calibrate the column ``probability``; 0 for none.
        budget: refined images of the attacker whose success the probability predicts, >= 1.
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
        >>> found = sidepipe.audit(
        ...     model, train=train, heldout=heldout, steps=2, levels=(), sampled=0
        ... )
        >>> found.num_train, found.num_heldout, found.evaluations_per_image
        (40, 40, 22)
    """
    require(isinstance(model, Model), "model", "a Model of sidepipe.load", type(model).__name__)
    require_whole(t=t, steps=steps, draws=draws, probes=probes, contrast_t=contrast_t, seed=seed)
    require(_is_list(levels), "levels", "a list of timesteps", levels)
    probe = Probe(t, steps, list(levels), draws, probes)
    _check(model, probe, contrast_t)
    _check_numbers(false_positive_rate, seed, sampled, budget)
    require_known("on_duplicates", on_duplicates, ["error", "drop", "keep"])
    require_known("precision", precision, PRECISIONS)
    check_features(features)
    sets = _read(model, train, heldout, groups)
    encoder = encoder_of(features)
    encode = partial(encode_rows, encoder, device=model._runtime.torch_device())
    known = calibrated(sets, encoder.metric, encode, false_positive_rate, on_duplicates)
    own = _Run(model, known, encoder, probe, seed, precision)
    table, chances = own.with_chances(own.scores(sets, contrast_t), sampled, budget)
    of_image = evaluations(probe, model._base is not None)
    return _result(table, own.threshold, known, encoder, of_image, chances, seed)


def _read(
    model: Model, train: ImagesOrFolder, heldout: ImagesOrFolder | None, groups: Groups | None
) -> dict[str, ImageSet]:
    """Both sets; ValueError unless they have the size of the model's images."""
    sets = read_sets({"train": train, "heldout": heldout}, LEAST, Reading(), groups)
    shape, rule = sets["train"].images.shape, ", ".join(map(str, model.image_shape))
    remedy = "audit images of the size that the model makes"
    require(shape[1:] == model.image_shape, "train", f"of shape (n, {rule})", shape, remedy)
    return sets


def _is_list(levels: object) -> bool:
    return isinstance(levels, Sequence | np.ndarray) and not isinstance(levels, str)


def _check_numbers(false_positive_rate: float, seed: int, sampled: int, budget: int) -> None:
    require_whole(sampled=sampled, budget=budget)
    require_numbers(false_positive_rate=false_positive_rate)
    require(0 < false_positive_rate < 1, "false_positive_rate", "in (0, 1)", false_positive_rate)
    require(0 <= seed < 2**32, "seed", "in [0, 2**32)", seed)
    require(sampled >= 0, "sampled", ">= 0", sampled)
    require(budget >= 1, "budget", ">= 1", budget)


def _subjects(sets: Mapping[str, ImageSet]) -> np.ndarray | None:
    """The subject of each image, training images first; None without groups."""
    train, heldout = sets["train"].groups, sets["heldout"].groups
    return None if train is None or heldout is None else np.array([*train, *heldout])


def _check(model: Model, probe: Probe, contrast_t: int) -> None:
    """Raises ValueError where the model cannot be probed so; has it evaluated without a class."""
    rule, remedy = "one of images", "sidepipe stage=audit audits table models (docs/models.md)"
    is_of_images = model._denoiser.image_dtype == np.uint8
    require(is_of_images, "model", rule, "a model of table rows", remedy)
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
    require(probe.probes >= 1, "probes", ">= 1", probe.probes)
    require(sorted(set(levels)) == levels, "levels", "ascending timesteps", levels)
    require(all(0 <= level < most for level in levels), "levels", rule, levels)
    denoiser = model._denoiser
    require_x_0(denoiser.prediction_type, denoiser.alphas_cumprod, [probe.t, *levels])


@dataclass(frozen=True)
class _Run:
    """The computations of one audit."""

    model: Model
    known: Calibrated
    encoder: Encoder
    probe: Probe
    seed: int
    precision: Precision

    @cached_property
    def threshold(self) -> float:
        gamma = self.known.real.real_gamma
        return threshold_at_false_positive_rate(gamma, self.known.rate, self.encoder.metric)

    @cached_property
    def sets(self) -> dict[str, Encoded]:
        """Training images, and as many held-out ones."""
        train = self.known.real.train
        return {"train": train, "heldout": self.known.real.unseen.part(slice(len(train.rows)))}

    def scores(self, images: Mapping[str, ImageSet], contrast_t: int) -> pd.DataFrame:
        """A row per image; the index of an image is its place in its own set."""
        model, found, first = self.model, {}, 0
        device = model._runtime.torch_device()
        move = mover(model._denoiser, self.probe, self.seed, self.precision, model._runtime)
        base = None if model._base is None else model._base.to(device)
        denoiser = model._denoiser.to(device)
        single = single_scores(denoiser, base, self.probe, contrast_t, self.seed)
        of_move = partial(
            returns,
            move=move,
            encoder=self.encoder,
            probe=self.probe,
            threshold=self.threshold,
            device=device,
        )
        for name, of in self.sets.items():
            scored = partial(of_move, features=of.features)
            found[name] = _in_parts(scored, self.known.data, of.rows, first)
            for score, by in single.items():
                found[name][score] = by(self.known.data[of.rows], first=first)
            first += len(of.rows)
        names, metric, levels = np.array(real_names(images)), self.encoder.metric, self.probe.levels
        table = tables.scores(
            self.sets, found, metric, self.threshold, levels, names, _subjects(images)
        )
        table.loc[table["kind"] == "heldout", "index"] -= len(self.known.real.train.rows)
        return table

    def with_chances(
        self, table: pd.DataFrame, sampled: int, budget: int
    ) -> tuple[pd.DataFrame, dict[str, Any] | None]:
        """The table with probabilities of extraction, and the expected numbers; none without."""
        if not sampled:
            return table, None
        model, runtime = self.model, self.model._runtime
        sample = refined_samples(model._denoiser, self.probe, self.seed, self.precision, runtime)
        parts = [range(part.start, part.stop) for part in blocks(sampled, PART)]
        device = runtime.torch_device()
        drawn = [self.encoder.encode(sample(part), device) for part in parts]
        return with_probabilities(
            table,
            np.concatenate(drawn),
            self.sets,
            self.encoder.metric,
            self.threshold,
            budget=budget,
            levels=self.probe.levels,
            seed=self.seed,
        )


def _result(
    table: pd.DataFrame,
    threshold: float,
    known: Calibrated,
    encoder: Encoder,
    evaluations_per_image: int,
    chances: dict[str, Any] | None,
    seed: int,
) -> Audit:
    gamma = np.array(table.loc[table["kind"] == "train", "gamma"])
    order = np.argsort(-closeness(gamma, encoder.metric), kind="stable")
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
        extraction=chances,
        inference=tables.inference(table, seed),
        scores=table,
        subjects=by_subject(table, encoder.metric) if "subject" in table else None,
        threshold=threshold,
        false_positive_rate=known.rate,
        metric=encoder.metric,
        features=encoder.transform,
        evaluations_per_image=evaluations_per_image,
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
