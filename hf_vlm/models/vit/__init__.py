"""Vision transformer (ViT, DeiT, BEiT): Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929."""
