import logging
import platform
import resource
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from sidepipe.diffusion.denoiser import Denoiser
from sidepipe.diffusion.timesteps import Guidance
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.sampling import sample_to_shards
from sidepipe.engine.shards import load_shards
from sidepipe.engine.stage import Runtime
from sidepipe.models import speed
from sidepipe.models.speed import (
    PAYS_SECONDS,
    WORTH_TIMING,
    cast_once,
    compiling_pays,
    has_compiler,
    keep_freed_memory,
    largest_useful_batch,
    lay_out,
    network_gradients,
)
from sidepipe.stages.attack.surrogates import ClassifierSurrogate

CPU = torch.device("cpu")


def device_with(fastest_at, room):
    """images_per_second of a device that needs `fastest_at` images at once and holds `room`."""

    def images_per_second(n):
        if n > room:
            raise torch.OutOfMemoryError("no room")
        return 1000.0 * min(n, fastest_at) / fastest_at

    return images_per_second


@pytest.mark.parametrize(
    ("fastest_at", "room", "most", "size"),
    [
        (512, 10_000, 10_000, 512),
        (600, 10_000, 10_000, 1024),  # the doubling that reached the rate
        (10_000, 300, 10_000, 256),
        (10_000, 10_000, 700, 700),
        (32, 10_000, 10_000, 64),
        (512, 10_000, 50, 50),
    ],
)
def test_the_batch_grows_while_that_pays_and_fits(fastest_at, room, most, size):
    assert largest_useful_batch(device_with(fastest_at, room), 64, most) == size


def test_a_batch_that_nearly_fills_the_memory_is_not_taken():
    """Its seconds count as infinite, so its images a second as none."""
    assert largest_useful_batch(lambda n: n if n < 500 else n / float("inf"), 64, 10_000) == 256


@pytest.mark.parametrize(("seconds", "pays"), [(PAYS_SECONDS - 1, False), (PAYS_SECONDS + 1, True)])
def test_auto_compiles_where_the_run_is_long(seconds, pays):
    assert compiling_pays("auto", WORTH_TIMING, lambda: seconds, CPU) is pays


@pytest.mark.parametrize(
    ("setting", "evaluations", "device", "pays"),
    [
        ("auto", WORTH_TIMING - 1, CPU, False),
        ("auto", 10**9, torch.device("mps"), False),
        (True, 1, CPU, True),
        (False, 10**9, CPU, False),
    ],
)
def test_nothing_is_timed_where_the_answer_is_known(setting, evaluations, device, pays):
    assert compiling_pays(setting, evaluations, lambda: pytest.fail("timed"), device) is pays


@pytest.mark.parametrize(
    ("wall", "cpu", "own", "seconds"),
    [
        *((1.0, 2.0, 1.0, 1.0), (20.0, 2.0, 1.0, 1.0), (3.0, 6.0, 3.0, 3.0), (1.0, 2.5, 1.0, 1.0)),
        *((1.0, 1.2, 1.0, 1.0), (20.0, 1.2, 1.0, 1.0)),  # the other thread is mostly idle
        *((1.0, 2.0, 0.7, 1.0), (1.0, 1.0, 1.0, 1.0)),
    ],
)
def test_other_work_makes_no_run_long_enough_to_compile(monkeypatch, wall, cpu, own, seconds):
    """A step on two threads takes `cpu` seconds of the cores, `own` of them by this thread."""
    clock = SimpleNamespace(wall=0.0, cpu=0.0, own=0.0)
    fake = SimpleNamespace(
        perf_counter=lambda: clock.wall,
        process_time=lambda: clock.cpu,
        thread_time=lambda: clock.own,
    )
    monkeypatch.setattr(speed, "time", fake)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def step():
        clock.wall, clock.cpu, clock.own = clock.wall + wall, clock.cpu + cpu, clock.own + own

    assert speed.seconds_of(step, CPU) == seconds


