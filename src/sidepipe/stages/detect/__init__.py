"""Stage `detect`: which prompts or labels make a model replay training images."""
