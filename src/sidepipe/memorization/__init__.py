"""Measures of memorization: hits, excess, bands, different images. Arrays in, numbers out."""
