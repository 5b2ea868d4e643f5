"""Stage `verdict`: which images of an attack are training images, without the training images.

For the outsider with the model alone. A shadow model is attacked in the same way; its hits, and
its other candidates, calibrate the scores of the candidates.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Bool

from sidepipe.base.files import write_json, write_table
from sidepipe.base.images import Images
from sidepipe.base.settings import build, check_field_types, require
from sidepipe.engine.artifacts import Artifact
from sidepipe.engine.kinds import check_features
from sidepipe.engine.stage import Job, NoMaterial, Runtime, Stage
from sidepipe.features.choice import descriptor_input
from sidepipe.features.near import NearDuplicates
from sidepipe.stages.attack.attack import refine_of
from sidepipe.stages.descriptor.stage import load_encoder
from sidepipe.stages.dpm.stage import DPM
from sidepipe.stages.extract.stage import load as load_extracted
from sidepipe.stages.extract.stage import load_per_start
from sidepipe.stages.generate.stage import Generate, load_denoiser
from sidepipe.stages.generate.stage import load as load_synthetic
from sidepipe.stages.shadow.stage import Shadow, load_split

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.features.encoders import Encoder
    from sidepipe.memorization.blind import Candidates
    from sidepipe.memorization.verdict import Verdicts

PRECISIONS = (0.9, 0.5)  # promised by the lists


@dataclass(frozen=True, kw_only=True)
class Verdict(Stage):
    """Verdicts on the candidates of one attack.

    features, false_positive_rates: evaluate's; they define a hit, here on the shadow's images.
    near_duplicates: images that are one candidate. num_images: samples of the shadow model, made
    with the sampler and the refinement of the attack. levels: timesteps at which the scores look at
    refinement. draws: of noise, for the denoising error. probes: of the score divergence, 0 for
    none. gallery_images: shown in the report.
    """

    name: ClassVar[str] = "verdict"
    version: ClassVar[int] = 3
    needed_by: ClassVar[str] = "verdict=shadow"
    reported: ClassVar[bool] = True
    rows: ClassVar[str | None] = "attacks"
    parallel: ClassVar[bool] = True
    takes: ClassVar[Mapping[str, str]] = {
        "features": "evaluate.features",
        "false_positive_rates": "evaluate.false_positive_rates",
    }
    features: dict[str, Any]
    false_positive_rates: list
    near_duplicates: NearDuplicates
    num_images: int
    levels: list
    draws: int
    probes: int
    gallery_images: int
    seed: int

    def __post_init__(self) -> None:
        for field, least in (("num_images", 2), ("draws", 1), ("probes", 0), ("gallery_images", 0)):
            value = getattr(self, field)
            require(value >= least, f"verdict.{field}", f">= {least}", value)
        increasing = len(self.levels) > 0 and sorted(set(self.levels)) == list(self.levels)
        rule = "increasing timesteps, one at least"
        require(increasing and self.levels[0] >= 0, "verdict.levels", rule, self.levels)
        require(0 <= self.seed < 2**32, "verdict.seed", "in [0, 2**32)", self.seed)

    @cached_property
    def _encoder(self) -> Encoder:
        return build(self.features)

    def unused(self) -> tuple[str, ...]:
        return ("probes",) if self.probes == 0 else ()

    def inputs(self) -> tuple[str, ...]:
        return ("dpm", "shadow", *descriptor_input(self.features), "extract")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        shadow = upstream["shadow"]
        assert isinstance(shadow, Shadow)
        shadow.check_model(upstream)
        check_features(upstream, "near_duplicates.features", self.near_duplicates.features)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        self._encoder.check()
        self.near_duplicates.encoder.check()
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        dpm.check_timesteps("verdict", 1, None, {"verdict.levels": self.levels[-1]})

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.memorization.verdict import uncorrected, verdicts
        from sidepipe.stages.verdict.scores import evaluations

        device = job.runtime.torch_device()
        images = {
            "shadow": self._sample_shadow(job),
            "dpm": load_extracted(job.inputs["extract"]),
        }
        each = load_per_start(job.inputs["extract"])
        found = {name: self._candidates(some, each, device) for name, some in images.items()}
        scores = {
            name: self._scores(job, name, images[name][some.index], some)
            for name, some in found.items()
        }
        hit = self._shadow_hits(job, images["shadow"][found["shadow"].index])
        try:
            judged = verdicts(scores["dpm"], scores["shadow"], hit)
        except ValueError as error:
            raise NoMaterial(str(error)) from None
        table = verdicts_table(found["dpm"], judged, scores["dpm"])
        write_table(job.folder / "verdicts.csv", table)
        write_table(job.folder / "shadow.csv", shadow_table(hit, scores["shadow"]))
        best = table["index"].to_numpy()[: self.gallery_images]
        np.save(job.folder / "gallery.npy", images["dpm"][best])
        results = {
            "num_images": len(images["dpm"]),
            "num_candidates": len(table),
            "share": judged.share,
            "expected_hits": float(judged.probability.sum()),
            "uncorrected_hits": float(uncorrected(judged.score).sum()),
            "listed": {f"{p:g}": _listed(table, p) for p in PRECISIONS},
            "shadow": {"num_candidates": len(hit), "hits": int(hit.sum())},
            "evaluations_per_candidate": evaluations(self.levels, self.draws, self.probes),
        }
        write_json(job.folder / "results.json", results)
        for name in ("shards", "parts"):
            shutil.rmtree(job.folder / name)
        return results

    def _sample_shadow(self, job: Job) -> Images:
        """Plain samples of the shadow model, by the sampler and the refinement of the attack."""
        attack = Artifact(job.inputs["extract"])
        used = attack.settings
        own = {field.name: used[field.name] for field in fields(Generate) if field.name in used}
        own["refine"] = refine_of(used, attack.summary)
        own |= {"prompts": None, "condition_guidance_scale": 1.0, "classes": None}
        own |= {"num_images": self.num_images, "seed": self.seed}
        sampling = Generate(**check_field_types("extract", Generate, own))
        sampling.sample(Job(job.folder, {"dpm": job.inputs["shadow"]}, job.runtime))
        return load_synthetic(job.folder)

    def _candidates(self, images: Images, per_start: int, device: str) -> Candidates:
        from sidepipe.memorization.blind import candidates

        encoder = self.near_duplicates.encoder
        features = encoder.encode(images, device)
        return candidates(features, encoder.metric, self.near_duplicates.threshold, per_start)

    def _scores(
        self, job: Job, name: str, images: Images, found: Candidates
    ) -> dict[str, np.ndarray]:
        """The scores of candidates under their own model, and the sizes of their groups."""
        from sidepipe.stages.verdict.scores import scores_of

        scores = scores_of(
            load_denoiser(job.inputs[name], "32-true"),
            images,
            self.levels,
            self.draws,
            self.probes,
            self.seed,
            job.folder / "parts" / name,
            job.runtime.torch_device(),
        )
        return {**scores, "size": found.size.astype(np.float32)}

    def _shadow_hits(self, job: Job, images: Images) -> Bool[np.ndarray, "n"]:
        """Whether each image is a hit on the shadow's training images."""
        from sidepipe.features.search import closer, nearest
        from sidepipe.memorization.thresholds import (
            threshold_at_false_positive_rate,
            usable_rates,
        )

        device = job.runtime.torch_device()
        encoder = load_encoder(job.inputs, self._encoder)
        train, unseen = (encoder.encode(some, device) for some in load_split(job.inputs["shadow"]))
        rate = usable_rates(self.false_positive_rates, len(unseen))[0]
        gamma = nearest(unseen, train, encoder.metric)[0][:, 0]
        threshold = threshold_at_false_positive_rate(gamma, rate, encoder.metric)
        own = nearest(encoder.encode(images, device), train, encoder.metric)[0][:, 0]
        return closer(own, threshold, encoder.metric)

    def describe(self, folder: Path, title: str) -> str:
        return f"{title}: {folder / 'verdicts.csv'}\n{self.in_words(load(folder))}"

    @staticmethod
    def in_words(results: Mapping[str, Any]) -> str:
        """The findings of results.json in two sentences."""
        first = PRECISIONS[0]
        return (
            f"{results['listed'][f'{first:g}']['count']:,} of {results['num_candidates']:,} "
            f"candidates are listed as training images at a promised precision of "
            f"{100 * first:g} %. About {results['expected_hits']:,.0f} candidates are expected to "
            "be training images."
        )


