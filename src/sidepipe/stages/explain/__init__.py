"""Stage `explain`: the tokens of a prompt that change D_t most."""
