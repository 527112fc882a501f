"""Swin transformer: Liu et al. 2021, https://arxiv.org/abs/2103.14030."""
