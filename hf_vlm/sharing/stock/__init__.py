"""Models that leave for transformers: one of our folders as a folder of its own classes of the same mathematics."""
