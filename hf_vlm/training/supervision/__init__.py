"""The watch over a run: progress, bad numbers, signals, full disks and memories, checkpoints that are whole."""
