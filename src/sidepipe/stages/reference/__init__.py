"""Stage `reference`: the real images with which all attacks are compared, encoded once."""
