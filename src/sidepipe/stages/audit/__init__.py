"""Stage `audit`: the training images that a model returns to, for the owner of the images."""
