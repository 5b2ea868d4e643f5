"""Stage `original`: the attacker's own real images with their labels."""