def verdicts_table(
    candidates: Candidates, judged: Verdicts, scores: Mapping[str, np.ndarray]
) -> pd.DataFrame:
    """A row per candidate, the most probable first."""
    import pandas as pd

    from sidepipe.memorization.verdict import promised

    columns: dict[str, Any] = {
        "index": candidates.index,
        "score": judged.score,
        "probability": judged.probability,
        "p_value": judged.p_value,
    }
    for precision in PRECISIONS:
        columns[f"listed_{precision:g}"] = promised(judged.probability, precision).astype(int)
    order = np.argsort(-judged.score, kind="stable")
    return pd.DataFrame({**columns, **scores}).iloc[order].reset_index(drop=True)


def shadow_table(hit: Bool[np.ndarray, "m"], scores: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """The scores of the shadow's candidates, and which are hits."""
    import pandas as pd

    return pd.DataFrame({"hit": hit.astype(int), **scores})


def _listed(table: pd.DataFrame, precision: float) -> dict[str, Any]:
    """How long a list is, and its mean probability, which is the precision that it promises."""
    listed = table.loc[table[f"listed_{precision:g}"] == 1]
    mean = float(listed["probability"].mean()) if len(listed) else None
    return {"count": len(listed), "promised": mean}


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_verdicts(folder: Path) -> pd.DataFrame:
    """A row per candidate, the most probable first."""
    import pandas as pd

    return pd.read_csv(folder / "verdicts.csv")
