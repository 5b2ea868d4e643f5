"""Verdicts on generated images without the training images."""
