"""Alignment of images with their captions, by the caption's attributes or by CLIP."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from sklearn.svm import SVC
from torch.nn.functional import normalize

from sidepipe.base.settings import require
from sidepipe.features.encoders import CLIP

Images = UInt8[np.ndarray, "n h w c"]
Attributes = Sequence[Mapping[str, str]]

MAX_TRAIN = 5000  # with more images a support vector machine takes minutes


def attribute_readers(images: Images, attributes: Attributes, seed: int) -> dict[str, Any]:
    """A classifier of pixels per attribute, trained on the images that have it.

    Attributes with a single value have no classifier.
    """
    names = sorted({name for has in attributes for name in has})
    readers: dict[str, Any] = {}
    for name in names:
        rows = np.array([i for i, has in enumerate(attributes) if name in has])
        rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MAX_TRAIN])
        values = np.array([attributes[i][name] for i in rows])
        if len(np.unique(values)) > 1:
            # Pixels are not scaled to unit variance: the slightest noise where real images are
            # always black would count most.
            readers[name] = SVC(C=10.0).fit(_pixels(images[rows]), values)
    return readers


def shares_right(
    readers: Mapping[str, Any], images: Images, attributes: Attributes
) -> Float[np.ndarray, "n"]:
    """The share of its caption's attributes that are right in each image; nan for no attribute."""
    right = reading(readers, images, attributes)
    known = np.stack([~np.isnan(column) for column in right.values()]).sum(0)
    found = np.nansum(np.stack(list(right.values())), axis=0)
    return np.where(known > 0, found / np.maximum(known, 1), np.nan)


def reading(
    readers: Mapping[str, Any], images: Images, attributes: Attributes
) -> dict[str, Float[np.ndarray, "n"]]:
    """Per attribute, 1 for each image where it is right, else 0; nan for captions without it."""
    pixels, found = _pixels(images), {}
    for name, reader in readers.items():
        wanted = np.array([has.get(name, "") for has in attributes])
        right = (reader.predict(pixels) == wanted).astype(np.float64)
        found[name] = np.where(wanted == "", np.nan, right)
    return found


class CLIPScore(CLIP):
    """The cosine of an image's and a caption's CLIP embeddings (Hessel et al., 2021, unscaled)."""

    def check(self) -> None:
        """As `CLIP.check`; raises ValueError also for a model without the text half."""
        super().check()
        kind = self._config.model_type
        require(kind == "clip", "mitigate.clip", "a CLIP model with its text half", kind)

    def of(self, images: Images, captions: Sequence[str], device: str) -> Float[np.ndarray, "n"]:
        """The score of each image with its caption."""
        from transformers import AutoTokenizer

        once, of = np.unique(np.array(captions), return_inverse=True)
        tokenizer = AutoTokenizer.from_pretrained(self._source)
        network = self._load("CLIPTextModelWithProjection")
        inputs = tokenizer(once.tolist(), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            texts = normalize(network(**inputs).text_embeds.float(), dim=1).numpy()
        return (self.encode(images, device=device) * texts[of]).sum(axis=1)


def _pixels(images: Images) -> Float[np.ndarray, "n d"]:
    return np.asarray(images).reshape(len(images), -1) / 255
