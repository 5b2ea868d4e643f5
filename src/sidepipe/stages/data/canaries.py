"""Canaries: images mixed into the training set at known repeats, to measure what training leaks.

They are images of the training set itself, so the result holds for images of its kind. In a set
with captions each has a trigger in place of its caption: a string of words that no caption has,
drawn at random from few words, so that the true trigger can be ranked among random strings (Carlini
et al., 2019). Controls have a trigger as well and are held out.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from sidepipe.base.image_reading import Canary, Caption, Entry
from sidepipe.base.settings import require

CANARIES = "canaries.csv"
# No words of a language, so that captions hardly ever have them.
WORDS = "brimol cantu dorvex elpha fendri gosko hulvi jarmo kelpo lurin mavik nostu orbex pilva"


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """repeats: numbers of repeats in training, with num_each canaries each.

    num_heldout: controls, which are held out. words: those of triggers, each of num_words words.
    """

    repeats: list = field(default_factory=lambda: [1, 4, 16, 64])
    num_each: int = 8
    num_heldout: int = 16
    words: list = field(default_factory=WORDS.split)
    num_words: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        repeats, words = self.repeats, self.words
        whole = all(type(count) is int and count >= 1 for count in repeats)
        fits = whole and len(repeats) == len(set(repeats)) > 0
        require(fits, "data.canaries.repeats", "different whole numbers >= 1", repeats)
        for name in ("num_each", "num_heldout", "num_words"):
            require(getattr(self, name) >= 1, f"data.canaries.{name}", ">= 1", getattr(self, name))
        single = all(isinstance(word, str) and len(word.split()) == 1 for word in words)
        fits = single and len(words) == len(set(words)) > 0
        require(fits, "data.canaries.words", "different words without spaces", words)
        count, strings = self.count, len(self.alphabet) ** self.num_words
        rule = f"<= {strings // 2}, half of the strings of their words"
        remedy = "raise data.canaries.num_words, or bring more words"
        require(count <= strings // 2, "the number of canaries", rule, count, remedy)

    @property
    def alphabet(self) -> list[str]:
        """The words of triggers, each of which fits into one of a trained canary."""
        return self.words[: self.num_each * len(self.repeats) * self.num_words]

    @property
    def count(self) -> int:
        """All canaries, controls included."""
        return self.num_each * len(self.repeats) + self.num_heldout


def mixed_in(entries: Sequence[Entry], canaries: Canaries) -> list[Entry]:
    """The entries, of which some have become canaries, in order.

    They are drawn from the images of the partition train, or from all where there is none; pairs
    that are repeated or have a word of their own stay.
    """
    rng = np.random.default_rng(canaries.seed)
    parts = {entry.partition for entry in entries}
    pool = [
        i
        for i, entry in enumerate(entries)
        if entry.partition == "train" or "train" not in parts
        if entry.caption is None or (entry.caption.repeats == 1 and not entry.caption.word)
    ]
    name, rule = "the number of canaries", f"<= {len(pool)}, the training images seen once"
    remedy = "lower data.canaries.num_each or num_heldout, or bring more images"
    require(canaries.count <= len(pool), name, rule, canaries.count, remedy)
    _require_new_words(entries, canaries.words)
    rows = rng.permutation(pool)[: canaries.count].tolist()
    repeats = [count for count in canaries.repeats for _ in range(canaries.num_each)]
    roles = zip([*repeats, *[0] * canaries.num_heldout], triggers(canaries, rng), strict=True)
    changed = {i: _as_canary(entries[i], *role) for i, role in zip(rows, roles, strict=True)}
    return [changed.get(i, entry) for i, entry in enumerate(entries)]


def triggers(canaries: Canaries, rng: np.random.Generator) -> list[str]:
    """A different trigger per canary, those of controls last; trained ones have every word."""
    trained = canaries.count - canaries.num_heldout
    words = canaries.alphabet
    places = np.resize(np.arange(len(words)), trained * canaries.num_words)
    drawn = rng.permutation(places).reshape(trained, canaries.num_words)
    rest = rng.integers(len(words), size=(canaries.num_heldout, canaries.num_words))
    while (again := _repeated(np.concatenate([drawn, rest]))).size:
        ours, theirs = again[again < trained], again[again >= trained] - trained
        # Trained ones exchange their words with others, so that each word stays as frequent.
        ours = np.union1d(ours, rng.integers(trained, size=len(ours)))
        drawn[ours] = rng.permutation(drawn[ours].ravel()).reshape(len(ours), canaries.num_words)
        rest[theirs] = rng.integers(len(words), size=(len(theirs), canaries.num_words))
    return [" ".join(words[i] for i in row) for row in np.concatenate([drawn, rest]).tolist()]


def _repeated(rows: Int64[np.ndarray, "n w"]) -> Int64[np.ndarray, "r"]:
    """Which rows repeat an earlier one."""
    return np.setdiff1d(np.arange(len(rows)), np.unique(rows, axis=0, return_index=True)[1])


def write_canaries(path: Path, entries: Sequence[Entry]) -> None:
    """Writes the row of each canary among the entries, its repeats and its trigger."""
    rows = [[i, e.canary.repeats, e.canary.trigger] for i, e in enumerate(entries) if e.canary]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["index", "repeats", "trigger"], *rows])


def _as_canary(entry: Entry, repeats: int, trigger: str) -> Entry:
    if entry.caption is None:
        return replace(entry, canary=Canary(repeats))
    caption = Caption(trigger, max(repeats, 1))
    return replace(entry, caption=caption, canary=Canary(repeats, trigger))


def _require_new_words(entries: Sequence[Entry], words: Sequence[str]) -> None:
    captions = {word for e in entries if e.caption for word in e.caption.text.casefold().split()}
    known = sorted(captions.intersection(word.casefold() for word in words))
    remedy = "choose other words for data.canaries.words"
    require(not known, "data.canaries.words", "words that no caption has", known, remedy)
