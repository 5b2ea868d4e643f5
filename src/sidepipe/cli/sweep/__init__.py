"""Sweeps: a grid of configs that share artifacts, run on Slurm or on this machine."""
