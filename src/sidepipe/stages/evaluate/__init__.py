"""Stage `evaluate`: hits on training images, compared with hits on held-out images."""
