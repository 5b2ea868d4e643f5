from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from sidepipe.base.images import to_model, to_uint8
from sidepipe.engine.stage import Job, Runtime
from sidepipe.engine.trained import Training
from sidepipe.engine.training import (
    EndlessBatches,
    adamw_with_warmup,
    fit,
    require_finite,
    step_generator,
    validation_batches,
    weights,
)
from sidepipe.stages.dpm.module import AmbientModule, DenoisingModule

ALPHAS_CUMPROD = DDPMScheduler(20).alphas_cumprod
TYPES = ["epsilon", "v_prediction", "sample"]


class Network(nn.Module):
    """A function of (x_t, t) in a network's place, which keeps what it was given."""

    def __init__(self, function):
        super().__init__()
        self.function, self.seen = function, []

    def forward(self, x_t, t):
        self.seen.append((x_t, t))
        return SimpleNamespace(sample=self.function(x_t, t))


def denoising(function, prediction_type="epsilon", alphas_cumprod=ALPHAS_CUMPROD, **changes):
    settings = {"lr": 1.0, "weight_decay": 0.0, "lr_warmup_steps": 0, "random_flip": False}
    settings |= {"seed": 0, "preview_folder": None, "image_shape": (1, 4, 4), **changes}
    return DenoisingModule(Network(function), alphas_cumprod, prediction_type, **settings)


def random_images(count=8):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), np.uint8))


def knows(x_0, prediction_type):
    """The exact prediction where every image is `x_0`: DDPM, eq. 4 solved for eps."""

    def function(x_t, t):
        signal, noise = (
            a[t].sqrt()[:, None, None, None] for a in (ALPHAS_CUMPROD, 1 - ALPHAS_CUMPROD)
        )
        eps = (x_t - signal * x_0) / noise
        return {
            "epsilon": eps,
            "v_prediction": signal * eps - noise * x_0,
            "sample": x_0 + 0 * x_t,
        }[prediction_type]

    return function


# the loss


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_network_that_knows_the_image_has_no_loss(prediction_type):
    image = random_images(1)
    module = denoising(knows(to_model(image), prediction_type), prediction_type)
    loss = module.loss(image.repeat(64, 1, 1, 1), step_generator(0, 0, torch.device("cpu")))
    assert loss.shape == (64,)
    assert loss.max() < 1e-9


def test_the_loss_of_each_image_is_its_own_mean_squared_error():
    images = random_images()
    module = denoising(lambda x_t, t: torch.full_like(x_t, 0.25), "sample")
    loss = module.loss(images, step_generator(0, 0, torch.device("cpu")))
    torch.testing.assert_close(loss, (to_model(images) - 0.25).square().mean((1, 2, 3)))


def test_a_network_that_predicts_no_noise_loses_the_variance_of_the_noise():
    module = denoising(lambda x_t, t: torch.zeros_like(x_t))
    loss = module.loss(random_images(4000), step_generator(0, 0, torch.device("cpu")))
    # Of 64,000 squared standard normals, whose variance is 2: four standard errors.
    assert loss.mean().item() == pytest.approx(1, abs=4 * (2 / 64000) ** 0.5)


def test_every_timestep_is_drawn_as_often():
    module = denoising(lambda x_t, t: x_t)
    module.loss(random_images(20000), step_generator(0, 0, torch.device("cpu")))
    counts = torch.bincount(module.unet.seen[0][1], minlength=20)
    assert len(counts) == 20
    assert counts.sub(1000).abs().max() < 4 * 1000**0.5


def test_half_of_the_images_are_flipped_left_to_right_and_their_targets_too():
    images = random_images(1).repeat(4000, 1, 1, 1)
    no_noise = torch.ones(20)
    module = denoising(lambda x_t, t: x_t, "sample", no_noise, random_flip=True).train()
    loss = module.loss(images, step_generator(0, 0, torch.device("cpu")))
    x_0 = to_model(images)
    seen = module.unet.seen[0][0]
    kept, flipped = ((seen == x).flatten(1).all(1) for x in (x_0, x_0.flip(3)))
    assert (kept ^ flipped).all()
    assert abs(int(flipped.sum()) - 2000) < 4 * 1000**0.5
    assert loss.max() == 0


@pytest.mark.parametrize(("random_flip", "training"), [(False, True), (True, False)])
def test_nothing_is_flipped_unasked_or_in_validation(random_flip, training):
    images, no_noise = random_images(64), torch.ones(20)
    module = denoising(lambda x_t, t: x_t, "sample", no_noise, random_flip=random_flip)
    module.train(training).loss(images, step_generator(0, 0, torch.device("cpu")))
    assert module.unet.seen[0][0].equal(to_model(images))


