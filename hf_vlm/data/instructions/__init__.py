"""Instruction data from captions and boxes: teachers, what they are asked, and what of it is kept."""
