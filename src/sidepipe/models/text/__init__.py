"""Text-conditional models behind one interface; no settings, no stages.

Symbols as in Wen et al. ("Detecting, Explaining, and Mitigating Memorization in Diffusion Models",
2024): e the embedding of a prompt, e_0 that of the empty one, `D_t = eps(x_t, e) - eps(x_t, e_0)`.
"""
