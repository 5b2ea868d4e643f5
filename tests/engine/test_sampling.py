import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline
from tests.tiny import DIGITS, SCHEDULE, SETTINGS, UNET, checked

from sidepipe.base.images import to_model, to_uint8
from sidepipe.base.settings import build
from sidepipe.diffusion.noise import image_noise
from sidepipe.diffusion.refine import seek_mode
from sidepipe.diffusion.sampler import ddim, dpm_solver_pp, sampling_timesteps
from sidepipe.diffusion.schedule import clip_x_0, eps_of
from sidepipe.diffusion.timesteps import Guidance
from sidepipe.engine import shards
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.shards import load_steps, shard_path
from sidepipe.engine.stage import Job, Runtime
from sidepipe.stages.dpm.stage import load as load_dpm
from sidepipe.stages.dpm.trained import TrainDPM
from sidepipe.stages.generate.refine import Annealed, Cyclic, FixedPoint, Relaxed, Union
from sidepipe.stages.generate.stage import Generate, load, load_denoiser

# Three whole shards and one of two images.
SAMPLING = {
    "num_images": 50,
    "num_inference_steps": 5,
    "eta": 0.0,
    "sampler": "ddim",
    "timestep_spacing": "leading",
    "precision": "32-true",
    "prompts": None,
    "condition_guidance_scale": 1.0,
    "shard_size": 16,
    "seed": 3,
}
SHARDS = [0, 1, 2, 3]


@pytest.fixture(scope="module", params=["epsilon"])
def dpm(request, tmp_path_factory):
    """A dpm artifact whose network has random weights: its samples differ from image to image."""
    folder = tmp_path_factory.mktemp("dpm")
    torch.manual_seed(0)
    scheduler = build({**SCHEDULE, "beta_end": 0.3, "prediction_type": request.param})
    DDPMPipeline(build({**UNET, "block_out_channels": [8, 8]}), scheduler).save_pretrained(
        folder / "model"
    )
    return folder


def runtime(**changes) -> Runtime:
    return Runtime(**{"accelerator": "cpu", "sampling_batch_size": 16, **changes})


def generate(**changes) -> Generate:
    return Generate(**{**SAMPLING, **changes})


def sampled(folder, dpm, sampling_runtime=None, **changes):
    """The images of a run in `folder`."""
    folder.mkdir(exist_ok=True)
    generate(**changes).run(Job(folder, {"dpm": dpm}, sampling_runtime or runtime()))
    return load(folder)


def shard_bytes(folder):
    return {shard: shard_path(folder, shard).read_bytes() for shard in SHARDS}


def written(folder):
    """What tells whether a shard was written again."""
    paths = (folder / "shards").glob("*.npy")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def assert_same_images(one, two):
    """To one gray level, and nearly all to the bit."""
    difference = np.abs(one.astype(int) - two)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99


# which images


@pytest.mark.parametrize("dpm", ["epsilon", "v_prediction", "sample"], indirect=True)
@pytest.mark.parametrize(
    ("eta", "spacing"), [(0.0, "leading"), (0.0, "trailing"), (1.0, "leading")]
)
def test_images_are_those_of_diffusers_from_the_same_noise(tmp_path, dpm, eta, spacing):
    images = sampled(tmp_path, dpm, eta=eta, timestep_spacing=spacing, num_images=20)
    unet, schedule = load_dpm(dpm).values()
    ddim = DDIMScheduler.from_config(schedule.config, timestep_spacing=spacing)
    ddim.set_timesteps(5)
    noise = image_noise(3, "generate", range(20), (1, 8, 8))
    x_t = noise()
    with torch.no_grad():
        for t in ddim.timesteps:
            z = noise() if eta else None
            x_t = ddim.step(unet(x_t, t).sample, t, x_t, eta, True, None, z).prev_sample
    assert_same_images(images, to_uint8(x_t).numpy())
    assert images.std(0).mean() > 5, "or any order of images would do"


