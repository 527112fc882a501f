"""Building blocks: plain numbers and tensors in, tensors out.

The package's vocabulary of shapes: `batch`; `tokens` (text or picture); `rows`, `columns` (a patch grid); `height`, `width`
(pixels); `channels`; `hidden_size`; `heads`, `head_dim`; `num_codes`, `code_dim`. Pixels are float (batch, channels, height,
width). A mask is True or 1 where something is real and False or 0 where it is padding.
"""
