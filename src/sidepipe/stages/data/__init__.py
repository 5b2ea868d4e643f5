"""Stage `data`: images of any source as one array."""
