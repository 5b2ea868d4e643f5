"""Stage 5: the time-conditioned classifier p(y | x_t, t) of surrogate labels."""
