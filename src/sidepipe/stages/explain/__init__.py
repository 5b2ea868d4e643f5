"""Which words of a prompt make the model replay an image: the tokens that move D_t most."""
