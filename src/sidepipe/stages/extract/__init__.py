"""Stage 6: extraction, samples guided toward surrogate labels."""
