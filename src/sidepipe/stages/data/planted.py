"""Captioned pairs made from any source, some of them repeated in the training set.

Captions describe measurable properties of the image, so that it can be measured whether a generated
image fits its prompt, and no two are equal. A planted pair's caption has a word of its own.
"""

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from string import Formatter

import numpy as np
from jaxtyping import Float, Int64, UInt8

from sidepipe.base.image_reading import THREADS, Caption, Entry, convert
from sidepipe.base.settings import require, require_known
from sidepipe.stages.data.sources import Source

# More identities than this, such as people, are no classes for a caption.
MAX_CLASSES = 50
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Pixels per side at which tone and slant are measured.
MEASURED_SIZE = 8
# Two halves make the name of a place that no other caption has.
HEADS = (
    *("alder", "ash", "birch", "brack", "cald", "crom", "drey", "dun", "eld", "elm", "farn"),
    *("fen", "glen", "gold", "hart", "holm", "kel", "kirk", "lang", "loch", "marl", "nor"),
    *("oak", "pen", "quin", "rav", "sel", "thorn", "ul", "ver", "wen", "yar"),
)
TAILS = (
    *("beck", "bury", "combe", "dale", "fell", "field", "ford", "gate", "ham", "holt", "hurst"),
    *("ley", "low", "mere", "minster", "more", "port", "shaw", "stead", "thorpe", "ton", "wick"),
    *("wold", "worth"),
)


@dataclass(frozen=True)
class Planted(Source):
    """Captioned pairs of `source`'s images, whose own partitions are ignored.

    planted: rows [repeats, pairs]: how often such a pair is in the training set, and the number of
    these pairs; those with 1 repeat are controls. num_heldout: pairs outside the training set, of
    partition test. num_base: pairs trained on once, without a word of their own; None for all
    remaining images. templates, planted_templates: of captions, one drawn per caption; fields are
    {class} (the identity), {tone} (of the mean), {slant} (of the axis), any other list of `words`
    (drawn), and in planted ones {word}. words: per field; those of tone run from dark to bright,
    those of slant from left to right, and each word has an equal share of the images.
    """

    source: Source
    planted: list[list[int]]
    num_heldout: int
    num_base: int | None
    templates: list[str]
    planted_templates: list[str]
    words: dict[str, list[str]]
    seed: int

    def __post_init__(self) -> None:
        for row in self.planted:
            ok = len(row) == 2 and row[0] >= 1 and row[1] >= 0
            require(ok, "data.source.planted", "[repeats >= 1, pairs >= 0] each", row)
        for name, count in [("num_heldout", self.num_heldout), ("num_base", self.num_base or 0)]:
            require(count >= 0, f"data.source.{name}", ">= 0 pairs", count)
        for name, words in self.words.items():
            ok = len(words) == len(set(words)) > 0
            require(ok, f"data.source.words.{name}", "words that differ, at least one", words)
        fields = {"class", *self.words}
        _check_templates("data.source.templates", self.templates, fields)
        name = "data.source.planted_templates"
        _check_templates(name, self.planted_templates, {*fields, "word"})
        for template in self.planted_templates:
            require("word" in _fields(template), name, "templates with {word}", template)

    def listing(self) -> str:
        return self.source.listing()

    def left_out(self) -> Counter[str]:
        return self.source.left_out()

    def entries(self) -> list[Entry]:
        listed = self.source.entries()
        measured = partial(convert, size=MEASURED_SIZE, channels=1, center_crop=None)
        with ThreadPoolExecutor(THREADS) as pool:
            images = [image for image, _ in pool.map(measured, listed)]
        results = list(zip(listed, images, strict=True))
        # Unreadable images are kept here: `read_images` applies on_bad_file.
        broken = [
            replace(entry, problem=image) for entry, image in results if isinstance(image, str)
        ]
        readable = [(entry, image) for entry, image in results if not isinstance(image, str)]
        if not readable:
            return broken
        entries, arrays = zip(*readable, strict=True)
        return broken + self._pairs(entries, np.stack(arrays)[..., 0])

    def _pairs(self, entries: Sequence[Entry], images: UInt8[np.ndarray, "n h w"]) -> list[Entry]:
        rng = np.random.default_rng(self.seed)
        attributes = self._attributes(entries, images)
        order = rng.permutation(len(entries))
        roles = self._roles(attributes, rng)
        taken: set[str] = set()
        pairs = {}
        for i, (partition, repeats, word) in zip(order, roles, strict=False):
            caption = self._caption(attributes[i], repeats, word, taken, rng)
            taken.add(caption.text)
            pairs[i] = replace(entries[i], partition=partition, caption=caption)
        return [pairs[i] for i in sorted(pairs)]

    def _roles(
        self, attributes: Sequence[dict[str, str]], rng: np.random.Generator
    ) -> list[tuple[str, int, str]]:
        """(partition, repeats, word) of every pair: held out, planted, base."""
        num_images = len(attributes)
        repeats = [count for count, pairs in self.planted for _ in range(pairs)]
        needed = self.num_heldout + len(repeats) + (self.num_base or 0)
        require(
            needed <= num_images,
            "the pairs of data.source.planted, num_heldout and num_base",
            f"<= {num_images}, the images that can be read",
            needed,
        )
        num_base = num_images - needed if self.num_base is None else self.num_base
        texts = [*self.templates, *self.planted_templates]
        texts += [word for words in self.words.values() for word in words]
        texts += [word for said in attributes for word in said.values()]
        words = _new_words(len(repeats), set(" ".join(texts).split()), rng)
        return [
            *[("test", 1, "")] * self.num_heldout,
            *(("train", count, word) for count, word in zip(repeats, words, strict=True)),
            *[("train", 1, "")] * num_base,
        ]

    def _attributes(
        self, entries: Sequence[Entry], images: UInt8[np.ndarray, "n h w"]
    ) -> list[dict[str, str]]:
        """The words for each image's measured fields, those that templates name."""
        used = set().union(*map(_fields, [*self.templates, *self.planted_templates]))
        columns: dict[str, list[str]] = {}
        if "class" in used:
            columns["class"] = _class_words([entry.identity for entry in entries])
        for name, measure in {"tone": _tones, "slant": _slants}.items():
            if name in used:
                words = self.words[name]
                columns[name] = [words[part] for part in _equal_parts(measure(images), len(words))]
        return [{name: column[i] for name, column in columns.items()} for i in range(len(entries))]

    def _caption(
        self,
        attributes: dict[str, str],
        repeats: int,
        word: str,
        taken: set[str],
        rng: np.random.Generator,
    ) -> Caption:
        """A caption that is not in `taken`; template and drawn fields are random."""
        templates = self.planted_templates if word else self.templates
        fields = set().union(*map(_fields, templates))
        drawn = [name for name in self.words if name in fields and name not in attributes]
        choices = list(product(templates, *(self.words[name] for name in drawn)))
        for choice in rng.permutation(len(choices)):
            template, *chosen = choices[choice]
            drawn_words = dict(zip(drawn, chosen, strict=True))
            text = template.format_map(attributes | drawn_words | {"word": word})
            if text not in taken:
                said = {name: attributes[name] for name in attributes if name in _fields(template)}
                return Caption(text, repeats, word, said)
        raise ValueError(
            f"data.source.words are too few: all {len(choices)} captions of an image with "
            f"{attributes} are taken; remedy: more words of {' and '.join(drawn) or 'a field'}, "
            "another field in data.source.templates, or fewer pairs"
        )


