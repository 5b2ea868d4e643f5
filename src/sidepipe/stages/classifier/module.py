"""Training of the classifier on noised or clean images, and its quality by noise level."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from sidepipe.diffusion.guidance import Posterior
from sidepipe.diffusion.schedule import add_noise
from sidepipe.engine.training import adamw_with_warmup, noised, require_finite, step_generator


class IgnoresTime(nn.Module):
    """Calls the network with t = 0 at every t, for one trained on clean images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x_t: Tensor, t: Int64[Tensor, "n"]) -> Tensor:
        return self.network(x_t, torch.zeros_like(t))


class NoisyClassifierModule(L.LightningModule):
    """Minimizes cross-entropy of the surrogate label of x_t, t uniform (SIDE, algorithm 1, line 9).

    network: (x_t, t) -> logits. alphas_cumprod: (T,), of the model under attack. noised: False for
    clean images, at t = 0 (Carlini et al., 2023). teacher: the closed form whose probabilities at
    x_t are the target; None for the label of the noised image.
    """

    alphas_cumprod: Tensor
    teacher: Posterior | None

    def __init__(
        self,
        network: nn.Module,
        alphas_cumprod: Tensor,
        *,
        lr: float,
        weight_decay: float,
        lr_warmup_steps: int,
        random_flip: bool,
        seed: int,
        noised: bool,
        teacher: Posterior | None = None,
    ) -> None:
        super().__init__()
        self.network, self.noised, self.teacher = network, noised, teacher
        self.lr, self.weight_decay, self.lr_warmup_steps = lr, weight_decay, lr_warmup_steps
        self.random_flip, self.seed = random_flip, seed
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def _noised(
        self, images: Tensor, generator: torch.Generator, share: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The network's inputs x_t and t, for this rank's share (rank, world) of the batch."""
        flip = self.random_flip and self.training
        x = noised(images, self.alphas_cumprod, generator, share, flip)
        return (x.x_t, x.t) if self.noised else (x.x_0, torch.zeros_like(x.t))

    def _target(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The labels, or the teacher's probability of each, (n, k)."""
        return labels if self.teacher is None else self.teacher.log_probs(x_t, t).exp().float()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        generator = step_generator(self.seed, self.global_step, self.device)
        x_t, t = self._noised(images, generator, (self.global_rank, self.trainer.world_size))
        loss = F.cross_entropy(self.network(x_t, t).float(), self._target(x_t, t, labels))
        require_finite(loss, "classifier", self.global_step)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        x_t, t = self._noised(images, step_generator(self.seed, batch_idx, self.device), (0, 1))
        logits = self.network(x_t, t).float()
        options: dict[str, Any] = {"batch_size": len(images), "sync_dist": True}
        loss = F.cross_entropy(logits, self._target(x_t, t, labels))
        self.log("val/cross_entropy", loss, **options)
        self.log("val/accuracy", (logits.argmax(1) == labels).float().mean(), **options)

    def configure_optimizers(self) -> Any:
        return adamw_with_warmup(self.network, self.lr, self.weight_decay, self.lr_warmup_steps)


def quality_by_noise_level(
    network: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int64[Tensor, "n"],
    alphas_cumprod: Float[Tensor, "T"],
    seed: int,
    num_bins: int = 10,
    draws: int = 4,
    teacher: Posterior | None = None,
) -> list[dict[str, int | float]]:
    """Cross-entropy (nats) and accuracy of `network` in equal bins of t, on validation images.

    Each image is noised `draws` times per bin. Rows: t_from, t_to (exclusive), cross_entropy,
    accuracy, and with a teacher posterior_kl: KL(teacher || network), mean over the bin, in nats.
    """
    steps = len(alphas_cumprod)
    edges = [round(i * steps / num_bins) for i in range(num_bins + 1)]
    generator = step_generator(seed, 0, images.device)

    def noised_batches(low: int, high: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for x_0, y in zip(images.split(256), labels.split(256), strict=True):
            for _ in range(draws):
                t = torch.randint(low, high, (len(x_0),), generator=generator, device=x_0.device)
                eps = torch.randn(x_0.shape, generator=generator, device=x_0.device)
                yield add_noise(x_0, eps, t, alphas_cumprod), t, y

    return [
        {"t_from": low, "t_to": high, **_quality(network, noised_batches(low, high), teacher)}
        for low, high in pairwise(edges)
    ]


def quality_on_clean_images(
    network: nn.Module, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, "n"]
) -> dict[str, float]:
    """Cross-entropy (nats) and accuracy of `network` on images without noise, at t = 0."""
    batches = zip(images.split(256), labels.split(256), strict=True)
    return _quality(network, ((x_0, torch.zeros_like(y), y) for x_0, y in batches))


@torch.no_grad()
def _quality(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    teacher: Posterior | None = None,
) -> dict[str, float]:
    """Means over batches of x_t, t and labels."""
    network.eval()
    total = correct = distance = count = 0.0
    for x_t, t, y in batches:
        logits = network(x_t, t).float()
        total += float(F.cross_entropy(logits, y, reduction="sum"))
        correct += float((logits.argmax(1) == y).sum())
        count += len(y)
        if teacher is not None:
            truth = teacher.log_probs(x_t, t)
            ours = logits.log_softmax(1).to(truth.dtype)
            distance += float(F.kl_div(ours, truth, reduction="sum", log_target=True))
    means = {"cross_entropy": total / count, "accuracy": correct / count}
    return means if teacher is None else {**means, "posterior_kl": distance / count}
