"""Training: introduces models to data. Recipes, metrics, and the runs that `hf-vlm train` and `hf-vlm evaluate` start."""
