"""Stage 8: how much of the training set came out, against images the model never saw."""
