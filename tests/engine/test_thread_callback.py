"""Trainings and samplings whose CPU threads are chosen while they run, on a machine of two cores
whatever the real one has. Only which steps are timed depends on nothing: 1 or 2 may win."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from safetensors.torch import load_file
from tests.tiny import DIGITS, RUNTIME, SCHEDULE, SETTINGS, UNET

from sidepipe.base.settings import build
from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.timesteps import Guidance
from sidepipe.engine import thread_callback, threads
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.sampling import sample_to_shards
from sidepipe.engine.shards import load_shards
from sidepipe.engine.stage import Job, Runtime
from sidepipe.engine.thread_callback import Threads
from sidepipe.engine.threads import PLAN, ThreadChoice
from sidepipe.stages.attack.surrogates import ClassifierSurrogate
from sidepipe.stages.dpm.module import DenoisingModule
from sidepipe.stages.dpm.trained import TrainDPM

TIMED = [2, 2, 1, 1]  # of a busy machine, where it is clear which is faster
WEIGHTS = "model/unet/diffusion_pytorch_model.safetensors"


def runtime(num_threads):
    return Runtime(accelerator="cpu", sampling_batch_size=8, num_threads=num_threads)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    monkeypatch.setattr(threads, "available", lambda: 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def busy(monkeypatch):
    """A machine on which one thread is four times as fast as two."""
    clock = SimpleNamespace(now=0.0)

    class Choice(ThreadChoice):
        def __init__(self, most):
            super().__init__(most, wall=lambda: clock.now, cpu=lambda: 0.0)

        def stop(self):
            clock.now += 1.0 if self.num_threads == 1 else 4.0
            super().stop()

    monkeypatch.setattr(thread_callback, "ThreadChoice", Choice)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    DIGITS.run(Job(folder, {}, RUNTIME))
    return folder


def trained(folder, data, num_threads, max_steps=20):
    folder.mkdir(exist_ok=True)
    settings = {**SETTINGS, "max_steps": max_steps, "preview_every_steps": 20}
    TrainDPM(**settings).run(Job(folder, {"data": data}, runtime(num_threads)))
    return load_file(folder / WEIGHTS)


@pytest.fixture
def numbers(monkeypatch):
    """The number of threads of each training step."""
    step, found = DenoisingModule.training_step, []

    def watched(self, *args):
        found.append(torch.get_num_threads())
        return step(self, *args)

    monkeypatch.setattr(DenoisingModule, "training_step", watched)
    return found


def test_a_training_times_its_own_first_steps_and_goes_on_with_the_faster(
    tmp_path, data, numbers, busy
):
    trained(tmp_path, data, "auto")
    assert numbers == TIMED + [1] * (20 - len(TIMED))
    assert torch.get_num_threads() == 2


def test_a_given_number_is_kept(tmp_path, data, numbers):
    trained(tmp_path, data, 1)
    assert numbers == [1] * 20


def test_threads_change_a_training_by_rounding_only(tmp_path, data, busy):
    """20 steps at a learning rate of 0.01, as one number of threads, another, or both."""
    one, two = (trained(tmp_path / str(n), data, n) for n in (1, 2))
    both = trained(tmp_path / "both", data, "auto")
    for name, expected in one.items():
        for other in (two, both):
            torch.testing.assert_close(other[name], expected, rtol=0, atol=1e-4)


def test_a_resumed_training_times_again_and_ends_like_a_whole_one_to_rounding(
    tmp_path, data, numbers, busy, monkeypatch
):
    whole = trained(tmp_path / "whole", data, "auto")
    numbers.clear()

    def breaks(self, *args):
        if self.global_step == 14:
            raise KeyError("the machine broke down")
        return step(self, *args)

    step = DenoisingModule.training_step
    monkeypatch.setattr(DenoisingModule, "training_step", breaks)
    with pytest.raises(KeyError):
        trained(tmp_path / "broken", data, "auto")
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(DenoisingModule, "training_step", step)
    numbers.clear()
    resumed = trained(tmp_path / "broken", data, "auto")
    assert numbers == TIMED + [1] * 4  # of 20 steps 12 were saved
    for name, expected in whole.items():
        torch.testing.assert_close(resumed[name], expected, rtol=0, atol=1e-4)


def test_on_an_accelerator_nothing_is_chosen(busy):
    callback = Threads(runtime("auto"))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda")))
    module = SimpleNamespace(thread_choice="?")
    callback.setup(trainer, module, "predict")
    assert callback.choice is module.thread_choice is None


def test_processes_that_train_together_take_the_number_of_the_first(monkeypatch, busy):
    """They wait for each other, so two choices would only disturb each other."""
    told = []

    def broadcast(tensor, src):
        told.append((bool(tensor), src))
        tensor.fill_(len(told) == 2)

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    monkeypatch.setattr(torch.distributed, "all_reduce", fewest_of(2))
    callback = Threads(runtime("auto"))
    root = SimpleNamespace(root_device=torch.device("cpu"))
    trainer, found = SimpleNamespace(strategy=root, world_size=2), []
    callback.setup(trainer, None, "fit")
    for _ in range(3):
        callback.on_train_batch_start(trainer)
        found.append(torch.get_num_threads())
        callback.on_train_batch_end()
    assert found == [1, 2, 1]
    assert told == [(every, 0) for every in PLAN[:3]]


def fewest_of(other):
    """`all_reduce` with a process that has `other` threads."""

    def all_reduce(tensor, operation):
        assert operation == torch.distributed.ReduceOp.MIN
        tensor.clamp_(max=other)

    return all_reduce


@pytest.mark.parametrize(("own", "other", "most"), [(4, 1, None), (1, 4, None), (4, 2, 2)])
def test_processes_of_different_quotas_choose_together_or_not_at_all(monkeypatch, own, other, most):
    """One that had a single thread skipped the broadcast for which the others waited."""
    told = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: told.append(src))
    monkeypatch.setattr(torch.distributed, "all_reduce", fewest_of(other))
    monkeypatch.setattr(threads, "available", lambda: own)
    callback = Threads(runtime("auto"))
    root = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(strategy=root, world_size=2)
    callback.setup(trainer, None, "fit")
    callback.on_train_batch_start(trainer)
    assert (callback.choice and callback.choice.most) == most
    assert told == ([] if most is None else [0])
    assert torch.get_num_threads() == (most or own)
    callback.teardown()
    assert torch.get_num_threads() == own


class Logits(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(64, 4)

    def forward(self, x_t, t):
        return self.head(x_t.flatten(1))


def sampled(folder, num_threads, guidance_scale=1.0):
    """Images of 3 batches, of whose 5 steps the first 4 are guided, and threads by timestep."""
    torch.manual_seed(0)
    unet = build({**UNET, "block_out_channels": [8, 8]}).eval()
    alphas_cumprod = DDPMPipeline(unet, build(SCHEDULE)).scheduler.alphas_cumprod
    sampler = ImageSampler(
        Denoiser(unet, alphas_cumprod, "epsilon", (1, 8, 8)),
        seed=0,
        stream="extract",
        timesteps=[16, 12, 8, 4, 0],
        eta=0.0,
        surrogate=ClassifierSurrogate(Logits()),
        guidance=Guidance(guidance_scale=guidance_scale, t_min=4, t_max=None),
    )
    found = []
    hook = unet.register_forward_pre_hook(
        lambda module, args: found.append((int(args[1].flatten()[0]), torch.get_num_threads()))
    )
    sample_to_shards(sampler, folder, 24, 24, "32-true", runtime(num_threads), np.arange(24) % 4)
    hook.remove()
    return load_shards(folder).astype(int), found


def test_a_sampling_times_the_steps_that_are_guided(tmp_path, busy):
    images, found = sampled(tmp_path / "auto", "auto")
    guided = [number for t, number in found if t >= 4]
    assert guided == TIMED + [1] * 8
    assert torch.get_num_threads() == 2
    for number in (1, 2):
        expected, found = sampled(tmp_path / str(number), number)
        assert {n for _, n in found} == {number}
        assert np.abs(images - expected).max() <= 1
        assert (images == expected).mean() > 0.99


def test_a_sampling_that_is_not_guided_times_all_its_steps(tmp_path, busy):
    _, found = sampled(tmp_path, "auto", guidance_scale=0.0)
    assert [number for _, number in found] == TIMED + [1] * 11
