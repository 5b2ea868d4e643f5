"""Stage `classifier`: the time-conditioned classifier p(y | x_t, t) of surrogate labels."""
