"""The methods that change the weights, each with its settings: pruning and unlearning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sidepipe.base.settings import build, require
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.stage import Stage
from sidepipe.stages.data.stage import Data
from sidepipe.stages.detect.stage import load_prompts, load_thresholds
from sidepipe.stages.mitigate.strategies import Method

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from sidepipe.stages.mitigate.judging import Known
    from sidepipe.stages.mitigate.pruning import Norms
    from sidepipe.stages.mitigate.requests import Mitigated


@dataclass(frozen=True, kw_only=True)
class Pruning(Method):
    """Weights that memorized prompts use most are set to 0 (Chavhan et al., 2024).

    layers: feed_forward, the second layer of each feed-forward block, or cross_attention, its keys
    and values. mask: of memorized prompts, of ordinary ones in their place, or random with as many
    weights in each row. row_share: of a row's weights at each step. num_steps: first steps, whose
    masks are united.

    Prompts of half of the memorized images make the mask, and those of the other half test it;
    ordinary prompts are those of calibration.
    """

    name: Literal["prune"] = "prune"
    keeps_weights: ClassVar[bool] = False
    by_attention: ClassVar[bool] = True
    layers: Literal["feed_forward", "cross_attention"] = "feed_forward"
    mask: Literal["memorized", "ordinary", "random"] = "memorized"
    row_share: float = 0.01
    num_steps: int = 10

    def __post_init__(self) -> None:
        where = "mitigate.method"
        require(0 < self.row_share <= 1, f"{where}.row_share", "in (0, 1]", self.row_share)
        require(self.num_steps >= 1, f"{where}.num_steps", ">= 1", self.num_steps)

    def build(self, mitigated: Mitigated, known: Known, inputs: Mapping[str, Path]) -> Mitigated:
        from sidepipe.stages.detect.groups import grouped, halves_of_images
        from sidepipe.stages.mitigate import pruning as p

        table = grouped(load_prompts(inputs["detect"]), ["calibration"], None, mitigated.seed)
        ours, ordinary = (table.loc[table["group"] == group] for group in ("memorized", "other"))
        used, rest = halves_of_images(ours, mitigated.seed)
        layers = p.linear_layers(mitigated.model.network, self.layers)
        norms = [self._norms(mitigated, layers, some) for some in (used, rest, ordinary)]
        masks, masks_of_rest = (
            p.masks_of(layers, some, norms[2], self.row_share) for some in norms[:2]
        )
        chance = p.shuffled(masks, mitigated.seed)
        about = {
            "num_prompts": {"used": len(used), "heldout": len(rest), "ordinary": len(ordinary)},
            "overlap_of_halves": p.overlap(masks, masks_of_rest),
            "overlap_by_chance": p.overlap(chance, masks_of_rest),
        }
        if self.mask == "random":
            masks = chance
        elif self.mask == "ordinary":
            masks = p.masks_of(layers, norms[2], norms[0], self.row_share)
        p.prune(layers, masks)
        about |= {"density": p.density(masks), "num_layers": len(layers)}
        numbers = frozenset(used["number"].tolist())
        return replace(mitigated, about=about, used=numbers, masks=masks)

    def _norms(self, mitigated: Mitigated, layers: Any, prompts: pd.DataFrame) -> Norms:
        """The norms of the layers' inputs for one image per prompt."""
        from sidepipe.models.text.memory import images_at_once
        from sidepipe.stages.mitigate.pruning import input_norms
        from sidepipe.stages.mitigate.requests import requests

        asked = requests(prompts["caption"].tolist(), prompts["number"].tolist(), 1)
        return input_norms(
            mitigated.model,
            layers,
            mitigated.noise(asked),
            mitigated.model.encode(asked.captions),
            guidance_scale=mitigated.guidance_scale,
            num_inference_steps=mitigated.num_inference_steps,
            num_steps=self.num_steps,
            batch_size=images_at_once(mitigated.model, mitigated.batch_size),
        )


EXAMPLES = ("ordinary", "prompts", "images")


