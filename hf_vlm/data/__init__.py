"""Examples in, batches out: reading, drawing, mixing and collating; never imports a model."""
