"""The content of runs of finished artifacts, and the W&B workspace that shows it."""
