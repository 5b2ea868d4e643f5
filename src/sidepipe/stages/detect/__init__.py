"""Stage `detect`: which prompts make a model replay training images, told by the model alone."""
