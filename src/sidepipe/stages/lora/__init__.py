"""Stage 6: the model under attack, adapted to surrogate labels by LoRA."""
