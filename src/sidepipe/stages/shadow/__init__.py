"""Training of a shadow model on samples of the model under attack."""
