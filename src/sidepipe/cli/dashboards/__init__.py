"""What runs say of finished artifacts, and the W&B workspace that shows it."""
