"""The fixtures of `tests/tiny_lines.py`, for scripts that train."""

from tests.tiny_lines import lines_folder, recipe_sections

__all__ = ["lines_folder", "recipe_sections"]
