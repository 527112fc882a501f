"""Which recipe and which training a `task` means."""

from collections.abc import Sequence
from pathlib import Path

from transformers import Trainer

from hf_vlm.parts.checkpoint_files import read_config
from hf_vlm.training import image_classification, image_tokenization, llava, picture_text, trocr
from hf_vlm.training.image_recipe import ImageRecipe
from hf_vlm.training.llava_recipe import LlavaRecipe
from hf_vlm.training.picture_text_recipe import PictureTextRecipe
from hf_vlm.training.recipe import Recipe, TrOCRRecipe
from hf_vlm.training.recipe_files import RECIPE_FOLDER, listed, read_sections
from hf_vlm.training.runs import Resume, find_checkpoint
from hf_vlm.training.tokenizer_recipe import TokenizerRecipe

RECIPE_CLASSES: tuple[type[Recipe], ...] = (TrOCRRecipe, PictureTextRecipe, LlavaRecipe, ImageRecipe, TokenizerRecipe)

RENAMED_TASKS = {"text-recognition": "ocr", "visual-chat": "chat"}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file, of the class that its `task` and `architecture` want; without a task it is TrOCR's `ocr`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there is no such task, the architecture can't do it, or a key or a value is not understood.
    """
    sections = read_sections(path, overrides)
    task = sections.get("task", TrOCRRecipe.tasks[0])
    fitting = [recipe for recipe in RECIPE_CLASSES if task in recipe.tasks]
    if not fitting:
        tasks = dict.fromkeys(name for recipe in RECIPE_CLASSES for name in recipe.tasks)
        renamed = f" It is called `{RENAMED_TASKS[task]}` now." if task in RENAMED_TASKS else ""
        raise ValueError(f"`task` must be one of {listed(tasks)}, got {task!r}.{renamed} Correct it in the recipe.")
    architectures = [name for recipe in fitting for name in recipe.architectures_of(task)]
    if not architectures:
        return fitting[0].parse(sections)
    architecture = sections.get("architecture", architectures[0] if len(architectures) == 1 else None)
    for recipe in fitting:
        if architecture in recipe.architectures_of(task):
            return recipe.parse({**sections, "architecture": architecture})
    others = {
        name: [of for of in recipe.tasks if name in recipe.architectures_of(of)]
        for recipe in RECIPE_CLASSES
        for name in recipe.architectures
    }
    able = f" `{architecture}` does {listed(others[architecture])}." if architecture in others else ""
    raise ValueError(
        f"`architecture` must be {' or '.join(f'`{name}`' for name in architectures)} for the task `{task}`, got "
        f"{architecture!r}.{able} Correct one of them in the recipe."
    )


def check_architecture(recipe: Recipe) -> None:
    """Checks that the folder which a recipe goes on from holds a model of its architecture, before anything is read.

    Raises:
        ValueError: if it holds another of ours; the message names recipes that are for it.
    """
    wanted, name = getattr(recipe, "architecture", None), getattr(recipe.model, "pretrained", None)
    if wanted is None or name is None or not (Path(name) / "config.json").is_file():
        return
    came = str(read_config(name).get("model_type")).removeprefix("hf_vlm_")
    if came == wanted or came not in {other for of in RECIPE_CLASSES for other in of.architectures}:
        return
    shipped = sorted(RECIPE_FOLDER.glob("*.yaml"))
    fitting = [file.stem for file in shipped if getattr(load_recipe(file), "architecture", None) == came]
    raise ValueError(
        f"`model.pretrained` must be a model of the recipe's architecture, `{wanted}`, got a `{came}` in {name}. Name another "
        f"folder, or take a recipe for it: {listed(fitting)}."
    )


def build_trainer(recipe: Recipe) -> Trainer:
    """The trainer of a recipe, everything loaded and checked, nothing trained.

    Raises:
        ValueError: if recipe, model and data do not fit each other.
    """
    check_architecture(recipe)
    if isinstance(recipe, ImageRecipe):
        return image_classification.build_trainer(recipe)
    if isinstance(recipe, TokenizerRecipe):
        return image_tokenization.build_trainer(recipe)
    if isinstance(recipe, LlavaRecipe):
        return llava.build_trainer(recipe)
    if isinstance(recipe, PictureTextRecipe):
        return picture_text.build_trainer(recipe)
    assert isinstance(recipe, TrOCRRecipe)
    return trocr.build_trainer(recipe)


def train(recipe: Recipe, resume: Resume = True) -> Trainer:
    """The trainer after the run that a recipe asks for.

    Args:
        recipe: what to train.
        resume: go on from the last complete checkpoint in the output folder, if there is one, or "required".

    Raises:
        ValueError: if recipe, model and data do not fit each other, before any training.
        FileNotFoundError: if a checkpoint is required and there is none; no folder is made then.
    """
    check_architecture(recipe)
    if resume == "required":
        find_checkpoint(Path(recipe.training["output_dir"]), resume)
    if isinstance(recipe, ImageRecipe):
        return image_classification.train(recipe, resume)
    if isinstance(recipe, TokenizerRecipe):
        return image_tokenization.train(recipe, resume)
    if isinstance(recipe, LlavaRecipe):
        return llava.train(recipe, resume)
    if isinstance(recipe, PictureTextRecipe):
        return picture_text.train(recipe, resume)
    assert isinstance(recipe, TrOCRRecipe)
    return trocr.train(recipe, resume)
