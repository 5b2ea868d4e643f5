"""Images of prompts by guided sampling, whose steps a callback can inspect."""

from collections.abc import Sequence

from jaxtyping import UInt8
from torch import Tensor

from sidepipe.diffusion.finite import Seen, require_finite_eps, watched
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.sampler import ddim, require_x_0
from sidepipe.diffusion.schedule import clip_x_0
from sidepipe.models.text.guidance import Look, prompt_guided
from sidepipe.models.text.model import Embeddings, Latents, TextModel


def prompt_noise(
    model: TextModel, seed: int, prompts: Sequence[int], num_generations: int
) -> Latents:
    """x_T of every generation of every prompt, prompt by prompt: (prompts * generations, c, h, w).

    prompts: their numbers; the noise depends on these and the seed, not on the batch.
    """
    # A million generations each, so that a larger number keeps the noise of the first ones.
    indices = [p * 1_000_000 + g for p in prompts for g in range(num_generations)]
    return image_noise(seed, "prompts", indices, model.latent_shape, model.device)()


def prompt_timesteps(model: TextModel, num_inference_steps: int) -> list[int]:
    """Timesteps from most to least noise, as the model's scheduler chooses them."""
    timesteps = model.step_rule.timesteps(len(model.alphas_cumprod), num_inference_steps)
    require_x_0(model.prediction_type, model.alphas_cumprod, timesteps)
    return timesteps


def sample(
    model: TextModel,
    x_T: Latents,
    e: Embeddings,
    e_0: Embeddings,
    guidance_scale: float,
    num_inference_steps: int,
    look: Look | None = None,
) -> UInt8[Tensor, "n h w c"]:
    """Images by DDIM with eta = 0 from x_T, each for its row of `e` (n, l, d)."""
    return model.decode(sample_x_0(model, x_T, e, e_0, guidance_scale, num_inference_steps, look))


def sample_x_0(
    model: TextModel,
    x_T: Latents,
    e: Embeddings,
    e_0: Embeddings,
    guidance_scale: float,
    num_inference_steps: int,
    look: Look | None = None,
) -> Latents:
    """As `sample`, without decoding.

    pred_x_0 of images is clipped to the model's range at every step; latents have none.
    """
    timesteps = prompt_timesteps(model, num_inference_steps)
    seen: Seen = []
    eps_fn = watched(prompt_guided(model, e, e_0, guidance_scale, look), "the prediction", seen)
    eps_fn = clip_x_0(eps_fn, model.alphas_cumprod, model.clip_range)
    last = model.step_rule.last_alpha_bar
    x_0 = ddim(eps_fn, x_T, timesteps, model.alphas_cumprod, last_alpha_bar=last)
    require_finite_eps(seen, "sampling of prompts", range(len(x_T)))
    return x_0
