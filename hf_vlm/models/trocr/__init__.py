"""TrOCR: a vision encoder and a text decoder joined by cross-attention."""
