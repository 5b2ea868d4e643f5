"""Stage 3: synthetic images, plain samples of the model under attack."""