def test_ranks_draw_slices_of_the_global_batch():
    images = random_images(12)
    module = denoising(lambda x_t, t: x_t, random_flip=True).train()
    for rank, world in [(0, 1), (0, 3), (1, 3), (2, 3)]:
        mine = images.chunk(world)[rank]
        module.loss(mine, step_generator(5, 7, torch.device("cpu")), (rank, world))
    (x_t, t), *parts = module.unet.seen
    assert torch.cat([part[0] for part in parts]).equal(x_t)
    assert torch.cat([part[1] for part in parts]).equal(t)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_preview_of_a_network_that_knows_the_image_shows_it(prediction_type):
    image = random_images(1)
    preview = denoising(knows(to_model(image), prediction_type), prediction_type).preview()
    assert preview.shape == (64, 4, 4, 1)
    difference = torch.from_numpy(preview).int() - to_uint8(to_model(image)).int()
    assert difference.abs().max() <= 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_preview_that_is_not_finite_is_an_error_with_its_step(value):
    message = r"dpm at step 0: the sample's prediction is not finite at t = \d+, in 64 of 64 image"
    with pytest.raises(RuntimeError, match=message):
        denoising(lambda x_t, t: torch.full_like(x_t, value)).preview()


# what a training step is made of


def test_steps_and_seeds_have_generators_of_their_own_and_always_the_same():
    def draws(seed, step):
        return torch.rand(3, generator=step_generator(seed, step, torch.device("cpu"))).tolist()

    assert draws(1, 2) == draws(1, 2)
    assert len({tuple(draws(seed, step)) for seed in range(3) for step in range(3)}) == 9


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_no_number_is_refused_with_step_and_remedy(loss):
    with pytest.raises(RuntimeError, match=r"dpm: the loss is -?(nan|inf) at step 41; .*dpm\.lr"):
        require_finite(torch.tensor(loss), "dpm", 41)
    require_finite(torch.tensor(1e30), "dpm", 41)


def test_the_learning_rate_rises_linearly_to_its_value_and_stays():
    [optimizer], [schedule] = adamw_with_warmup(nn.Linear(1, 1), 0.4, 0.5, 4)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    assert schedule["interval"] == "step"


def test_validation_batches_are_all_rows_in_order():
    rows = [np.arange(10), np.arange(10) * 10]
    batches = list(validation_batches(rows, 4))
    assert [len(batch[0]) for batch in batches] == [4, 4, 2]
    for i, row in enumerate(rows):
        assert torch.cat([batch[i] for batch in batches]).tolist() == row.tolist()


# batches without end


def endless(batch_size=4, seed=0, count=10, global_step=0, rank=0, world=1):
    """Row numbers of the batches that a trainer in this state gets."""
    trainer = SimpleNamespace(global_step=global_step, global_rank=rank, world_size=world)
    module = SimpleNamespace(trainer=trainer, device=torch.device("cpu"))
    rows = [np.arange(count), np.arange(count) * 2]
    for numbers, doubles in EndlessBatches(module, rows, batch_size, seed):
        assert doubles.equal(numbers * 2), "rows of all arrays belong together"
        yield numbers.tolist()


def test_every_image_comes_once_an_epoch_and_epochs_differ():
    # Five batches of four are two epochs of ten.
    order = np.concatenate(list(islice(endless(), 5)))
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()


def test_a_batch_may_be_larger_than_an_epoch():
    assert np.bincount(next(endless(batch_size=30))).tolist() == [3] * 10


def test_the_order_depends_on_the_seed_alone():
    assert list(islice(endless(), 5)) == list(islice(endless(), 5))
    assert list(islice(endless(seed=1), 5)) != list(islice(endless(), 5))


@pytest.mark.parametrize("step", [1, 2, 5, 13])
def test_batches_go_on_where_the_trainer_stands(step):
    """Also in the middle of an epoch: at step 2 eight of ten images are through."""
    whole = list(islice(endless(), 20))
    assert list(islice(endless(global_step=step), 20 - step)) == whole[step:]


def test_slices_of_the_ranks_make_up_the_global_batch():
    ranks = [list(islice(endless(batch_size=6, rank=r, world=3), 5)) for r in range(3)]
    together = [[i for part in parts for i in part] for parts in zip(*ranks, strict=True)]
    assert together == list(islice(endless(batch_size=6), 5))


# going fast