def test_dpm_solver_s_images_are_those_of_the_function(tmp_path, dpm):
    images = sampled(tmp_path, dpm, sampler="dpm_solver_pp", num_images=20)
    unet, schedule = load_dpm(dpm).values()
    alphas_cumprod = schedule.alphas_cumprod
    eps_fn = clip_x_0(eps_of(unet, "epsilon", alphas_cumprod), alphas_cumprod)
    noise = image_noise(3, "generate", range(20), (1, 8, 8))
    x_0 = dpm_solver_pp(eps_fn, noise(), sampling_timesteps(20, 5, "leading"), alphas_cumprod)
    assert_same_images(images, to_uint8(x_0).numpy())


@pytest.mark.parametrize("dpm", ["epsilon", "v_prediction"], indirect=True)
def test_refined_images_are_the_saved_plain_ones_moved_toward_a_mode(tmp_path, dpm):
    images = sampled(tmp_path, dpm, refine=FixedPoint(t=4, steps=3), num_images=20)
    unet, schedule = load_dpm(dpm).values()
    alphas_cumprod, kind = schedule.alphas_cumprod, schedule.config["prediction_type"]
    eps_fn = clip_x_0(eps_of(unet, kind, alphas_cumprod), alphas_cumprod)
    noise = image_noise(3, "generate", range(20), (1, 8, 8))
    x_0 = ddim(eps_fn, noise(), sampling_timesteps(20, 5, "leading"), alphas_cumprod)
    saved = to_model(to_uint8(x_0))  # refining what was saved gives the same
    moved = seek_mode(eps_fn, saved, 4, 3, alphas_cumprod)
    assert_same_images(images, to_uint8(moved).numpy())
    assert np.abs(images.astype(int) - to_uint8(x_0).numpy()).mean() > 1, "or nothing was moved"


def test_refinement_is_counted_and_what_is_not_refined_keeps_its_key(tmp_path, dpm):
    folder = tmp_path / "generate"
    refined = generate(refine=FixedPoint(t=4, steps=3), num_images=20)
    folder.mkdir()
    assert refined.run(Job(folder, {"dpm": dpm}, runtime()))["unet_forwards"] == 20 * (5 + 3)
    plain = generate()
    assert "refine" not in plain.key_settings(asdict(plain))
    own = {"name": "fixed_point", "t": 4, "steps": 3, "settle": None}
    assert refined.key_settings(asdict(refined))["refine"] == own


def test_cyclic_refinement_adds_each_image_s_own_noise_at_every_step(tmp_path, dpm):
    cyclic = Cyclic(t=4, steps=3, noise=0.6)
    images = sampled(tmp_path / "cyclic", dpm, num_images=20, refine=cyclic)
    plain = to_model(sampled(tmp_path / "plain", dpm, num_images=20))
    unet, schedule = load_dpm(dpm).values()
    ab = schedule.alphas_cumprod
    eps_fn = clip_x_0(eps_of(unet, "epsilon", ab), ab)
    noise_fn = image_noise(3, "refine", range(20), (1, 8, 8))
    for _ in range(3):  # noised, then denoised in one step
        x_t = ab[4] ** 0.5 * plain + 0.6 * (1 - ab[4]) ** 0.5 * noise_fn()
        with torch.no_grad():
            plain = ddim(eps_fn, x_t, [4], ab)
    assert_same_images(images, to_uint8(plain).numpy())
    fixed = sampled(tmp_path / "fixed", dpm, num_images=20, refine=FixedPoint(t=4, steps=3))
    assert np.abs(images.astype(int) - fixed).mean() > 1, "or no noise was added"


def test_the_last_iterates_of_each_level_are_candidates_of_their_start(tmp_path, dpm):
    union = Union(levels=[6, 3], steps=3, kept=2)
    images = sampled(tmp_path / "union", dpm, num_images=20, refine=union)
    assert images.shape == (20 * 4, 8, 8, 1)
    for place, (t, steps) in enumerate([(6, 2), (6, 3), (3, 2), (3, 3)]):
        alone = FixedPoint(t=t, steps=steps)
        expected = sampled(tmp_path / f"{place}", dpm, num_images=20, refine=alone)
        assert_same_images(images[place::4], expected)


