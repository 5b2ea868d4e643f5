"""Stage 7, beside the attack: a copy descriptor, where SSCD's weights cannot be downloaded."""
