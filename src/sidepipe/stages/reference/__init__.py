"""Stage 7, beside the attack: the real images that all attacks are held against, encoded once."""