def test_relaxation_keeps_the_first_result_and_leads_the_next_step_further(tmp_path, dpm):
    def relaxed(relaxation):
        refine = Relaxed(t=6, steps=2, kept=2, relaxation=relaxation)
        return sampled(tmp_path / f"{relaxation}", dpm, num_images=20, refine=refine)

    plain, further = relaxed(1.0), relaxed(1.5)
    union = Union(levels=[6], steps=2, kept=2)
    expected = sampled(tmp_path / "union", dpm, num_images=20, refine=union)
    np.testing.assert_array_equal(plain, expected)
    np.testing.assert_array_equal(further[::2], plain[::2])
    assert (further[1::2] != plain[1::2]).any()


@pytest.mark.parametrize("relaxation", [0.5, 2.0])
def test_a_relaxation_that_does_not_lead_to_fixed_points_is_refused(relaxation):
    with pytest.raises(ValueError, match=r"extract\.refine\.relaxation must be in \[1, 2\), got"):
        Relaxed(relaxation=relaxation).check("extract.refine")


def test_a_resumed_union_equals_an_uninterrupted_one_and_counts_its_evaluations(tmp_path, dpm):
    settings = {"refine": Union(levels=[6, 3], steps=3, kept=2)}
    folder, job = tmp_path / "a", Job(tmp_path / "a", {"dpm": dpm}, runtime())
    expected = sampled(folder, dpm, **settings)
    shard_path(folder, 1).unlink()
    attack = generate(**settings)
    spent = attack.run(job)
    assert spent["unet_forwards"] == 50 * (5 + 2 * 3)
    assert spent["candidates"] == 4
    np.testing.assert_array_equal(load(folder), expected)


def test_images_that_settle_cost_only_the_steps_that_they_took(tmp_path, dpm):
    plain = to_model(sampled(tmp_path / "plain", dpm, num_images=20))
    one = to_model(sampled(tmp_path / "one", dpm, num_images=20, refine=FixedPoint(t=4, steps=1)))
    usual = float((one - plain).flatten(1).square().mean(1).sqrt().median())
    settles = FixedPoint(t=4, steps=6, settle=usual)  # so that half of them leave at once
    folder = tmp_path / "a"
    images = sampled(folder, dpm, num_images=20, refine=settles)
    steps = load_steps(folder)
    assert 1 <= steps.min() < steps.max() <= 6, "or all leave at once"
    spent = generate(num_images=20, refine=settles).run(Job(folder, {"dpm": dpm}, runtime()))
    assert spent["unet_forwards"] == 20 * 5 + steps.sum()
    assert spent["evaluations_saved"] == 20 * 6 - steps.sum()
    batches = runtime(sampling_batch_size=3)
    again = sampled(tmp_path / "b", dpm, batches, num_images=20, refine=settles)
    assert_same_images(again, images)
    np.testing.assert_array_equal(load_steps(tmp_path / "b"), steps)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refine": FixedPoint(steps=0)}, "generate.refine.steps must be >= 1, got 0"),
        ({"refine": FixedPoint(t=-1)}, "generate.refine.t must be >= 0, got -1"),
        ({"refine": Cyclic(noise=1.5)}, r"generate.refine.noise must be in \[0, 1\], got 1.5"),
        (
            {"refine": Cyclic(t=4, denoising_steps=5)},
            "generate.refine.denoising_steps must be <= generate.refine.t = 4, .* got 5",
        ),
        (
            {"refine": Annealed(levels=[4, 5])},
            r"generate.refine.levels must be timesteps that never rise, got \[4, 5\]",
        ),
        (
            {"refine": Union(levels=[4, 2.5])},
            r"generate.refine.levels must be one or more timesteps >= 0, got \[4, 2.5\]",
        ),
        (
            {"refine": Union(levels=[4, 4])},
            r"generate.refine.levels must be different timesteps, got \[4, 4\]",
        ),
        (
            {"refine": Union(levels=[4], steps=2, kept=3)},
            "generate.refine.kept must be <= generate.refine.steps = 2, got 3",
        ),
        (
            {"refine": FixedPoint(t=20)},
            "the timesteps of generate.refine must be < .* = 20, got 20",
        ),
    ],
)
def test_a_refinement_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        generate(**changes).check({"dpm": TrainDPM(**SETTINGS)}, runtime())


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_images_do_not_depend_on_the_batch_size(tmp_path, dpm, eta, batch_size):
    """With eta = 1 neither: the noise of every step is each image's own."""
    expected = sampled(tmp_path / "one", dpm, eta=eta)
    other = runtime(sampling_batch_size=batch_size)
    assert_same_images(sampled(tmp_path / "two", dpm, other, eta=eta), expected)


