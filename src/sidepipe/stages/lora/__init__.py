"""Stage `lora`: the model under attack, adapted to surrogate labels by LoRA."""
