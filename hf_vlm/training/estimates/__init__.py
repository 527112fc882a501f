"""What a run will take, before it runs: memory by engine, arithmetic, hours."""
