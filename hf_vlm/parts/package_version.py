"""The version of hf-vlm, where every part of it, and every folder that is exported with its code, can read it."""

__version__ = "0.1.0"
