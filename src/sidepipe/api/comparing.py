"""`compare`: generated images against training images, with held-out images as the control."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from sidepipe.api.images import Images, ImagesOrFolder, read_sets, require_count
from sidepipe.api.naming import as_arguments
from sidepipe.api.result import Estimate, Pair, Result
from sidepipe.base.settings import require, require_known
from sidepipe.engine.stage import Runtime
from sidepipe.features.duplicates import near_duplicate_groups
from sidepipe.features.encoders import Encoder, Pixels, PixelsL2
from sidepipe.features.image_duplicates import Duplicates, duplicates_across
from sidepipe.memorization.collapse import collapse
from sidepipe.memorization.comparison import Comparison
from sidepipe.memorization.comparison import compare as search
from sidepipe.memorization.real import Encoded, checked_rates, near_duplicates, real_images
from sidepipe.memorization.results import closest_pairs, counted
from sidepipe.memorization.scores import closer
from sidepipe.memorization.thresholds import MIN_UNSEEN, allowed
from sidepipe.stages.evaluate.stage import BLIND_IMAGES, MIN_IMAGES

log = logging.getLogger(__name__)

ENCODERS = {"pixels": Pixels, "pixels_l2": PixelsL2}
NUM_PAIRS = 60
NAMED = 5  # duplicates that a message lists


def compare(
    generated: ImagesOrFolder,
    *,
    train: ImagesOrFolder,
    heldout: ImagesOrFolder,
    features: str | Encoder = "pixels_l2",
    false_positive_rate: float = 0.001,
    on_duplicates: Literal["error", "drop", "keep"] = "error",
    size: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
) -> Result:
    """Count the generated images that copy training images, beyond what held-out images explain.

    The threshold of a hit is the distance that a share ``false_positive_rate`` of the held-out
    images reach. Held-out hits are the control: the same count against images that the model never
    saw. The claim is the excess of hits over held-out hits.

    Args:
        generated: uint8 ``(n, h, w, c)`` with ``c`` of 1 or 3, or a folder of images; at least 20.
        train: the images that the model was trained on, in the same form; at least 2.
        heldout: images of the same kind that the model never saw; at least 20. As many as ``train``
            or more make the best control: disjoint sets of ``len(train)`` are taken in their order.
        features: an encoder of ``sidepipe.features.encoders``, or the name of one without settings:
            ``"pixels_l2"``, the root-mean-square pixel difference, or ``"pixels"``, the correlation
            of pixels. For images of 64 pixels or more take ``SSCD(path, sha256)``.
        false_positive_rate: in ``(0, 1)``; with too few held-out images, ``1 / len(heldout)``.
        on_duplicates: where held-out images duplicate training images: ``"error"``; ``"drop"``
            leaves these held-out images out; ``"keep"`` continues with a warning.
        size: side in pixels to which all images are cropped and resized; ``None`` where they
            have one size.
        device: where an encoder that is a network runs.

    Returns:
        Hits, held-out hits, excess with its 95 % interval, different training images, pairs.

    Raises:
        ValueError: where an argument is out of its range, images differ in size or channels, there
            are too few, held-out images duplicate training images, or no image could be a hit.
        FileNotFoundError: where a folder is missing.

    Source:
        Held-out control and excess: docs/evaluation.md. The distance: Carlini et al., "Extracting
        Training Data from Diffusion Models", USENIX Security 2023. The interval: Newcombe, 1998.

    Example:
        >>> import sidepipe
        >>> result = sidepipe.compare(generated, train=train, heldout=heldout)
        >>> result.hits, result.heldout_hits, result.unique
        (10, 0.0, 10)
        >>> result.excess.share
        0.5
    """
    require(0 < false_positive_rate < 1, "false_positive_rate", "in (0, 1)", false_positive_rate)
    require_known("on_duplicates", on_duplicates, ["error", "drop", "keep"])
    require_known("device", device, ["auto", "cpu", "cuda", "mps"])
    encoder = _encoder(features)
    encoder.check()
    sets, names = read_sets({"generated": generated, "train": train, "heldout": heldout}, size)
    for name, least in (("generated", MIN_IMAGES), ("train", 2), ("heldout", MIN_UNSEEN)):
        require_count(name, len(sets[name]), least)
    data = np.concatenate([sets["train"], sets["heldout"]])
    rows, said = [*names["train"], *names["heldout"]], []
    trained = np.arange(len(sets["train"]))
    unseen = np.arange(len(trained), len(data))
    _, found = duplicates_across(data, trained, unseen)
    unseen = _without_duplicates(unseen, found, rows, on_duplicates, said)
    with as_arguments():
        runtime = Runtime(accelerator=device)
        runtime.require_accelerator()
        encode = partial(encoder.encode, device=runtime.torch_device())
        queries = encode(sets["generated"])
        seen, held = Encoded(trained, encode(sets["train"])), Encoded(unseen, encode(data[unseen]))
        real = real_images(seen, held, encoder.metric)
        rates = checked_rates(real, [false_positive_rate], encoder.metric, rows.__getitem__)
    said += _on_control(
        false_positive_rate, rates[0], near_duplicates(real, encoder.metric), unseen
    )
    comparison = search(queries, None, real, encoder.metric)
    return _result(comparison, rates, encoder, sets["generated"], data, said)


def _encoder(features: str | Encoder) -> Encoder:
    if isinstance(features, Encoder):
        return features
    remedy = (
        "others need settings: pass an object, such as sidepipe.features.encoders.SSCD(path, …)"
    )
    require(features in ENCODERS, "features", f"one of {sorted(ENCODERS)}", features, remedy)
    return ENCODERS[features]()


def _without_duplicates(
    unseen: np.ndarray,
    found: Duplicates,
    names: Sequence[str],
    on_duplicates: str,
    said: list[str],
) -> np.ndarray:
    """The held-out images that stay; raises ValueError where `on_duplicates` forbids duplicates."""
    places = np.flatnonzero(found.found)
    if len(places) == 0:
        return unseen
    pairs = [f"{names[int(unseen[i])]} = {names[int(found.row[i])]}" for i in places[:NAMED]]
    more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
    text = (
        f"{len(places)} of {len(unseen)} held-out images duplicate training images "
        f"({int(found.exact.sum())} exactly): {', '.join(pairs)}{more}"
    )
    if on_duplicates == "error":
        raise ValueError(
            f"heldout must hold no duplicates of train: {text}; hit thresholds set on them would "
            "hide copies; remedy: on_duplicates='drop' leaves these held-out images out, 'keep' "
            "continues with a warning"
        )
    _warn(f"{text}; they are {'left out' if on_duplicates == 'drop' else 'kept'}", said)
    if on_duplicates == "keep":
        return unseen
    left = unseen[~found.found]
    name = f"the number of held-out images that on_duplicates='drop' leaves of {len(unseen)}"
    require(len(left) >= MIN_UNSEEN, name, f">= {MIN_UNSEEN}", len(left), "pass other images")
    return left


def _warn(text: str, said: list[str]) -> None:
    log.warning("%s", text)
    said.append(text)


def _on_control(asked: float, used: float, near: dict[str, float], unseen: np.ndarray) -> list[str]:
    said: list[str] = []
    if used != asked:
        rates = f"{100 * asked:.3g} %; used: {100 * used:.3g} %"
        _warn(
            f"{len(unseen)} held-out images are too few for a false positive rate of {rates}", said
        )
    if near["count"] > allowed(len(unseen), used):
        text = "are near duplicates of training images to this encoder: they set the threshold of a"
        _warn(f"{near['count']} of {len(unseen)} held-out images {text} hit, and hide copies", said)
    return said


def _result(
    c: Comparison,
    rates: list[float],
    encoder: Encoder,
    generated: Images,
    data: Images,
    said: list[str],
) -> Result:
    counts, groups = counted(c, rates)
    at: dict[str, Any] = counts["calibrated"][0]
    hit = closer(c.train.gamma, at["threshold"], c.metric)
    center = near_duplicate_groups(c.queries[:BLIND_IMAGES], c.metric, at["threshold"])
    alike = collapse(generated, np.sort(np.unique(center, return_counts=True)[1])[::-1])
    if alike is not None:
        _warn(f"the model {alike['said']}", said)
    about = {
        "truth": "train",
        "metric": c.metric,
        "transform": encoder.transform,
        "num_images": len(generated),
        "collapse": alike,
    }
    return Result(
        num_images=len(generated),
        hits=at["train"]["count"],
        heldout_hits=at["heldout"]["scaled"],
        excess=Estimate(
            at["excess"]["share"], (at["excess"]["interval"][0], at["excess"]["interval"][1])
        ),
        unique=at["train"]["unique"],
        pairs=_pairs(c, groups["train"], hit, generated, data),
        threshold=at["threshold"],
        false_positive_rate=at["false_positive_rate"],
        true_rate_interval=(at["true_rate_interval"][0], at["true_rate_interval"][1]),
        metric=c.metric,
        features=encoder.transform,
        hit=hit,
        warnings=tuple(said),
        _counts={**about, **counts},
    )


def _pairs(
    c: Comparison, group: np.ndarray, hit: np.ndarray, generated: Images, data: Images
) -> tuple[Pair, ...]:
    found = []
    for i in closest_pairs(c, group, NUM_PAIRS).tolist():
        train = int(c.train.rows[c.train.index[i]])
        heldout = int(c.heldout.rows[c.heldout.index[i]])
        found.append(
            Pair(
                generated=i,
                train=train,
                heldout=heldout - len(c.train.rows),
                train_gamma=float(c.train.gamma[i]),
                heldout_gamma=float(c.heldout.gamma[i]),
                hit=bool(hit[i]),
                images=np.stack([generated[i], data[train], data[heldout]]),
            )
        )
    return tuple(found)
