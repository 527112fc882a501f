"""Recipes of LLaVA: what is understood, and how contradictions are refused before anything is loaded."""

import pytest
import yaml

from hf_vlm.training.llava_recipe import LlavaRecipe
from hf_vlm.training.tasks import load_recipe

MINIMAL = {
    "task": "chat",
    "model": {"vision": "VISION", "text": "TEXT"},
    "data": {"train": [{"path": "chat"}]},
    "training": {"output_dir": "out", "max_steps": 3},
}
FROM_BASE = ["model={pretrained: FOLDER}"]
LORA = [*FROM_BASE, "parts.train=[projector]", "parts.lora={rank: 4, roles: [language]}"]


@pytest.fixture
def load(tmp_path):
    """`load("key=value", ...)`: the smallest recipe with these changes."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    return lambda *overrides: load_recipe(file, overrides)


def test_task_makes_the_recipe_and_defaults_are_filled_in(load):
    recipe = load()
    assert type(recipe) is LlavaRecipe
    assert recipe.parts.train == ["projector", "language"] and recipe.parts.lora is None
    assert recipe.model.image_aspect_ratio == "pad" and recipe.model.settings == {}
    assert (recipe.data.max_length, recipe.data.max_tokens, recipe.data.grouping) == (2048, None, "none")
    assert recipe.data.bad_pictures == "fail" and recipe.data.features_folder is None


def test_recipe_comes_back_from_what_it_writes(load, tmp_path):
    recipe = load(
        *LORA,
        "data.validation={chat: {path: chat, split: validation, max_rows: 9}}",
        "parts.learning_rates={projector: 1e-3, language: 2e-4}",
        "generation.num_beams=2",
        "training.fsdp=null",
    )
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert recipe.parts.lora.train == ["projector"]


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("data.max_token=9", "`data.max_tokens`"),
        ("data.train.0.imagefolder=x", "`data.train.0.image_folder`"),
        ("data.feature_folder=x", "`data.features_folder`"),
        ("parts.trains=[projector]", "`parts.train`"),
        ("parts.learning_rate={projector: 1}", "`parts.learning_rates`"),
        ("parts.lora={ranks: 4}", "`parts.lora.rank`"),
        ("model.chat_templates=x", "`model.chat_template`"),
        ("part={}", "`parts`"),
        ("max_tokens=9", "`data.max_tokens`"),
        ("generation.num_beem=2", "`generation.num_beams`"),
        ("training.learning_rat=1", "`training.learning_rate`"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(load, override, suggestion):
    with pytest.raises(ValueError, match=f"Did you mean {suggestion}"):
        load(override)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("data.max_length=long", "data.max_length"),
        ("data.grouping=size", "data.grouping"),
        ("data.context=short", "data.context"),
        ("data.bad_pictures=ignore", "data.bad_pictures"),
        ("data.train=chat", "data.train"),
        ("model.image_aspect_ratio=crop", "model.image_aspect_ratio"),
        ("parts.train=projector", "parts.train"),
        ("parts.learning_rates={projector: fast}", "parts.learning_rates.projector"),
        ("parts.lora={rank: 4.5}", "parts.lora.rank"),
        ("training.fsdp=3", "training.fsdp"),
    ],
)
def test_value_of_the_wrong_type_names_its_key(load, override, key):
    with pytest.raises(ValueError, match=f"`{key}` must be"):
        load(override)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model={}"], "`pretrained`, or `vision` with `text`, got none"),
        (["model={vision: a}"], "got `vision`. Give exactly one"),
        (["model.pretrained=a"], "got `pretrained`, `text`, `vision`"),
        ([*FROM_BASE, "model.chat_template=llava_v1"], "`model.chat_template` besides"),
        (["data.train=[]"], "conversations to learn from, got none"),
        (["data.train.0.max_rows=0"], "`max_rows` of `chat` must be 1 or more, got 0"),
        (["data.max_length=1"], "`data.max_length` must be 2 or more, got 1"),
        (["data.max_tokens=2047"], "got 2047 for `data.max_length` 2048"),
        (["data.max_tokens=4096", "data.grouping=modality"], "got 'modality' with `max_tokens`"),
        (["data.features_folder=f", "data.bad_pictures=skip"], "`data.bad_pictures` 'skip'"),
        (["data.features_folder=f", "parts.train=[projector, vision]"], "got one that trains"),
        ([*LORA, "data.features_folder=f", "parts.lora.roles=[vision]"], "got one that trains"),
        (["parts.train=[]"], "wants a part that trains, got none"),
        (["parts.train=[projector, decoder]"], "one of `projector`, `language`, `vision`, got 'decoder'"),
        (["parts.learning_rates={text: 1e-3}"], "one of `projector`, `language`, `vision`, got 'text'"),
        (["parts.learning_rates={vision: 1e-3}"], "got `vision`, which doesn't"),
        ([*LORA, "parts.train=[projector, language]"], "got `language` in `parts.train` and in `parts.lora.roles`"),
        ([*LORA, "parts.train=[vision]"], "got `vision` in `parts.train`. Name it in `parts.lora.roles`"),
        ([*LORA, "parts.lora.rank=0"], "`lora.rank` must be 1 or more, got 0"),
        ([*LORA, "parts.lora.dropout=1"], r"`lora.dropout` must be in \[0, 1\), got 1"),
        ([*LORA, "parts.lora.train=[vision]"], r"got \['vision'\] in `parts.lora.train`"),
        ([*LORA, "training.fsdp=true"], "got `training.fsdp` or `training.deepspeed`"),
        ([*LORA[1:]], "`model.pretrained`, got parts"),
        (["training.label_smoothing_factor=0.1"], "`model.settings.label_smoothing` in its place"),
        (["training={max_steps: 1}"], "`training.output_dir`"),
    ],
)
def test_contradictions_are_refused(load, overrides, told):
    with pytest.raises(ValueError, match=told):
        load(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.max_tokens=2048"],
        ["data.grouping=length"],
        ["data.context=plain", "parts.train=[projector]", "data.features_folder=f"],
        ["parts.train=[projector, language, vision]", "parts.learning_rates={vision: 2e-6}"],
        [*LORA, "parts.learning_rates={language: 2e-4}"],
        [*LORA, "parts.train=[]", "parts.lora.roles=[language, projector]"],
        ["training.fsdp=true", "training.fsdp_config={version: 2, reshard_after_forward: true}"],
        ["training.deepspeed=scripts/distributed/deepspeed-zero3.json"],
    ],
)
def test_settings_that_go_together_are_taken(load, overrides):
    load(*overrides)
