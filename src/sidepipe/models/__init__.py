"""Checkpoints as models that predict noise: loading, checking, speed."""