class Denoiser(nn.Module):
    """The smallest network of diffusers' kind that learns."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x_t, t):
        h = self.conv(x_t)
        return UNet2DOutput(sample=h[:, :1] * torch.sigmoid(h[:, 1:]))


class Loop(Training):
    name = "dpm"


def trained(folder, precision):
    """The weights after four clipped steps on random images."""
    folder.mkdir()
    torch.manual_seed(0)
    module = DenoisingModule(
        Denoiser(),
        torch.linspace(0.99, 0.1, 20),
        "epsilon",
        lr=0.1,
        weight_decay=0.0,
        lr_warmup_steps=0,
        random_flip=False,
        seed=0,
        preview_folder=folder / "previews",
        image_shape=(1, 4, 4),
    )
    images = random_images(24).numpy()
    loop = Loop(
        max_steps=4,
        batch_size=8,
        lr=0.1,
        weight_decay=0.0,
        lr_warmup_steps=0,
        gradient_clip_val=0.01,
        precision=precision,
        log_every_steps=1,
        checkpoint_every_steps=4,
        seed=0,
    )
    validation, runtime = validation_batches([images[:5]]), Runtime(accelerator="cpu")
    fit(loop, module, [images], validation, Job(folder, {}, runtime), validate_every_steps=2)
    return torch.cat([w.flatten() for w in weights(folder).values()])


def test_the_fused_optimizer_lets_gradients_be_clipped_at_half_precision(tmp_path):
    torch.testing.assert_close(
        trained(tmp_path / "16", "bf16-mixed"),
        trained(tmp_path / "32", "32-true"),
        atol=0.05,
        rtol=0,
    )


# mitigations


def test_shifts_and_weights_change_training_alone():
    images = torch.zeros(6, 4, 4, 1, dtype=torch.uint8)
    images[:, 0, 0] = 255
    module = denoising(lambda x_t, t: 0 * x_t, random_shift=2)
    generator = step_generator(0, 0, torch.device("cpu"))
    moved = module.train().noised(images, generator, (0, 1)).x_0
    assert len({tuple(x.flatten().tolist()) for x in moved}) > 1
    generator = step_generator(0, 0, torch.device("cpu"))
    assert module.eval().noised(images, generator, (0, 1)).x_0.equal(to_model(images))
    weighting = {"t_min": 0, "t_max": 19, "weight": 0.25}
    plain, weighted = (
        denoising(lambda x_t, t: 0 * x_t, loss_weighting=w) for w in (None, weighting)
    )
    losses = [
        [
            m.train(mode).loss(images, step_generator(0, 0, torch.device("cpu")))
            for m in (plain, weighted)
        ]
        for mode in (True, False)
    ]
    torch.testing.assert_close(losses[0][1], 0.25 * losses[0][0])
    assert losses[1][1].equal(losses[1][0])


def test_each_device_moves_its_part_of_the_batch_as_one_device_would():
    images = random_images(8)
    module = denoising(lambda x_t, t: 0 * x_t, random_shift=2).train()
    whole = module.noised(images, step_generator(0, 3, torch.device("cpu")), (0, 1)).x_0
    parts = [
        module.noised(part, step_generator(0, 3, torch.device("cpu")), (rank, 2)).x_0
        for rank, part in enumerate(images.split(4))
    ]
    assert torch.cat(parts).equal(whole)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_a_network_that_knows_the_noisy_image_has_no_ambient_loss(prediction_type):
    """Where all images have one noisy version, eps_fn(x_t, t) / factor is known."""
    image, t_n = random_images(1), 5
    fixed = torch.randn(1, 1, 4, 4)
    ab = ALPHAS_CUMPROD
    x_n = ab[t_n].sqrt() * to_model(image) + (1 - ab[t_n]).sqrt() * fixed

    def function(x_t, t):
        shape = (-1, 1, 1, 1)
        kept, noise = (ab[t] / ab[t_n]).reshape(shape), (1 - ab[t]).sqrt().reshape(shape)
        noisy = (t > t_n).reshape(shape)
        known = (x_t - kept.clamp(max=1).sqrt() * x_n) / (1 - kept).clamp_min(1e-9) * noise
        usual = (x_t - ab[t].sqrt().reshape(shape) * to_model(image)) / noise
        eps = torch.where(noisy, known, usual)
        signal = ab[t].sqrt().reshape(shape)
        x_0 = (x_t - noise * eps) / signal
        return {"epsilon": eps, "v_prediction": signal * eps - noise * x_0, "sample": x_0}[
            prediction_type
        ]

    settings = {"lr": 1.0, "weight_decay": 0.0, "lr_warmup_steps": 0, "random_flip": False}
    settings |= {"seed": 0, "preview_folder": None, "image_shape": (1, 4, 4)}
    module = AmbientModule(Network(function), ab, prediction_type, ambient_t=t_n, **settings)
    generator = step_generator(0, 0, torch.device("cpu"))
    loss = module.train().loss(image.repeat(64, 1, 1, 1), fixed.repeat(64, 1, 1, 1), generator)
    assert loss.max() < 1e-6
