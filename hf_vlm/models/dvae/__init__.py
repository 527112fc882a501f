"""Discrete VAE: pictures to a grid of visual words and back, learnt by Gumbel-softmax; DALL-E's tokenizer."""
