"""Variational autoencoder: pictures to continuous latents and back."""
