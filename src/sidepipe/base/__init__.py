"""What every part may import: checked settings, whole files, images, downloaded weights."""
