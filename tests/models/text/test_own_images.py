"""Latents of prompts equal those of StableDiffusionPipeline, from the same initial noise."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from tests.models.text.tiny import tiny_stable_diffusion

from sidepipe.models.text.pipeline import load_model
from sidepipe.models.text.trajectory import prompt_noise, sample_x_0

PROMPTS, STEPS, SCALE = ["abc", "hello world"], 10, 7.5


@pytest.mark.filterwarnings("ignore")  # of diffusers, about old settings of schedulers
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("DDIMScheduler", {}),
        ("DDIMScheduler", {"set_alpha_to_one": True}),
        ("DDIMScheduler", {"steps_offset": 0}),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}),
        ("DDIMScheduler", {"clip_sample": True}),
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("PNDMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ],
)
def test_latents_equal_those_of_the_pipeline_with_diffusers_ddim(tmp_path, kind, settings):
    """`pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)` of its docs."""
    folder = tiny_stable_diffusion(tmp_path)
    path = folder / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    kept = config if kind == "DDIMScheduler" else {k: config[k] for k in config if "beta" in k}
    path.write_text(
        json.dumps({"num_train_timesteps": 100, **kept, **settings, "_class_name": kind})
    )
    model = load_model(folder)
    x_T = prompt_noise(model, 0, [0, 1], 1)
    found = sample_x_0(model, x_T, model.encode(PROMPTS), model.encode([""]), SCALE, STEPS)
    torch.testing.assert_close(found, latents_of(folder, x_T), rtol=0, atol=1e-4)


def test_the_noise_that_the_last_step_keeps_changes_latents(tmp_path):
    folder = tiny_stable_diffusion(tmp_path)
    model = load_model(folder)
    x_T = prompt_noise(model, 0, [0, 1], 1)
    e, e_0 = model.encode(PROMPTS), model.encode([""])
    own = sample_x_0(model, x_T, e, e_0, SCALE, STEPS)
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"set_alpha_to_one": True}))
    other = sample_x_0(load_model(folder), x_T, e, e_0, SCALE, STEPS)
    assert (own - other).abs().max() > 0.01


def latents_of(folder, x_T):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        latents=x_T,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        height=8,
        width=8,
        output_type="latent",
    ).images
