"""Recipes: what is understood, and how what is not understood is refused."""

import pytest
import yaml

from hf_vlm import LlavaVisionLanguageConfig
from hf_vlm.training.image_recipe import ImageRecipe
from hf_vlm.training.recipe import TrOCRRecipe, build_config
from hf_vlm.training.recipe_files import RECIPE_FOLDER
from hf_vlm.training.tasks import build_trainer, load_recipe, train

MINIMAL = {
    "model": {"pretrained": "FOLDER"},
    "data": {"train": [{"path": "lines"}]},
    "training": {"output_dir": "out", "max_steps": 3},
}


@pytest.fixture
def recipe_file(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    return file


def test_recipe_file_fills_in_defaults(recipe_file):
    recipe = TrOCRRecipe.load(recipe_file)
    assert recipe.model.pretrained == "FOLDER"
    assert recipe.data.train[0].path == "lines"
    assert recipe.data.train[0].weight == 1.0
    assert recipe.generation == {}


def test_override_replaces_nested_values_and_list_entries(recipe_file):
    recipe = TrOCRRecipe.load(
        recipe_file,
        [
            "training.learning_rate=3e-4",
            "data.train.0.weight=2",
            "data.train.0.where={kind: [a, b]}",
            "data.validation.printed.path=p",
            "generation.num_beams=4",
        ],
    )
    assert recipe.training["learning_rate"] == pytest.approx(3e-4)  # YAML 1.1 would make the text "3e-4" of it
    assert recipe.data.train[0].weight == 2
    assert recipe.data.train[0].where == {"kind": ["a", "b"]}
    assert recipe.data.validation["printed"].path == "p"
    assert recipe.generation == {"num_beams": 4}


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("training.learning_rat=1", "`training.learning_rate`"),
        ("training.global_batch_sze=8", "`training.global_batch_size`"),
        ("data.trian=1", "`data.train`"),
        ("data.train.0.weigth=1", "`data.train.0.weight`"),
        ("learning_rate=1", "`training.learning_rate`"),
        ("modle.pretrained=x", "`model`"),
        ("generation.num_beems=2", "`generation.num_beams`"),
    ],
)
def test_unknown_key_is_refused_with_the_nearest_known_one(recipe_file, override, suggestion):
    with pytest.raises(ValueError, match=f"Did you mean {suggestion}"):
        TrOCRRecipe.load(recipe_file, [override])


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.max_steps=many", "training.max_steps"),
        ("training.max_steps=2.5", "training.max_steps"),
        ("training.global_batch_size=2.5", "training.global_batch_size"),
        ("training.global_batch_size=0", "training.global_batch_size"),
        ("training.bf16=1", "training.bf16"),
        ("data.train.0.weight=heavy", "data.train.0.weight"),
        ("data.train.0.augment=3", "data.train.0.augment"),
        ("data.short_first=1.5", "data.short_first"),
        ("data.train=lines", "data.train"),
        ("data=lines", "data"),
    ],
)
def test_value_of_the_wrong_type_names_its_key(recipe_file, override, key):
    with pytest.raises(ValueError, match=f"`{key}` must be"):
        TrOCRRecipe.load(recipe_file, [override])


@pytest.mark.parametrize("override", ["training.save_steps=9", "training.learning_rate=1", "training.warmup_steps=0.1"])
def test_whole_number_is_a_fine_float(recipe_file, override):
    TrOCRRecipe.load(recipe_file, [override])


@pytest.mark.parametrize("override", ["training.max_steps", "=3"])
def test_override_without_key_or_value_is_refused(recipe_file, override):
    with pytest.raises(ValueError, match="`key=value`"):
        TrOCRRecipe.load(recipe_file, [override])


def test_override_of_a_list_entry_that_is_not_there_is_refused(recipe_file):
    with pytest.raises(ValueError, match="A number from 0 to 0"):
        TrOCRRecipe.load(recipe_file, ["data.train.1.weight=2"])