def test_a_step_that_uses_one_of_two_threads_is_not_taken_for_half_as_long(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    spent = []

    def step():
        start = time.thread_time()
        while time.thread_time() < start + 0.2:
            pass
        spent.append(time.thread_time() - start)

    assert speed.seconds_of(step, CPU) >= spent[1]


class Wrapper(nn.Module):
    def __init__(self, surrogate):
        super().__init__()
        self.surrogate = surrogate

    def grad_log_prob(self, x_t, t, y):
        return self.surrogate.grad_log_prob(x_t, t, y)


class Logits(nn.Module):
    """A network (x_t, t) -> logits."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x_t, t):
        return self.head(torch.relu(self.conv(x_t)).mean((2, 3)) + (t / 1000)[:, None])


def test_the_gradient_through_a_network_is_found_within_its_wrappers():
    inner = ClassifierSurrogate(Logits())
    assert list(network_gradients(Wrapper(Wrapper(inner)))) == [inner]
    assert list(network_gradients(None)) == []


def test_another_layout_gives_the_same_gradient_in_the_same_order_of_memory():
    surrogate, x = ClassifierSurrogate(Logits()), torch.randn(5, 3, 6, 4)
    t, y = torch.arange(5), torch.tensor([0, 3, 1, 2, 0])
    before = surrogate.grad_log_prob(x, t, y)
    lay_out(surrogate)
    assert surrogate.network.conv.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(surrogate.grad_log_prob(x, t, y), before)
    # Or the UNet would get images whose group norm is slow.
    assert (x - surrogate.grad_log_prob(x, t, y)).is_contiguous()


def test_weights_are_cast_once_and_the_precision_stays():
    linear, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = linear(x)
        with cast_once(CPU):
            assert torch.is_autocast_cache_enabled()
            assert linear(x).equal(expected)
            assert linear(x).dtype == torch.bfloat16
    with torch.no_grad(), cast_once(CPU):
        assert linear(x).dtype == torch.float32


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc alone is told")
def test_freed_memory_is_there_for_the_next_step_without_page_faults():
    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        # All at once, 12,288 pages: more than is kept else.
        _ = [torch.ones(2**22) for _ in range(3)]
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    keep_freed_memory()
    faults()
    assert faults() < 1000


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    config = pytest.importorskip("torch._inductor.config")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_without_a_compiler_one_line_says_so(no_compiler, caplog):
    assert not has_compiler(CPU)
    assert [r.levelno for r in caplog.records if r.name == "sidepipe.models.speed"] == [
        logging.WARNING
    ]
    assert "torch.compile does not work here" in caplog.text


class Network(nn.Module):
    """A network as diffusers has them; a whole UNet would take a minute to compile."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6)

    def forward(self, x_t, t):
        h = nn.functional.silu(self.norm(self.conv(x_t)))
        return UNet2DOutput(sample=x_t - h[:, :3] * h[:, 3:] + (t / 1000)[:, None, None, None])


def sampled(folder, setting):
    """Guided images in shards of 16, the last of 2, and the sampler that made them."""
    torch.manual_seed(0)
    sampler = ImageSampler(
        Denoiser(Network(), torch.linspace(0.99, 0.1, 100), "epsilon", (3, 8, 8)),
        seed=0,
        stream="extract",
        timesteps=[80, 60, 40, 20, 0],
        eta=0.0,
        surrogate=ClassifierSurrogate(Logits()),
        guidance=Guidance(guidance_scale=2.0, t_min=30, t_max=None),
    )
    runtime = Runtime(accelerator="cpu", sampling_batch_size=8, compile=setting)
    sample_to_shards(sampler, folder, 34, 16, "32-true", runtime, np.arange(34) % 4)
    return load_shards(folder).astype(int), sampler


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_networks_give_the_same_images(tmp_path):
    if not has_compiler(CPU):
        pytest.skip("no compiler")
    expected, _ = sampled(tmp_path / "eager", False)
    images, sampler = sampled(tmp_path / "compiled", True)
    assert sampler.is_compiled
    assert np.abs(images - expected).max() <= 1
    assert (images == expected).mean() > 0.99
    assert expected.std(0).mean() > 5


@pytest.mark.filterwarnings("ignore")
def test_without_a_compiler_images_are_made_all_the_same(tmp_path, no_compiler):
    expected, _ = sampled(tmp_path / "eager", False)
    images, sampler = sampled(tmp_path / "compiled", True)
    assert not sampler.is_compiled
    np.testing.assert_array_equal(images, expected)
