"""LLaVA and LLaVA-1.5: a causal language model that reads pictures through a projector."""
