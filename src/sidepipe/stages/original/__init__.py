"""Stage 4, beside the synthetic images: real ones that the attacker has, with their own labels."""
