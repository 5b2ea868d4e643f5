"""Generated images compared with training images, and with held-out images as the control.

The arguments are checked and the images are read here, without torch; `measuring` compares them.
Rows of tables go to `tables`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sidepipe.api.decoding import Reading
from sidepipe.api.images import ImagesOrFolder, read_sets
from sidepipe.api.naming import as_arguments, as_path, require_numbers
from sidepipe.api.tables import compare_tables, is_table
from sidepipe.base.groups import Groups
from sidepipe.base.settings import require, require_known

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.api.result import Result
    from sidepipe.base.table_kinds import Kinds
    from sidepipe.features.encoders import Encoder

log = logging.getLogger(__name__)

WITHOUT_SETTINGS = ("pixels", "pixels_l2")
# Percentiles of the generated images, a pair of training images, and a threshold need so many.
LEAST = {"generated": 20, "train": 2, "heldout": 20}


def compare(
    generated: ImagesOrFolder | pd.DataFrame,
    *,
    train: ImagesOrFolder | pd.DataFrame | None = None,
    heldout: ImagesOrFolder | pd.DataFrame | None = None,
    features: str | Encoder = "pixels_l2",
    false_positive_rate: float = 0.001,
    on_duplicates: Literal["error", "drop", "keep"] | None = None,
    on_bad_file: Literal["error", "skip"] = "error",
    size: int | None = None,
    resize: Literal["crop", "stretch"] = "crop",
    channels: Literal[1, 3] | None = None,
    groups: Groups | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    cache: str | Path | None = None,
    on_unseen: Literal["error", "keep"] = "error",
    target: str | None = None,
    kinds: Kinds | None = None,
) -> Result:
    """Count the generated images that copy training images, beyond what held-out images explain.

    The threshold of a hit is the distance that a share ``false_positive_rate`` of the held-out
    images reach. Held-out hits are the control: the same count against images that the model never
    saw. The claim is the excess of hits over held-out hits.

    Rows of tables are compared likewise where ``generated``, ``train`` and ``heldout`` are CSV or
    Parquet files or data frames; the result is then a ``TableResult`` (docs/tables.md).

    Args:
        generated: uint8 ``(n, h, w, c)`` with ``c`` of 1 or 3, or a folder of images; at least 20.
            ``(255 * x).round().astype(numpy.uint8)`` converts floats in [0, 1], and
            ``(127.5 * (x + 1)).round().astype(numpy.uint8)`` those in [-1, 1].
        train: the images that the model was trained on, in the same form, which are required; at
            least 2.
        heldout: images of the same kind that the model never saw, which are required; at least 20.
            As many as ``train`` or more make the best control: disjoint sets of ``len(train)`` are
            taken in their order.
        features: an encoder of ``sidepipe.features.encoders``, or the name of one without settings:
            ``"pixels_l2"``, the root-mean-square pixel difference, or ``"pixels"``, the correlation
            of pixels. For images of 64 pixels or more take ``SSCD(path, sha256)``.
        false_positive_rate: in ``(0, 1)``; with too few held-out images, ``1 / len(heldout)``.
        on_duplicates: where held-out images duplicate training images: ``"error"``, the default
            for images; ``"drop"`` leaves these held-out images out; ``"keep"``, the default for
            tables, continues with a warning.
        on_bad_file: where a file cannot be read: ``"error"``; ``"skip"`` leaves it out and warns.
        size: pixels per side, to which all images are resized; ``None`` where they have one size.
        resize: how ``size`` changes images that are not square: ``"crop"`` keeps the central
            square, ``"stretch"`` keeps the whole image and changes its aspect ratio.
        channels: 1 converts all images to gray levels, 3 to RGB; ``None`` where they agree.
        groups: the subject of each real image, such as a patient, where several images show one: a
            CSV file with the columns ``file`` and ``group``, or ``{"train": [...], "heldout":
            [...]}`` with one value per image. Thresholds, false positive rates, held-out sets,
            intervals and different images then count groups.
        device: where an encoder that is a network runs.
        cache: a folder that keeps the pixels of images in files, which are then not in memory, and
            the features by the content of the images. The same call resumes after it was killed,
            and calls with other settings or other generated images reuse the rest.
        on_unseen: of tables: ``"error"`` where a generated row has a category that no real row has,
            or a missing value in a column without any; ``"keep"`` compares it as a category.
        target: of tables: the column that is predicted, whose few whole numbers are then classes.
        kinds: of tables: ``"numeric"``, ``"categorical"`` or ``"ordinal"`` by column, where the
            detected kind is wrong; a list of values is ordinal in this order.

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
    given = {"generated": generated, "train": train, "heldout": heldout}
    of_images = {"features": features, "size": size, "resize": resize, "channels": channels}
    of_images |= {"groups": groups, "device": device, "cache": cache, "on_bad_file": on_bad_file}
    of_tables = {"on_unseen": on_unseen, "target": target, "kinds": kinds}
    rows = is_table(generated)
    on_duplicates = on_duplicates or ("keep" if rows else "error")
    _check(on_duplicates, false_positive_rate)
    _require_defaults("tables" if rows else "images", of_images if rows else of_tables)
    if rows:
        return compare_tables(given, false_positive_rate, on_duplicates, **of_tables)
    require_known("device", device, ["auto", "cpu", "cuda", "mps"])
    check_features(features)
    folder, how = _folder(cache), Reading(size, resize, channels, on_bad_file)
    sets = read_sets(given, LEAST, how, groups, folder)
    log.info("%s", ", ".join(f"{len(one.images):,} {name}" for name, one in sets.items()))

    from sidepipe.api.measuring import measured

    rate: dict[str, Any] = {"false_positive_rate": false_positive_rate, "device": device}
    return measured(sets, features=features, on_duplicates=on_duplicates, cache=folder, **rate)


def _check(on_duplicates: str, false_positive_rate: float) -> None:
    require_numbers(false_positive_rate=false_positive_rate)
    require(0 < false_positive_rate < 1, "false_positive_rate", "in (0, 1)", false_positive_rate)
    require_known("on_duplicates", on_duplicates, ["error", "drop", "keep"])


def _folder(cache: str | Path | None) -> Path | None:
    """The folder of the cache; ValueError where it is a file."""
    folder = None if cache is None else as_path("cache", cache)
    fits = folder is None or folder.is_dir() or not folder.exists()
    require(fits, "cache", "a folder, or a new name", str(folder))
    return folder


def _require_defaults(of: str, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError where an argument that has no effect on images, or on tables, is given."""
    for name, value in arguments.items():
        default = inspect.signature(compare).parameters[name].default
        require(value is default or value == default, name, f"left out for {of}", value)


def check_features(features: str | Encoder) -> None:
    """Raises ValueError or FileNotFoundError where the encoder cannot be used."""
    if isinstance(features, str):
        rule = f"one of {sorted(WITHOUT_SETTINGS)}"
        remedy = "others need settings: pass an object, such as sidepipe.features.encoders.SSCD"
        require(features in WITHOUT_SETTINGS, "features", rule, features, f"{remedy}(path, …)")
        return
    fits = all(hasattr(features, name) for name in ("check", "encode", "metric"))
    rule, remedy = f"one of {sorted(WITHOUT_SETTINGS)} or an encoder", "pass an object, as Pixels()"
    require(fits and not isinstance(features, type), "features", rule, features, remedy)
    with as_arguments("features"):
        features.check()
