"""Which recipe and which training a `task` means."""

from collections.abc import Sequence
from pathlib import Path

from transformers import Trainer

from hf_vlm.training import image_classification, image_tokenization, llava, trocr
from hf_vlm.training.image_recipe import ImageRecipe
from hf_vlm.training.llava_recipe import LlavaRecipe
from hf_vlm.training.recipe import Recipe, TrOCRRecipe
from hf_vlm.training.recipe_files import listed, read_sections
from hf_vlm.training.tokenizer_recipe import TokenizerRecipe

RECIPES: dict[str, type[Recipe]] = {
    task: recipe for recipe in (TrOCRRecipe, ImageRecipe, TokenizerRecipe, LlavaRecipe) for task in recipe.tasks
}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, of the class that its `task` wants; without one it is TrOCR's. See `Recipe.load`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such task, or a key or a value is not understood.
    """
    sections = read_sections(path, overrides)
    task = sections.get("task", TrOCRRecipe.tasks[0])
    if task not in RECIPES:
        raise ValueError(f"`task` must be one of {listed(RECIPES)}, got {task!r}. Correct it in the recipe.")
    return RECIPES[task].parse(sections)


def build_trainer(recipe: Recipe) -> Trainer:
    """The trainer of a recipe, everything loaded and checked, nothing trained.

    Raises:
        ValueError: if recipe, model and data do not fit each other.
    """
    if isinstance(recipe, ImageRecipe):
        return image_classification.build_trainer(recipe)
    if isinstance(recipe, TokenizerRecipe):
        return image_tokenization.build_trainer(recipe)
    if isinstance(recipe, LlavaRecipe):
        return llava.build_trainer(recipe)
    assert isinstance(recipe, TrOCRRecipe)
    return trocr.build_trainer(recipe)


def train(recipe: Recipe, resume: bool = True) -> Trainer:
    """The trainer after the run that a recipe asks for.

    Args:
        recipe: what to train.
        resume: go on from the last complete checkpoint in the output folder, if there is one.

    Raises:
        ValueError: if recipe, model and data do not fit each other, before any training.
    """
    if isinstance(recipe, ImageRecipe):
        return image_classification.train(recipe, resume)
    if isinstance(recipe, TokenizerRecipe):
        return image_tokenization.train(recipe, resume)
    if isinstance(recipe, LlavaRecipe):
        return llava.train(recipe, resume)
    assert isinstance(recipe, TrOCRRecipe)
    return trocr.train(recipe, resume)
