"""Stage `label`: surrogate labels, clusters of the model's own outputs."""
