"""Parts that every package may import: checked settings, files, images, downloaded weights."""
