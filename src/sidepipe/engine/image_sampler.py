"""The Lightning module that samples and refines batches of images, guided or not.

The noise of each image comes from (seed, stream, index), so that the batch size and the number of
devices change images only by rounding.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from jaxtyping import Int64
from torch import Tensor, nn

from sidepipe.diffusion.cycles import Cycle
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.finite import Seen, require_finite_eps, watched
from sidepipe.diffusion.guidance import conditioned, guided
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.refine import iterates, settled
from sidepipe.diffusion.sampler import SAMPLERS, evaluated, require_x_0
from sidepipe.diffusion.schedule import EpsFn, add_noise, clip_x_0
from sidepipe.diffusion.timesteps import Guidance
from sidepipe.engine.stage import Runtime
from sidepipe.engine.threads import ThreadChoice
from sidepipe.models.speed import (
    CPU_BATCH_SIZE,
    cast_once,
    compile_networks,
    compiling_pays,
    has_compiler,
    keep_freed_memory,
    largest_useful_batch,
    lay_out,
    seconds_of,
)

SETTLING_PAYS = 1000  # steps above which timing takes less than 1 % of the run


class ImageSampler(L.LightningModule):
    """Predicts images, as the denoiser decodes them, for batches of starts and their targets.

    A start has one image, or several `candidates` of refinement.

    A batch with images starts from these, with noise of the first timestep, or unchanged without
    timesteps.

    denoiser: the model under attack; a target is its condition, if any. surrogate: None for the
    unconditional baseline; otherwise a target is its label: a module with `grad_log_prob(x_t, t,
    y)`, or a model with the label as its condition. chains: of unguided refinement, each from the
    finished sample. kept: how many of the last iterates of each chain are predicted.
    settle: the residual at which images leave their only chain, None for all its cycles.
    """

    surrogate: Any

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        seed: int,
        stream: str,
        sampler: str = "ddim",
        timesteps: Sequence[int],
        eta: float,
        surrogate: nn.Module | None = None,
        guidance: Guidance | None = None,
        chains: Sequence[Sequence[Cycle]] = (),
        kept: int = 1,
        settle: float | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.surrogate = denoiser, surrogate
        if surrogate is not None and not isinstance(surrogate, Denoiser):
            lay_out(surrogate)
        self.seed, self.stream, self.sampler = seed, stream, sampler
        self.timesteps, self.eta, self.guidance = list(timesteps), eta, guidance
        self.chains, self.kept, self.settle = [list(chain) for chain in chains], kept, settle
        self.steps_taken: Int64[Tensor, "n"] | None = None  # of the last batch, where it settles
        levels = [t for cycle in self._cycles for t in cycle.timesteps]
        require_x_0(denoiser.prediction_type, denoiser.alphas_cumprod, levels)
        self.is_compiled = False
        self.thread_choice: ThreadChoice | None = None

    @property
    def _cycles(self) -> list[Cycle]:
        return [cycle for chain in self.chains for cycle in chain]

    @property
    def candidates(self) -> int:
        """Predicted images per start."""
        return max(1, self.kept * len(self.chains))

    @property
    def refinement_evaluations(self) -> int:
        """Evaluations of the network per start, in its refinement."""
        return sum(cycle.denoising_steps for cycle in self._cycles)

    @property
    def evaluated(self) -> list[int]:
        """The timesteps at which sampling evaluates eps, some of them twice with Heun's method."""
        return evaluated(self.sampler, self.timesteps, self.denoiser.alphas_cumprod)

    @property
    def guided_timesteps(self) -> list[int]:
        """Those at which the surrogate is evaluated."""
        return [] if self.guidance is None else self.guidance.within(self.evaluated)

    @property
    def label_alone(self) -> bool:
        """Whether these use the eps of the surrogate alone, without evaluating the model."""
        scale = None if self.guidance is None else self.guidance.guidance_scale
        return isinstance(self.surrogate, Denoiser) and scale == 1

    def on_predict_start(self) -> None:
        keep_freed_memory()

    @torch.no_grad()
    def predict_step(self, batch: dict[str, Tensor]) -> Tensor:
        numbers, targets = batch["indices"].tolist(), batch["targets"]
        seen: Seen = []
        plain = watched(self.denoiser.eps_fn(targets), "the model's prediction", seen)
        # Compiling again for the smaller batches of the last shard takes longer than these.
        once = torch.compiler.set_stance("eager_on_recompile") if self.is_compiled else None
        with cast_once(self.device), once or nullcontext():
            x_0 = self.denoiser.encode(batch["images"]) if "images" in batch else None
            if x_0 is None or self.timesteps:
                x_0 = self._sampled(plain, numbers, targets, seen, x_0)
                require_finite_eps(seen, self.stream, numbers)
            if self.chains:
                x_0 = self.denoiser.as_saved(x_0)  # equal to the refinement of saved images
                if self.settle is None:
                    x_0 = self._refined(plain, x_0, numbers)
                    require_finite_eps(seen, self.stream, numbers)
                else:
                    x_0 = self._settled(x_0, numbers, targets, self.settle)
            return self.denoiser.decode(x_0)

    def _settled(
        self, start: Tensor, numbers: list[int], targets: Int64[Tensor, "n"], residual: float
    ) -> Tensor:
        """The iterate of each start that moved least; only images that still move are evaluated."""
        (chain,) = self.chains

        def step(x_0: Tensor, rows: Int64[Tensor, "m"]) -> Tensor:
            seen: Seen = []
            eps_fn = watched(self.denoiser.eps_fn(targets[rows]), "the model's prediction", seen)
            ab = self.denoiser.alphas_cumprod
            x_0 = next(iterates(self._in_range(eps_fn), x_0, chain[:1], ab))
            require_finite_eps(seen, self.stream, [numbers[i] for i in rows.tolist()])
            return x_0

        x_0, self.steps_taken = settled(step, start, len(chain), residual)
        return x_0

    def _refined(self, plain: EpsFn, start: Tensor, numbers: list[int]) -> Tensor:
        """The kept iterates of each start in the order of the chains, one start after another."""
        eps_fn, ab = self._in_range(plain), self.denoiser.alphas_cumprod
        # A stream for refinement, so that saved images get the same noise when refined.
        noise_fn = image_noise(self.seed, "refine", numbers, self.denoiser.shape, self.device)
        kept = [
            deque(iterates(eps_fn, start, chain, ab, noise_fn), maxlen=self.kept)
            for chain in self.chains
        ]
        return torch.stack([x for chain in kept for x in chain], 1).flatten(0, 1)

    def _sampled(
        self,
        plain: EpsFn,
        numbers: list[int],
        targets: Int64[Tensor, "n"],
        seen: Seen,
        x_0: Tensor | None = None,
    ) -> Tensor:
        """x_0 of the images with these numbers, from noise alone or from a noised `x_0`."""
        guided_eps_fn = self._guided(plain, targets)
        if guided_eps_fn is not plain:
            guided_eps_fn = watched(guided_eps_fn, "the guided prediction", seen)
        eps_fn = self._timed(self._in_range(guided_eps_fn))
        noise_fn = image_noise(self.seed, self.stream, numbers, self.denoiser.shape, self.device)
        alphas_cumprod, x_t = self.denoiser.alphas_cumprod, noise_fn()
        if x_0 is not None:
            t = torch.full((len(x_t),), self.timesteps[0], device=self.device)
            x_t = add_noise(x_0, x_t, t, alphas_cumprod)
        last = self.denoiser.step_rule.last_alpha_bar
        sampler = SAMPLERS[self.sampler]
        return sampler(eps_fn, x_t, self.timesteps, alphas_cumprod, self.eta, noise_fn, last)

    def _guided(self, plain: EpsFn, targets: Int64[Tensor, "n"]) -> EpsFn:
        """The model's eps, guided by the surrogate if any."""
        if self.surrogate is None or self.guidance is None:
            return plain
        if isinstance(self.surrogate, Denoiser):
            return conditioned(plain, self.surrogate.eps_fn(targets), **vars(self.guidance))
        return guided(
            plain,
            self.surrogate.grad_log_prob,
            targets,
            alphas_cumprod=self.denoiser.alphas_cumprod,
            **vars(self.guidance),
        )

    def _in_range(self, eps_fn: EpsFn) -> EpsFn:
        """`eps_fn` with pred_x_0 clipped to the range of x_0."""
        return clip_x_0(eps_fn, self.denoiser.alphas_cumprod, self.denoiser.clip_range)

    def _timed(self, eps_fn: EpsFn) -> EpsFn:
        """`eps_fn` whose guided steps, or all steps, choose the number of CPU threads."""
        choice, steps = self.thread_choice, set(self.guided_timesteps or self.timesteps)
        if choice is None:
            return eps_fn
        return lambda x_t, t: choice.run(eps_fn, x_t, t) if t in steps else eps_fn(x_t, t)

    def prepare(self, num_images: int, shard_size: int, runtime: Runtime) -> int:
        """The batch size for `num_images`; compiles the networks where this saves time.

        Batches of a shard are equal, so that nearly all have the compiled shape.
        """
        size = runtime.sampling_batch_size or self._useful_batch_size(shard_size)
        size = math.ceil(shard_size / math.ceil(shard_size / size))
        step = self._step(size)
        evaluations = num_images * (len(self.evaluated) + self.refinement_evaluations)

        def seconds() -> float:
            return seconds_of(step, self.device) * evaluations / size

        pays = compiling_pays(runtime.compile, evaluations, seconds, self.device)
        if pays and has_compiler(self.device):
            # With another number of threads than at compilation, networks run uncompiled.
            if self.thread_choice is not None and evaluations / size >= SETTLING_PAYS:
                self.thread_choice.settle(step)
            self.compile_for(step)
        return size

    def compile_for(self, step: Callable[[], object]) -> None:
        """Compiles the networks for the batches that `step` evaluates them on."""
        models = [m for m in (self.denoiser, self.surrogate) if isinstance(m, Denoiser)]
        compile_networks([model.unet for model in models], self.surrogate, step)
        self.is_compiled = True

    def _useful_batch_size(self, most: int) -> int:
        if self.device.type != "cuda":
            return CPU_BATCH_SIZE
        return largest_useful_batch(
            lambda n: n / seconds_of(self._step(n), self.device), self.denoiser.first_batch, most
        )

    def _step(self, n: int) -> Callable[[], Tensor]:
        """One evaluation of the networks on `n` images, at a guided timestep if any."""
        t = (self.guided_timesteps or self.timesteps or [self._cycles[0].t])[0]
        x_t = torch.zeros(n, *self.denoiser.shape, device=self.device)
        targets = torch.zeros(n, dtype=torch.int64, device=self.device)
        eps_fn = self._in_range(self._guided(self.denoiser.eps_fn(targets), targets))

        @torch.no_grad()
        def step() -> Tensor:
            with self.trainer.precision_plugin.predict_step_context(), cast_once(self.device):
                return eps_fn(x_t, t)

        return step
