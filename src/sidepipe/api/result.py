"""The result of a comparison: numbers with intervals, the closest pairs, a one-page report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from sidepipe.api.images import Images, counted
from sidepipe.api.naming import as_new_file, as_path
from sidepipe.base.files import whole_file
from sidepipe.stages.report.attack import Attack
from sidepipe.stages.report.words import COLLAPSED, finding


@dataclass(frozen=True)
class Estimate:
    """A share of the generated images and its 95 % interval.

    Attributes:
        share: in ``[-1, 1]``.
        interval: ``(low, high)``, for generated images that are independent of each other.
    """

    share: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval)
        return f"{100 * self.share:.2f} % (95 % interval {low:.2f} to {high:.2f} %)"


@dataclass(frozen=True, eq=False)
class Pair:
    """A generated image, its nearest training image and its nearest held-out image.

    Attributes:
        generated: index of the generated image in ``generated``.
        train: index of the nearest training image in ``train``.
        heldout: index of the nearest held-out image in ``heldout``, among as many of its first
            images as there are training images.
        train_gamma: distance to the training image, or cosine similarity with it.
        heldout_gamma: the same for the held-out image.
        hit: whether the generated image is a hit.
        images: uint8 ``(3, height, width, channels)``: generated, training, held-out.
        names: of the three images: files below their folders, or places in arrays.
    """

    generated: int
    train: int
    heldout: int
    train_gamma: float
    heldout_gamma: float
    hit: bool
    images: Images = field(repr=False)
    names: tuple[str, str, str]


@dataclass(frozen=True, eq=False)
class Result:
    """Hits on training images and on held-out images. ``sidepipe.compare`` makes it.

    A generated image is a hit where its nearest training image is at least as close as
    ``threshold``, which ``false_positive_rate`` of the held-out images reach.

    Attributes:
        num_images: number of generated images.
        hits: generated images that hit a training image.
        heldout_hits: generated images that hit one of equally many held-out images; a mean over
            disjoint held-out sets where there are several, and an upper bound where there are
            fewer held-out images than training images.
        excess: the share of hits less the share of held-out hits. It is near 0 for a model that
            copies nothing. ``None`` where the generated images have collapsed: nearly all are one
            image, a few images again and again, or of a single color each. Then only
            exact copies are a finding, and ``warnings`` has the reason.
        unique: number of different training images, or of their groups, that are hit; near
            duplicates count once.
        pairs: the closest pairs, each of a different training image, the closest first.
        threshold: a distance (``metric`` ``"l2"``) or a similarity (``"cosine"``).
        false_positive_rate: the share of held-out images that may reach the threshold.
        true_rate_interval: the exact 95 % interval of the true false positive rate.
        metric: ``"l2"``, where smaller is closer, or ``"cosine"``, where larger is closer.
        features: name and version of the encoder.
        hit: which generated images are hits, bool ``(num_images,)``.
        warnings: limitations of the numbers, as sentences; they are also logged.
    """

    num_images: int
    hits: int
    heldout_hits: float
    excess: Estimate | None
    unique: int
    pairs: tuple[Pair, ...] = field(repr=False)
    threshold: float
    false_positive_rate: float
    true_rate_interval: tuple[float, float]
    metric: str
    features: str
    hit: Bool[np.ndarray, "n"] = field(repr=False)
    warnings: tuple[str, ...]
    _counts: Mapping[str, Any] = field(repr=False)
    _hits: Sequence[tuple[str | float, ...]] = field(repr=False)
    _inputs: Mapping[str, Any] = field(repr=False)

    def __str__(self) -> str:
        excess = COLLAPSED if self.excess is None else self.excess
        one = "group" if self._counts["num_groups"] else "one"
        attack = self._attack("generated")
        lines = [
            finding(attack),
            f"excess of hits over held-out hits: {excess}",
            f"{self.hits:,} of {self.num_images:,} generated {attack.item}s "
            f"{'hits' if self.hits == 1 else 'hit'} a training {attack.item} "
            f"({counted(self.unique, f'different {one}')}); {self.heldout_hits:.3g} held-out "
            f"hit{'' if self.heldout_hits == 1 else 's'}",
        ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def _attack(self, name: str) -> Attack:
        """The counts as the report reads them."""
        return Attack(name, Path(), dict(self._counts), {})

    def report(self, path: str | Path = "report.html", *, title: str = "Comparison") -> Path:
        """Write one page: the answer, the numbers with their intervals and the closest pairs.

        Args:
            path: the file to write or replace. The page needs no other file and no network.
            title: the heading of the page.

        Returns:
            The path.

        Raises:
            FileNotFoundError: where the folder of the file does not exist.

        Example:
            >>> import sidepipe
            >>> result = sidepipe.compare(generated, train=train, heldout=heldout)
            >>> result.report(folder / "report.html").name
            'report.html'
        """
        file = as_new_file("path", path)
        text = self._page(title)
        with whole_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return file

    def _page(self, title: str) -> str:
        """The report as HTML."""
        from sidepipe.stages.report.single import page

        rows = [
            {
                "index": pair.names[0],
                "hit": pair.hit,
                "new": False,
                "train_id": pair.names[1],
                "train_gamma": pair.train_gamma,
                "heldout_id": pair.names[2],
                "heldout_gamma": pair.heldout_gamma,
            }
            for pair in self.pairs
        ]
        source = self._inputs["generated"]["source"]
        compared = "generated images" if source == "array" else Path(source).name
        triples = [pair.images for pair in self.pairs]
        return page(title, self._attack(compared), triples, rows, self.warnings)

    def table(self) -> str:
        """The finding, the numbers with their intervals in plain text, and what a hit is.

        Returns:
            Lines of at most 110 characters, warnings excepted.

        Example:
            >>> import sidepipe
            >>> result = sidepipe.compare(generated, train=train, heldout=heldout)
            >>> print(result.table().splitlines()[0])
            10 of 40 training images are reproduced; 0 of 40 held-out ones.
        """
        from sidepipe.api.saving import table

        return table(self)

    def save(self, folder: str | Path, **arguments: object) -> Path:
        """Write the whole result: report.html, pairs.csv and result.json.

        ``pairs.csv`` has a row per hit: the generated image, the nearest real image, their distance
        or similarity, the threshold, and whether the hit is on a training or a held-out image.
        ``result.json`` has every number with its interval, versions, the seed, and the SHA-256 of
        the images that were compared.

        Args:
            folder: a new or empty folder, which is made.
            arguments: further entries of ``result.json``, such as how the images were made.

        Returns:
            The folder.

        Raises:
            FileExistsError: where the folder holds files.

        Example:
            >>> import sidepipe
            >>> result = sidepipe.compare(generated, train=train, heldout=heldout)
            >>> sorted(path.name for path in result.save(folder / "comparison").iterdir())
            ['pairs.csv', 'report.html', 'result.json']
        """
        from sidepipe.api.saving import save

        return save(self, as_path("folder", folder), arguments)
