"""Measuring: what is asked of a model, and one definition of each score."""
