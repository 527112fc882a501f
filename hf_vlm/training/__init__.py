"""Training: introduces models to data. Recipes, metrics, and what `hf-vlm train` and `hf-vlm evaluate` run."""