def test_images_do_not_depend_on_their_number_or_on_the_shards(tmp_path, dpm):
    expected = sampled(tmp_path / "one", dpm)
    fewer = sampled(tmp_path / "two", dpm, num_images=11, shard_size=4)
    assert_same_images(fewer, expected[:11])


def test_another_seed_gives_other_images(tmp_path, dpm):
    one, two = sampled(tmp_path / "one", dpm), sampled(tmp_path / "two", dpm, seed=4)
    assert (one != two).mean() > 0.5


def test_half_precision_gives_nearly_the_same_images(tmp_path, dpm):
    one = sampled(tmp_path / "one", dpm).astype(int)
    two = sampled(tmp_path / "two", dpm, precision="bf16-mixed")
    assert 0 < np.abs(one - two).mean() < 5


@pytest.mark.slow
def test_two_processes_make_the_same_files_as_one(tmp_path, dpm, capfd):
    sampled(tmp_path / "one", dpm)
    both = runtime(devices=2, num_threads=1, progress_seconds=0)
    sampled(tmp_path / "two", dpm, both)
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")
    # Of two shards a process, so two of the first one's batches; the other's count as done.
    lines = (tmp_path / "two/log.txt").read_text().splitlines()
    assert [line.split(" image ")[1].split()[0] for line in lines] == ["32/50", "50/50"]
    assert capfd.readouterr().err.count(" image 50/50 (100 %)") == 1


def test_a_run_says_what_it_spent_and_shows_some(tmp_path, dpm):
    summary = generate().run(Job(tmp_path, {"dpm": dpm}, runtime()))
    assert summary == {"num_images": 50, "unet_forwards": 250, "surrogate_gradients": 0}
    images = load(tmp_path)
    assert images.shape == (50, 8, 8, 1)
    assert images.dtype == np.uint8
    assert sorted(p.name for p in tmp_path.iterdir()) == ["preview.png", "shards"]


# guidance


