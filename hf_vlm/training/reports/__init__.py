"""The page that `hf-vlm show` makes of a run: what is read of its folder, what its model answers, and the HTML."""
