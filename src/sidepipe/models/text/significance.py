"""Token significance: how much each token changes what a prompt adds to the prediction.

`SS_i = mean over steps of || d L / d e_i ||_2`, `L = || D_t ||_2` of each image over the whole
latent (Wen et al., 2024, section 4.2). e_i is the embedding of token i before the text encoder:
after it, each position depends on earlier words. The authors' code takes the encoded embedding, L
over the whole batch, and swaps the embeddings with and without the prompt.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sidepipe.base.settings import require
from sidepipe.diffusion.finite import Seen, require_finite_eps, watched
from sidepipe.diffusion.sampler import ddim
from sidepipe.diffusion.schedule import clip_x_0
from sidepipe.models.text.guidance import norms
from sidepipe.models.text.model import Embeddings, Latents, TextModel
from sidepipe.models.text.trajectory import prompt_timesteps

# A forward without the prompt, one with it, and a backward, which counts as two.
EVALUATIONS_A_STEP = 4

OfTokens = Float[Tensor, "n l"]


def encoded(model: TextModel, prompts: Sequence[str]) -> tuple[Embeddings, list[Tensor]]:
    """The prompts' encoded embeddings, and each encoder's token embeddings (n, l, _).

    The first can be differentiated by the second.
    """
    embeddings: list[Tensor] = []

    def embedded(embedding: object, args: object, output: Tensor) -> Tensor:
        embeddings.append(output.detach().requires_grad_())
        return embeddings[-1]

    encoders = [getattr(model, name) for name in model.encoders if name in model.part_names]
    others = [name for name in model.encoders if model.encoders[name] == "T5EncoderModel"]
    others = [name for name in others if name in model.part_names]
    require(not others, "the text encoders", "of CLIP alone, as T5 has tokens of its own", others)
    layers = [encoder.get_input_embeddings() for encoder in encoders]
    hooks = [layer.register_forward_hook(embedded) for layer in layers]
    try:
        with torch.enable_grad():
            return model.embed(prompts), embeddings
    finally:
        for hook in hooks:
            hook.remove()


def difference_and_gradient(
    model: TextModel, x_t: Latents, t: int, e: Embeddings, e_0: Float[Tensor, "1 l d"]
) -> tuple[Latents, Latents, Embeddings]:
    """eps(x_t, e_0), D_t, and the gradient of each image's || D_t || by its row of `e`."""
    with torch.no_grad():
        eps_0 = model.eps(x_t, t, e_0.expand_as(e))
    with torch.enable_grad():
        e = e.detach().clone().requires_grad_()
        difference = model.eps(x_t, t, e) - eps_0
        # Images are independent, so each row of the sum's gradient is the gradient of that image.
        (gradient,) = torch.autograd.grad(norms(difference).sum(), e)
    return eps_0, difference.detach(), gradient


def token_significance(
    model: TextModel,
    x_T: Latents,
    prompts: Sequence[str],
    guidance_scale: float,
    num_inference_steps: int,
    num_steps: int,
) -> tuple[OfTokens, OfTokens]:
    """SS_i of each image and position, over the first `num_steps` of its guided trajectory.

    By the embeddings of tokens and, for comparison, by encoded ones.
    """
    e, embeddings = encoded(model, prompts)
    e_0 = model.encode([""])
    by_token: list[Tensor] = []
    by_encoded: list[Tensor] = []

    def eps_fn(x_t: Tensor, t: int) -> Tensor:
        eps_0, difference, gradient = difference_and_gradient(model, x_t, t, e, e_0)
        through = torch.autograd.grad(e, embeddings, gradient, retain_graph=True)
        by_token.append(torch.cat([some.float() for some in through], dim=2).norm(dim=2))
        by_encoded.append(gradient[:, : model.max_tokens].norm(dim=2))
        return eps_0 + guidance_scale * difference

    seen: Seen = []
    watched_eps_fn = watched(eps_fn, "the prediction", seen)
    kept_in_range = clip_x_0(watched_eps_fn, model.alphas_cumprod, model.clip_range)
    timesteps = prompt_timesteps(model, num_inference_steps)[:num_steps]
    ddim(kept_in_range, x_T, timesteps, model.alphas_cumprod)
    require_finite_eps(seen, "explain", range(len(x_T)))
    return torch.stack(by_token).mean(dim=0), torch.stack(by_encoded).mean(dim=0)