class Direction(torch.nn.Module):
    """A surrogate that draws label 1 to white and label 0 to black, and counts its gradients."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def grad_log_prob(self, x_t, t, y):
        self.seen.append(int(t[0]))
        return (2.0 * y - 1)[:, None, None, None].expand_as(x_t)


def guided(folder, dpm, guidance, targets=None, surrogate=None, **changes):
    folder.mkdir(exist_ok=True)
    stage = generate(**changes)
    spent = stage.sample(
        Job(folder, {"dpm": dpm}, runtime()), surrogate or Direction(), guidance, targets
    )
    return load(folder), spent


STRONG = Guidance(guidance_scale=3.0, t_min=0, t_max=None)


def test_every_image_is_guided_to_its_own_target(tmp_path, dpm):
    plain = sampled(tmp_path / "plain", dpm).mean((1, 2, 3))
    targets = np.random.default_rng(0).integers(0, 2, 50)
    images, _ = guided(tmp_path / "guided", dpm, STRONG, targets)
    moved = images.mean((1, 2, 3)) - plain
    assert ((moved > 0) == (targets == 1)).all()


def test_targets_stay_with_their_images_where_a_run_goes_on(tmp_path, dpm):
    targets = np.random.default_rng(0).integers(0, 2, 50)
    expected, _ = guided(tmp_path / "whole", dpm, STRONG, targets)
    guided(tmp_path / "broken", dpm, STRONG, targets)
    shard_path(tmp_path / "broken", 1).unlink()
    images, _ = guided(tmp_path / "broken", dpm, STRONG, targets)
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize("guidance", [None, Guidance(guidance_scale=0.0, t_min=0, t_max=None)])
def test_without_guidance_or_at_scale_0_images_are_plain(tmp_path, dpm, guidance):
    surrogate = Direction()
    images, spent = guided(tmp_path / "guided", dpm, guidance, surrogate=surrogate)
    np.testing.assert_array_equal(images, sampled(tmp_path / "plain", dpm))
    assert spent["surrogate_gradients"] == len(surrogate.seen) == 0


@pytest.mark.parametrize(
    ("t_min", "t_max", "guided_at"),
    [(0, None, [16, 12, 8, 4, 0]), (4, 12, [12, 8, 4]), (5, 11, [8]), (17, None, [])],
)
def test_the_surrogate_is_asked_within_its_interval_and_that_is_what_is_counted(
    tmp_path, dpm, t_min, t_max, guided_at
):
    surrogate, guidance = Direction(), Guidance(guidance_scale=1.0, t_min=t_min, t_max=t_max)
    _, spent = guided(tmp_path, dpm, guidance, surrogate=surrogate, num_images=16)
    assert surrogate.seen == guided_at
    assert spent == {
        "num_images": 16,
        "unet_forwards": 16 * 5,
        "surrogate_gradients": 16 * len(guided_at),
    }


# what is not finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "changes", [{}, {"sampler": "dpm_solver_pp"}, {"refine": FixedPoint(t=0, steps=2)}]
)
def test_a_network_that_is_not_finite_is_an_error_and_no_black_image(
    tmp_path, dpm, monkeypatch, value, changes
):
    def of_weights(folder, *settings, **by_class):
        denoiser = load_denoiser(folder, *settings, **by_class)
        denoiser.unet.conv_out.bias.data[0] = value
        return denoiser

    monkeypatch.setattr("sidepipe.stages.generate.stage.load_denoiser", of_weights)
    message = r"generate: the model's prediction is not finite at t = 16, in 16 of 16 images of a"
    with pytest.raises(RuntimeError, match=message):
        sampled(tmp_path / "out", dpm, **changes)
    assert not list((tmp_path / "out").rglob("*.npy"))


def test_a_gradient_that_is_not_finite_is_told_from_the_model_s_prediction(tmp_path, dpm):
    class Broken(Direction):
        def grad_log_prob(self, x_t, t, y):
            gradient = super().grad_log_prob(x_t, t, y)
            return torch.where(t[0] == 8, gradient.log(), gradient)  # nan for label 0

    targets = np.ones(50, np.int64)
    targets[[3, 20]] = 0
    message = r"generate: the guided prediction is not finite at t = 8, in 1 of 16 .*\(images 3\)"
    with pytest.raises(RuntimeError, match=message):
        guided(tmp_path, dpm, STRONG, targets, Broken())


# batches


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [(16, [16, 16, 16, 2]), (15, [8] * 6 + [2]), (5, [4] * 12 + [2]), (None, [16, 16, 16, 2])],
)
def test_shards_are_cut_into_equal_batches(tmp_path, dpm, monkeypatch, batch_size, sizes):
    predict_step, seen = ImageSampler.predict_step, []

    def watching(self, batch):
        seen.append(len(batch["indices"]))
        return predict_step(self, batch)

    monkeypatch.setattr(ImageSampler, "predict_step", watching)
    sampled(tmp_path, dpm, runtime(sampling_batch_size=batch_size))
    assert seen == sizes


def test_an_error_of_writing_ends_the_run_and_whole_shards_stay(tmp_path, dpm, monkeypatch):
    write_shard = shards.write_shard

    def failing(folder, shard, images):
        if shard == 2:
            raise OSError("the disk is full")
        write_shard(folder, shard, images)

    monkeypatch.setattr(shards, "write_shard", failing)
    with pytest.raises(OSError, match="the disk is full"):
        sampled(tmp_path / "broken", dpm)
    monkeypatch.undo()
    assert {"000000.npy", "000001.npy"} <= written(tmp_path / "broken").keys()
    images = sampled(tmp_path / "broken", dpm)
    np.testing.assert_array_equal(images, sampled(tmp_path / "whole", dpm))


# going on


@pytest.mark.parametrize("gone", [[0], [1, 3], [0, 1, 2], [3]], ids=str)
def test_missing_shards_are_made_as_they_were_and_the_others_left_alone(tmp_path, dpm, gone):
    sampled(tmp_path, dpm, eta=1.0)
    expected = shard_bytes(tmp_path)
    for shard in gone:
        shard_path(tmp_path, shard).unlink()
    left = written(tmp_path)
    sampled(tmp_path, dpm, eta=1.0)
    assert shard_bytes(tmp_path) == expected
    assert left.items() <= written(tmp_path).items()


def test_a_run_that_broke_off_within_a_shard_makes_that_shard_anew(tmp_path, dpm, monkeypatch):
    sampled(tmp_path / "whole", dpm, runtime(sampling_batch_size=5))
    predict_step, calls = ImageSampler.predict_step, []

    def breaking(self, batch):
        calls.append(batch["shard"])
        if calls.count(1) == 3:
            raise KeyError("the machine broke down")
        return predict_step(self, batch)

    monkeypatch.setattr(ImageSampler, "predict_step", breaking)
    with pytest.raises(KeyError, match="broke down"):
        sampled(tmp_path / "broken", dpm, runtime(sampling_batch_size=5))
    assert [p.name for p in (tmp_path / "broken/shards").iterdir()] == ["000000.npy"]
    monkeypatch.undo()
    sampled(tmp_path / "broken", dpm, runtime(sampling_batch_size=5))
    assert shard_bytes(tmp_path / "broken") == shard_bytes(tmp_path / "whole")


def test_what_a_killed_process_left_half_written_does_no_harm(tmp_path, dpm):
    (tmp_path / "broken/shards").mkdir(parents=True)
    left = tmp_path / "broken/shards/000001.99999.tmp"
    left.write_bytes(b"\x93NUMPY half a file")
    images = sampled(tmp_path / "broken", dpm)
    np.testing.assert_array_equal(images, sampled(tmp_path / "whole", dpm))


@pytest.mark.parametrize("kept", [3, 0])
def test_a_shard_of_an_unfinished_run_that_lacks_images_is_sampled_again(tmp_path, dpm, kept):
    """Else a resumed run would count it as whole, and put a manifest over it."""
    expected = sampled(tmp_path, dpm)
    path = shard_path(tmp_path, 1)
    np.save(path, np.load(path)[:kept])
    np.testing.assert_array_equal(sampled(tmp_path, dpm), expected)


def test_a_finished_run_samples_nothing_again(tmp_path, dpm, monkeypatch):
    expected = generate().run(Job(tmp_path, {"dpm": dpm}, runtime()))
    monkeypatch.setattr(ImageSampler, "predict_step", lambda *args: pytest.fail("sampled again"))
    assert generate().run(Job(tmp_path, {"dpm": dpm}, runtime())) == expected


KILLED = """
import json, sys, time
from pathlib import Path

