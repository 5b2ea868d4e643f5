"""Pure tensor maths of diffusion: noise schedule, sampler, guidance. No files, no settings.

Symbols as in DDPM and DDIM: `x_t = sqrt(ab_t) x_0 + sqrt(1 - ab_t) eps`, `ab_t` is
`alphas_cumprod[t]`, and t = 0 has the least noise.
"""
