"""Stage `autoencoder`: the codes that a latent model is trained on."""