from sidepipe.stages.generate.stage import Generate
from sidepipe.engine.image_sampler import ImageSampler
from sidepipe.engine.stage import Job, Runtime

predict_step = ImageSampler.predict_step

def slow(self, batch):
    time.sleep(0.2)
    return predict_step(self, batch)

ImageSampler.predict_step = slow
settings, folder, dpm = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
runtime = Runtime(accelerator="cpu", sampling_batch_size=8)
Generate(**settings).run(Job(folder, {"dpm": dpm}, runtime))
"""


@pytest.mark.slow
def test_a_run_killed_by_sigkill_is_completed_to_the_same_bytes(tmp_path, dpm):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    broken.mkdir()
    settings = json.dumps({**SAMPLING, "eta": 1.0})
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, settings, str(broken), str(dpm)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not shard_path(broken, 1).exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = written(broken)
    assert 2 <= len(finished) < 4
    eight = runtime(sampling_batch_size=8)
    sampled(whole, dpm, eight, eta=1.0)
    sampled(broken, dpm, eight, eta=1.0)
    assert shard_bytes(broken) == shard_bytes(whole)
    assert finished.items() <= written(broken).items()


# refusals


def test_a_disk_too_full_is_refused_before_anything_is_sampled(tmp_path, dpm, monkeypatch):
    sampled(tmp_path, dpm)
    shard_path(tmp_path, 1).unlink()
    monkeypatch.setattr(ImageSampler, "predict_step", lambda *args: pytest.fail("sampled"))
    # 16 images of 64 bytes are missing, and a tenth more is asked for.
    for free in (0, 1126):
        usage = shutil._ntuple_diskusage(10_000, 10_000 - free, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        with pytest.raises(OSError, match=r"the disk of .* must have 0\.000 GB free"):
            sampled(tmp_path, dpm)
    monkeypatch.undo()
    usage = shutil._ntuple_diskusage(10_000, 8873, 1127)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    sampled(tmp_path, dpm)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("num_images", 0, ">= 1"),
        ("num_inference_steps", 0, ">= 1"),
        ("shard_size", 0, ">= 1"),
        ("eta", -0.1, r"in \[0, 1\]"),
        ("eta", 1.1, r"in \[0, 1\]"),
        ("seed", -1, r"in \[0, 2\*\*32\)"),
        ("seed", 2**32, r"in \[0, 2\*\*32\)"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name, value, rule):
    with pytest.raises(ValueError, match=rf"^generate\.{name} must be {rule}, got {value}$"):
        generate(**{name: value})


def test_noise_along_the_way_is_refused_where_the_solver_knows_none():
    with pytest.raises(ValueError, match=r"generate\.eta must be 0 for dpm_solver_pp, got 0\.5"):
        generate(sampler="dpm_solver_pp", eta=0.5)


def test_more_steps_than_the_model_has_are_refused():
    upstream = {"data": DIGITS, "dpm": TrainDPM(**SETTINGS)}
    generate(num_inference_steps=20).check(upstream, runtime())
    rule = r"generate\.num_inference_steps must be <= diffusion\.num_train_timesteps = 20, got 21"
    with pytest.raises(ValueError, match=rule):
        generate(num_inference_steps=21).check(upstream, runtime())


@pytest.mark.parametrize(
    "changes",
    [
        {"timestep_spacing": "trailing"},
        {"refine": FixedPoint(t=19, steps=1)},
        {"num_inference_steps": 19},  # leading timesteps 1 to 19, by the offset
    ],
)
def test_eps_of_noise_alone_is_refused_before_the_model_is_trained(changes):
    def check(prediction_type):
        ends_in_noise = {"rescale_betas_zero_snr": True, "prediction_type": prediction_type}
        ends_in_noise["steps_offset"] = 1
        dpm = TrainDPM(**{**SETTINGS, "noise_schedule": {**SCHEDULE, **ends_in_noise}})
        checked(generate(**changes), {"data": DIGITS, "dpm": dpm}, runtime())

    check("v_prediction")
    with pytest.raises(ValueError, match=r"got 'epsilon' at t = 19, .*; remedy: timestep_spacing"):
        check("epsilon")


@pytest.mark.parametrize("dpm", ["v_prediction"], indirect=True)
@pytest.mark.parametrize("steps", [1, 5])
def test_a_model_of_zero_terminal_snr_gives_the_images_of_diffusers(tmp_path, dpm, steps):
    """With one trailing step the image is the network's own x_0 of pure noise."""
    folder = tmp_path / "dpm"
    shutil.copytree(dpm / "model", folder / "model")
    config = folder / "model" / "scheduler" / "scheduler_config.json"
    described = json.loads(config.read_text()) | {"rescale_betas_zero_snr": True}
    config.write_text(json.dumps(described))
    images = sampled(
        tmp_path / "out", folder, timestep_spacing="trailing", num_inference_steps=steps
    )
    unet, schedule = load_dpm(folder).values()
    ddim = DDIMScheduler.from_config(schedule.config, timestep_spacing="trailing")
    ddim.set_timesteps(steps)
    x_t = image_noise(3, "generate", range(50), (1, 8, 8))()
    with torch.no_grad():
        for t in ddim.timesteps:
            x_t = ddim.step(unet(x_t, t).sample, t, x_t, 0.0, True).prev_sample
    assert_same_images(images, to_uint8(x_t).numpy())
    assert images.std() > 20, "or the first step was lost"


@pytest.mark.parametrize(
    ("guidance_scale", "t_min", "t_max", "count"),
    [(0.0, 0, None, 0), (1.0, 0, None, 10), (1.0, 0, 0, 1), (1.0, 100, 300, 3), (1, 101, 299, 1)],
)
def test_guided_are_the_timesteps_within_both_ends(guidance_scale, t_min, t_max, count):
    guidance = Guidance(guidance_scale=guidance_scale, t_min=t_min, t_max=t_max)
    assert len(guidance.within(sampling_timesteps(1000, 10, "leading"))) == count