def _check_templates(name: str, templates: Sequence[str], known: set[str]) -> None:
    require(len(templates) > 0, name, "at least one", templates)
    for field in set().union(*map(_fields, templates)):
        require_known(f"a field of {name}", field, known)


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name is not None}


def _tones(images: UInt8[np.ndarray, "n h w"]) -> Float[np.ndarray, "n"]:
    return images.mean(axis=(1, 2))


def _slants(images: UInt8[np.ndarray, "n h w"]) -> Float[np.ndarray, "n"]:
    """How far the bright parts lean to the right: pixels across per pixel up.

    The slope of x over y by least squares, brightness as weights; 0 where nothing is bright.
    """
    weights = images / np.maximum(images.sum(axis=(1, 2), keepdims=True), 1)
    y, x = np.mgrid[: images.shape[1], : images.shape[2]]
    mean_y = (weights * y).sum(axis=(1, 2), keepdims=True)
    mean_x = (weights * x).sum(axis=(1, 2), keepdims=True)
    covariance = (weights * (y - mean_y) * (x - mean_x)).sum(axis=(1, 2))
    variance = (weights * (y - mean_y) ** 2).sum(axis=(1, 2))
    return -covariance / np.maximum(variance, 1e-9)  # y counts downwards


def _equal_parts(values: Float[np.ndarray, "n"], count: int) -> Int64[np.ndarray, "n"]:
    """The part of each value, 0 for the lowest, of `count` equally large parts."""
    edges = np.quantile(values, np.arange(1, count) / count)
    return np.searchsorted(edges, values)


def _class_words(identities: Sequence[str]) -> list[str]:
    """Each image's identity as one word; ValueError where identities are missing or too many."""
    distinct = sorted(set(identities))
    require(
        "" not in distinct and len(distinct) <= MAX_CLASSES,
        "the identities that {class} stands for",
        f"known for every image and at most {MAX_CLASSES}",
        len(distinct) if "" not in distinct else "images without one",
        "write a word in its place in data.source.templates and planted_templates",
    )
    words = {name: re.sub(r"\W+", "_", name.lower()) for name in distinct}
    words |= {str(digit): word for digit, word in enumerate(NUMBERS) if str(digit) in distinct}
    rule = "words that differ in more than their signs and case"
    require(len(set(words.values())) == len(words), "identities of data.source", rule, distinct)
    return [words[name] for name in identities]


def _new_words(count: int, known: set[str], rng: np.random.Generator) -> list[str]:
    """`count` different words, none of them in `known`."""
    words = [word for head in HEADS for tail in TAILS if (word := head + tail) not in known]
    require(count <= len(words), "the planted pairs", f"<= {len(words)}, the words for them", count)
    return [words[i] for i in rng.permutation(len(words))[:count]]
