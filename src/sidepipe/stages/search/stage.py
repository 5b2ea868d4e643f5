"""Stage `search`: prompts that trigger memorized images, without a list of candidates.

Each run of a search gives one prompt. Their images are compared with training images, and so are
those of as many random prompts and training captions. The unit of the results is the training
image, since many prompts lead to one.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from sidepipe.base.files import write_json
from sidepipe.base.settings import Precision, build, require
from sidepipe.engine.resuming import Arrays, in_parts
from sidepipe.engine.stage import Job, Runtime, Stage
from sidepipe.stages.data.stage import load as load_images
from sidepipe.stages.data.stage import load_captions
from sidepipe.stages.detect.stage import DetectPrompts, load_prompts, load_thresholds
from sidepipe.stages.dpm.stage import DPM, load_subset
from sidepipe.stages.dpm.text import load_placed_model
from sidepipe.stages.search.chains import texts_of

if TYPE_CHECKING:
    import pandas as pd

    from sidepipe.models.text.model import TextModel
    from sidepipe.stages.search.chains import Best

log = logging.getLogger(__name__)

# Streams of noise and draws that no prompt of detect has: its numbers begin at 0.
IMAGES, DRAWS = 500_000, 600_000


@dataclass(frozen=True, kw_only=True)
class Search(Stage):
    """Runs of a search, the images of the prompts that they find, and a comparison.

    num_prompts: runs, each of which finds one prompt; and as many random prompts and training
    captions. prompt_length: words. num_generations: images per prompt, of which copied_share have
    to be copies. near_duplicates: features and threshold of training images that count as one.
    features: an encoder, that of detect.
    """

    name: ClassVar[str] = "search"
    needed_by: ClassVar[str] = "search=gibbs or search=genetic"
    reported: ClassVar[bool] = True
    kind: ClassVar[str]
    num_prompts: int
    prompt_length: int
    num_generations: int
    copied_share: float
    features: dict[str, Any]
    near_duplicates: dict[str, Any]
    num_inference_steps: int
    guidance_scale: float
    precision: Precision
    seed: int

    def __post_init__(self) -> None:
        for name in ("num_prompts", "prompt_length", "num_generations"):
            require(getattr(self, name) >= 1, f"search.{name}", ">= 1", getattr(self, name))

    def inputs(self) -> tuple[str, ...]:
        return ("data", "dpm", "detect")

    def check(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        DetectPrompts.require_in(upstream)

    def check_parts(self, upstream: Mapping[str, Stage], runtime: Runtime) -> None:
        dpm = upstream["dpm"]
        assert isinstance(dpm, DPM)
        dpm.check_timesteps(self.name, self.num_inference_steps)
        dpm.check_prompts(self.name)
        self._require_fits(dpm.prompt_tokens())
        build(self.near_duplicates["features"]).check()

    def run(self, job: Job) -> dict[str, Any]:
        model = load_placed_model(job.inputs["dpm"], self.precision, job.runtime)
        self._require_fits(model.max_tokens - 2)
        words = self.words(model)
        found = self._found(job.folder / "parts" / "runs", model, words, job.runtime)
        sources = {"search": (found["prompt"].tolist(), found["evaluations"])}
        nothing = np.zeros(self.num_prompts, np.int64)
        sources |= {
            name: (prompts, nothing[: len(prompts)])
            for name, prompts in self._rivals(words, job.inputs).items()
        }
        results, images = {}, {}
        for name, (prompts, spent) in sources.items():
            folder = job.folder / "parts" / name
            images[name] = self._images(folder, model, prompts, job.runtime)
            results[name], table = self._judged(images[name], np.asarray(spent), job)
            if name == "search":
                table = found.assign(**table)
                table.to_csv(job.folder / "prompts.csv", index=False)
        np.save(job.folder / "images.npy", images["search"])
        write_json(job.folder / "results.json", {"search_method": self.kind, "sources": results})
        shutil.rmtree(job.folder / "parts")
        return {name: of["different"] for name, of in results.items()}

    def _require_fits(self, most: int | None) -> None:
        """Raises ValueError for prompts of more tokens; None for a model that is not here yet."""
        rule = f"<= {most}, the tokens that the text encoder takes"
        fits = most is None or self.prompt_length <= most
        require(fits, "search.prompt_length", rule, self.prompt_length)

    def words(self, model: TextModel) -> list[str]:
        """The words of which prompts are made."""
        from sidepipe.models.text.words import ordinary_words

        return ordinary_words(model.tokenizer, [])

    def one_run(
        self, model: TextModel, words: Sequence[str], rng: np.random.Generator, batch_size: int
    ) -> tuple[Best, int]:
        """The prompt that one run of the search finds, and its network evaluations."""
        raise NotImplementedError

    def _found(
        self, folder: Path, model: TextModel, words: Sequence[str], runtime: Runtime
    ) -> pd.DataFrame:
        """A row per run: prompt, score, evaluations."""
        import pandas as pd

        from sidepipe.models.text.memory import images_at_once

        size = images_at_once(model, runtime.sampling_batch_size)

        def make(some: range) -> Arrays:
            runs = [self.one_run(model, words, self._rng(run), size) for run in some]
            return {
                "prompt": np.stack([best.prompt for best, _ in runs]),
                "score": np.array([best.score for best, _ in runs]),
                "evaluations": np.array([spent for _, spent in runs]),
            }

        every = runtime.progress_seconds
        arrays = in_parts(folder, self.num_prompts, 1, make, "run", every)
        prompts = texts_of(arrays.pop("prompt"), words)
        return pd.DataFrame({"prompt": prompts, **arrays})

    def _rng(self, number: int) -> np.random.Generator:
        from sidepipe.diffusion.noise import generator

        return generator(self.seed, "prompts", (DRAWS + number) * 1_000_000)

    def _rivals(self, words: Sequence[str], inputs: Mapping[str, Path]) -> dict[str, list[str]]:
        """As many random prompts, and as many captions of training images where there are some."""
        rng = self._rng(self.num_prompts)
        shape = (self.num_prompts, self.prompt_length)
        rivals = {"random_prompts": texts_of(rng.integers(len(words), size=shape), words)}
        train, _ = load_subset(inputs["dpm"])
        if len(train) and (inputs["data"] / "captions.csv").exists():
            captions = load_captions(inputs["data"])["caption"].to_numpy(str)[train]
            rivals["training_captions"] = rng.permutation(captions)[: self.num_prompts].tolist()
        return rivals

    def _images(
        self, folder: Path, model: TextModel, prompts: list[str], runtime: Runtime
    ) -> np.ndarray:
        """(prompts, generations, h, w, c), from the same noise for each source of prompts."""
        from sidepipe.models.text.memory import images_at_once
        from sidepipe.models.text.trajectory import prompt_noise, sample

        each, e_0 = self.num_generations, model.encode([""])
        size = images_at_once(model, runtime.sampling_batch_size)

        def make(some: range) -> Arrays:
            numbers = [IMAGES + i for i in some]
            x_T = prompt_noise(model, self.seed, numbers, each)
            e = model.encode([prompts[i] for i in some]).repeat_interleave(each, 0)
            made = sample(
                model,
                x_T,
                e,
                e_0,
                guidance_scale=self.guidance_scale,
                num_inference_steps=self.num_inference_steps,
            )
            return {"images": made.unflatten(0, (len(some), each)).cpu().numpy()}

        at_once, every = max(1, size // each), runtime.progress_seconds
        return in_parts(folder, len(prompts), at_once, make, "prompt", every)["images"]

    def _judged(
        self, images: np.ndarray, spent: np.ndarray, job: Job
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The results of a source of prompts, and columns for the table of prompts."""
        from sidepipe.stages.search.results import judged

        per_prompt = 2 * self.num_inference_steps * self.num_generations
        costs = spent + per_prompt
        train, _ = load_subset(job.inputs["dpm"])
        about = {"prompts": len(images), "evaluations": int(costs.sum())}
        labels = load_thresholds(job.inputs["detect"])["labels"]
        if not len(train) or not labels:
            return {**about, "different": None}, {}
        found, table = judged(
            images,
            load_images(job.inputs["data"]),
            train,
            load_prompts(job.inputs["detect"]),
            costs=costs,
            encoder=build(self.features),
            threshold=labels["threshold"],
            copied_share=self.copied_share,
            near_duplicates=self.near_duplicates,
            device=job.runtime.torch_device(),
        )
        return {**about, **found}, table


def load(folder: Path) -> dict[str, Any]:
    """The results as written to results.json."""
    return json.loads((folder / "results.json").read_text())


def load_found(folder: Path) -> pd.DataFrame:
    """A row per run: prompt, score, evaluations and, with training images, copies and nearest."""
    import pandas as pd

    return pd.read_csv(folder / "prompts.csv", keep_default_na=False)
