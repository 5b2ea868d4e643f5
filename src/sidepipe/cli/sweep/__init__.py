"""Sweeps: a grid of configs whose artifacts are shared, made on Slurm or here, at any time told."""
