"""Stage 1: images of any source as one array."""