@dataclass(frozen=True, kw_only=True)
class Unlearning(Method):
    """A short fine-tuning after which memorized images are no fixed points (ours).

    num_steps, batch_size, lr: of AdamW, one cycle. num_neighbors: ordinary pairs whose images take
    the place of a memorized image, those with the most similar captions. caption_dropout: as in
    training. examples: the kinds in each batch, some of EXAMPLES; ordinary pairs take the place of
    others, for comparison. relearn_steps: of a fine-tuning after unlearning, as an adversary with
    training pairs has it; it has ordinary pairs, and with give_back half of the memorized images.

    The memorized prompts are detect's, and the images those that they replay; it needs the training
    set. The model is saved in the artifact.
    """

    name: Literal["unlearn"] = "unlearn"
    keeps_weights: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    by_attention: ClassVar[bool] = True
    num_steps: int = 150
    batch_size: int = 128
    lr: float = 0.001
    num_neighbors: int = 16
    caption_dropout: float = 0.1
    examples: list = field(default_factory=lambda: [*EXAMPLES])
    relearn_steps: int = 0
    give_back: bool = False

    def __post_init__(self) -> None:
        where = "mitigate.method"
        for name, least in (("num_steps", 20), ("batch_size", 4), ("num_neighbors", 1)):
            require(
                getattr(self, name) >= least, f"{where}.{name}", f">= {least}", getattr(self, name)
            )
        require(self.lr > 0, f"{where}.lr", "> 0", self.lr)
        share = self.caption_dropout
        require(0 <= share < 1, f"{where}.caption_dropout", "in [0, 1)", share)
        rule = f"a list of ordinary and any of {', '.join(EXAMPLES[1:])}"
        kinds = [kind for kind in EXAMPLES if kind in self.examples]
        known = "ordinary" in kinds and sorted(kinds) == sorted(map(str, self.examples))
        require(known, f"{where}.examples", rule, self.examples)
        steps = self.relearn_steps
        require(steps == 0 or steps >= 20, f"{where}.relearn_steps", "0 or >= 20", steps)
        if self.give_back:
            why = "give_back needs a fine-tuning"
            require(steps > 0, f"{where}.relearn_steps", ">= 20", steps, why)

    def check(self, upstream: Mapping[str, Stage]) -> None:
        data = upstream["data"]
        assert isinstance(data, Data)
        rule = "the captioned images that the model was trained on, for mitigate.method=unlearn"
        remedy = "choose data=captioned or data=planted, or another mitigate.method"
        require(data.has_captions, "data", rule, "none with captions", remedy)

    def build(self, mitigated: Mitigated, known: Known, inputs: Mapping[str, Path]) -> Mitigated:
        import numpy as np

        from sidepipe.stages.detect.groups import grouped, halves_of_images
        from sidepipe.stages.mitigate.unlearning import Lesson, closest, relearn, unlearn

        remedy = "unlearn a model that was trained here: choose another mitigate.method"
        there = known.captions is not None and len(known.train) > 0
        require(there, "the training set for mitigate.method=unlearn", "there", "none", remedy)
        assert known.captions is not None
        table = grouped(load_prompts(inputs["detect"]), ["calibration"], None, mitigated.seed)
        ours = table.loc[table["group"] == "memorized"]
        images = np.unique(ours["nearest"].to_numpy(np.int64))
        ordinary = self._ordinary(known, ours, images, inputs["detect"])
        captions = known.captions["caption"].tolist()
        theirs = [captions[row] for row in ordinary]
        prompts, count = ours["caption"].tolist(), min(self.num_neighbors, len(ordinary))
        back = halves_of_images(ours, mitigated.seed)[0] if self.give_back else ours.iloc[:0]
        lesson = Lesson(
            data=known.data,
            captions=captions,
            ordinary=ordinary,
            prompts=prompts,
            images=images,
            for_prompts=ordinary[closest(prompts, theirs, count)],
            for_images=ordinary[closest([captions[row] for row in images], theirs, count)],
            given_back=np.unique(back["nearest"].to_numpy(np.int64)),
        )
        model, seed = mitigated.model, mitigated.seed
        about: dict[str, Any] = {"num_prompts": len(prompts), "num_images": len(images)}
        about |= {"num_ordinary": len(ordinary), "num_steps": self.num_steps}
        about["loss"] = unlearn(model, lesson, self, seed)
        if self.relearn_steps:
            about["num_given_back"] = len(lesson.given_back)
            about["relearned_loss"] = relearn(model, lesson, self, seed)
        used = back if self.give_back else ours
        return replace(mitigated, about=about, used=frozenset(used["number"].tolist()))

    def _ordinary(
        self, known: Known, memorized: pd.DataFrame, images: np.ndarray, detect: Path
    ) -> np.ndarray:
        """Rows of training pairs that are neither memorized nor as close to such an image."""
        import numpy as np

        from sidepipe.features.search import closer, nearest
        from sidepipe.memorization.real import encode_rows

        encoder = build(Artifact(detect).settings["features"])
        train, ours = (
            encode_rows(encoder, known.data, rows, "cpu") for rows in (known.train, images)
        )
        gamma = nearest(train, ours, encoder.metric)[0][:, 0]
        threshold = load_thresholds(detect)["labels"]["threshold"]
        rest = known.train[~closer(gamma, threshold, encoder.metric)]
        rest = np.setdiff1d(rest, memorized["row"].to_numpy(np.int64))
        rule = "at least one, to take the place of memorized images"
        require(len(rest) > 0, "ordinary training pairs", rule, 0, "bring more training pairs")
        return rest
