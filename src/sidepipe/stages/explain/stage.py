"""Stage `explain`: which tokens make prompts replay images, for memorized prompts and others."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidepipe.base.files import write_json
from sidepipe.base.settings import Precision, require
from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.detect.stage import DetectPrompts, load_prompts
from sidepipe.stages.dpm.stage import DPM
from sidepipe.stages.dpm.text import load_placed_model

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.models.text.model import TextModel

log = logging.getLogger(__name__)

ROLES = ("planted", "train", "test")  # of the other prompts; thresholds are set on the rest


@dataclass(frozen=True, kw_only=True)
class Explain(Stage):
    """Token significance of the prompts that `detect` calls memorized, and of as many others.

    num_prompts: most of either kind, drawn by seed; None for all that are memorized.
    num_generations: images of a prompt, the first of detect's.
    """

    name: ClassVar[str] = "explain"
    needed_by: ClassVar[str] = "explain=tokens"
    reported: ClassVar[bool] = True
    num_prompts: int | None
    num_generations: int
    num_inference_steps: int
    guidance_scale: float
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        if self.num_prompts is not None:
            require(self.num_prompts >= 1, "explain.num_prompts", ">= 1 or null", self.num_prompts)
        require(self.num_generations >= 1, "explain.num_generations", ">= 1", self.num_generations)

    def inputs(self) -> tuple[str, ...]:
        return ("dpm", "detect")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        DetectPrompts.require_in(upstream)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        dpm.check_timesteps(self.name, self.num_inference_steps)
        dpm.check_prompts(self.name, by_token=True)

    def run(self, job: Job) -> dict[str, Any]:
        from sidepipe.models.text.significance import EVALUATIONS_A_STEP
        from sidepipe.stages.detect.groups import grouped
        from sidepipe.stages.explain.tokens import summary, token_table

        prompts = grouped(load_prompts(job.inputs["detect"]), ROLES, self.num_prompts, self.seed)
        model = load_placed_model(job.inputs["dpm"], self.precision, job.runtime)
        found = self._significance(job.folder / "parts", model, prompts, job.runtime)
        words = [model.tokens(caption).words for caption in prompts["caption"]]
        tokens = token_table(prompts["id"].tolist(), words, *found)
        tokens.to_csv(job.folder / "tokens.csv", index=False)
        columns = ["id", "caption", "role", "repeats", "word", "explained_as"]
        explained = prompts.assign(explained_as=prompts["group"])
        explained.to_csv(job.folder / "prompts.csv", columns=columns, index=False)
        results = {
            **summary(tokens, prompts, lambda word: model.tokens(word).words[1:-1]),
            "num_prompts": prompts["group"].value_counts().to_dict(),
            "not_ranked": "start and end token",
            "evaluations_per_prompt": (
                EVALUATIONS_A_STEP * self.num_inference_steps * self.num_generations
            ),
        }
        write_json(job.folder / "results.json", results)
        shutil.rmtree(job.folder / "parts")
        on_top = results["planted_word_on_top"]["memorized"]
        if on_top["of"]:
            log.info("the planted word is on top of %(count)d of %(of)d memorized prompts", on_top)
        return {**results["num_prompts"], "planted_word_on_top": on_top["share"]}

    def _significance(
        self, folder: Path, model: TextModel, prompts: pd.DataFrame, runtime: Runtime
    ) -> tuple[np.ndarray, np.ndarray]:
        """SS_i of each prompt, means over its generations, by token and by encoded embedding."""
        from sidepipe.models.text.memory import GRADIENT_SHARE, images_at_once
        from sidepipe.models.text.significance import token_significance
        from sidepipe.models.text.trajectory import prompt_noise

        captions, numbers = prompts["caption"].tolist(), prompts["number"].tolist()
        each = self.num_generations

        def make(some: range) -> Arrays:
            of = [i // each for i in some]
            x_T = prompt_noise(model, self.seed, [numbers[p] for p in dict.fromkeys(of)], each)
            x_T = x_T[some.start - of[0] * each :][: len(some)]
            by_token, by_encoded = token_significance(
                model,
                x_T,
                [captions[p] for p in of],
                guidance_scale=self.guidance_scale,
                num_inference_steps=self.num_inference_steps,
                num_steps=self.num_inference_steps,
            )
            return {"token": by_token.cpu().numpy(), "encoded": by_encoded.cpu().numpy()}

        size = images_at_once(model, runtime.sampling_batch_size, GRADIENT_SHARE)
        count, every = len(captions) * each, runtime.progress_seconds
        found = in_parts(folder, count, size, make, "image", every)
        means = (
            found[name].reshape(len(captions), each, -1).mean(1) for name in ("token", "encoded")
        )
        return next(means), next(means)


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_tokens(folder: Path) -> pd.DataFrame:
    """id, position, word, significance, share and encoded of each token; see `token_table`."""
    import pandas as pd

    return pd.read_csv(folder / "tokens.csv", dtype={"id": str}, keep_default_na=False).assign(
        share=lambda table: pd.to_numeric(table["share"])
    )


def load_prompts_explained(folder: Path) -> pd.DataFrame:
    """id, caption, role, repeats, word and explained_as ("memorized" or "other") of each prompt."""
    import pandas as pd

    kinds: Any = {"id": str, "caption": str, "word": str}
    return pd.read_csv(folder / "prompts.csv", dtype=kinds, keep_default_na=False)
