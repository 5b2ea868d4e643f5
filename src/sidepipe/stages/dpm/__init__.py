"""Stage 2: the diffusion model under attack, trained here or brought along."""
