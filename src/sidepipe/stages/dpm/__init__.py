"""Stage `dpm`: the diffusion model under attack, trained here or a checkpoint."""
