"""Inference: one file per task of transformers' `pipeline`, and the reading of picture files."""
