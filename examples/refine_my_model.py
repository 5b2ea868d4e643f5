"""How many of its training images does my model give away? Refine its samples, and count.

Usage: python examples/refine_my_model.py [MODEL TRAIN HELDOUT]

MODEL is a folder of DDPMPipeline.save_pretrained or a hub id, TRAIN and HELDOUT are folders of
images. Without arguments: the model of `make demo`, with the images that it was trained on.
"""

import sys

import sidepipe

path, *folders = sys.argv[1:] or ["outputs/dpm"]
model = sidepipe.load(path)
train, heldout = folders or sidepipe.load_split(path)  # uint8 arrays, or folders of images
timesteps = model.num_train_timesteps
images = model.sample(2_000, seed=0, num_inference_steps=min(50, timesteps))
refined = model.refine(images, t=60 * timesteps // 1000, steps=8)
result = sidepipe.compare(refined, train=train, heldout=heldout)
print(result)
result.report("report.html")
