"""Stage `generate`: synthetic images, plain samples of the model under attack."""
