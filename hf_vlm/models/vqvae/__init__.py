"""VQ-VAE: pictures to a grid of codes and back, by a codebook or by rounding."""