def test_key_given_twice_is_refused_with_its_line(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("training:\n  max_steps: 1\n  max_steps: 2\n")
    with pytest.raises(ValueError, match="line 3.*`max_steps` twice"):
        TrOCRRecipe.load(file)


def test_missing_file_lists_the_shipped_recipes():
    with pytest.raises(FileNotFoundError, match="`trocr-mini-lines`"):
        TrOCRRecipe.load("no-such-recipe")


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"pretrained": "a", "vision": "b", "text": "c"},
        {"vision": "a"},
        {"vision_config": {"model_type": "hf_vlm_vit"}},
        {"vision": "a", "text_config": {"model_type": "hf_vlm_trocr_text"}},
    ],
)
def test_model_wants_exactly_one_origin(recipe_file, model):
    with pytest.raises(ValueError, match="exactly one of the three"):
        TrOCRRecipe.load(recipe_file, [f"model={yaml.safe_dump(model, default_flow_style=True)}"])


def test_recipe_without_output_folder_or_lines_is_refused(recipe_file):
    with pytest.raises(ValueError, match="`training.output_dir`"):
        TrOCRRecipe.load(recipe_file, ["training={max_steps: 1}"])
    with pytest.raises(ValueError, match="lines to learn from"):
        TrOCRRecipe.load(recipe_file, ["data.train=[]"])


def test_config_dict_is_built_and_misspelt_fields_are_refused():
    settings = {"model_type": "hf_vlm_vit", "hidden_size": 32, "image_size": [32, 64]}
    config = build_config(settings, "model.vision_config")
    assert (config.hidden_size, tuple(config.image_size)) == (32, (32, 64))
    with pytest.raises(ValueError, match="Did you mean `model.vision_config.hidden_size`"):
        build_config({"model_type": "hf_vlm_vit", "hiden_size": 32}, "model.vision_config")
    with pytest.raises(ValueError, match="Did you mean `hf_vlm_vit`"):
        build_config({"model_type": "hf_vlm_vitt"}, "model.vision_config")


def test_task_chooses_the_recipe_and_its_absence_means_lines(recipe_file):
    assert type(load_recipe(recipe_file)) is TrOCRRecipe
    assert load_recipe(recipe_file, ["task=ocr"]).to_dict() == TrOCRRecipe.load(recipe_file).to_dict()
    pictures = ["task=masked-image-modeling", "data={folder: pictures}"]
    assert type(load_recipe(recipe_file, pictures)) is ImageRecipe
    with pytest.raises(ValueError, match="`task` must be `ocr` here, got 'masked-image-modeling'"):
        TrOCRRecipe.load(recipe_file, pictures)
    with pytest.raises(ValueError, match="`task` must be one of `ocr`, .*got 'reading'"):
        load_recipe(recipe_file, ["task=reading"])
    with pytest.raises(ValueError, match="got 'visual-chat'. It is called `chat` now"):
        load_recipe(recipe_file, ["task=visual-chat"])
    with pytest.raises(ValueError, match="A known key is wanted in a recipe, got `generation`. It knows"):
        load_recipe(recipe_file, [*pictures, "generation.num_beams=2"])


@pytest.mark.parametrize("file", sorted(RECIPE_FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_recipe_is_understood_and_opens_with_its_facts(file):
    recipe = load_recipe(file)
    header = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for fact in ("paper:", "command:", "cost:", "result:"):
        assert any(fact in line for line in header), fact
    again = load_recipe(file.stem)
    assert again.to_dict() == recipe.to_dict()


def test_folder_of_another_architecture_is_refused_with_recipes_for_it(tmp_path):
    LlavaVisionLanguageConfig(image_token_id=5).save_pretrained(tmp_path)
    recipe = load_recipe("trocr-finetune-lines", [f"model.pretrained={tmp_path}"])
    with pytest.raises(ValueError, match="`trocr`, got a `llava` in .* recipe for it: .*`llava-chat`"):
        build_trainer(recipe)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("llava-chta", "Did you mean `llava-chat`"),
        ("runs/none", "folder of a run .* got `runs/none`, which is not there"),
    ],
)
def test_missing_recipe_is_told_by_what_was_likely_meant(name, told):
    with pytest.raises(FileNotFoundError, match=told):
        load_recipe(name)


def test_required_checkpoint_is_looked_for_before_any_folder_is_made(tmp_path):
    recipe = load_recipe("trocr-finetune-lines", [f"training.output_dir={tmp_path / 'fresh'}"])
    with pytest.raises(FileNotFoundError, match="A checkpoint to go on from is wanted"):
        train(recipe, "required")
    assert not (tmp_path / "fresh").exists()
