"""Stage 4: surrogate labels, clusters of the model's own outputs."""
