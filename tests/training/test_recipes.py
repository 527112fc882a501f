"""A shipped recipe's own command runs, as `--dry-run`, on data of the shape that it asks for."""

import json
import re
import shlex
from pathlib import Path

import datasets
import pytest
from PIL import Image, ImageFont
from transformers import BertConfig, BertModel, BitImageProcessor, Dinov2Config, Dinov2Model

from hf_vlm import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.cli import main
from hf_vlm.data.lines.character_tokenizer import LATIN_ALPHABET, build_character_tokenizer
from hf_vlm.parts.shipped_models import default_ocr_model
from hf_vlm.training.image_classification import build_trainer as build_picture_trainer
from hf_vlm.training.image_tokenization import build_trainer as build_tokenizer_trainer
from hf_vlm.training.recipe import TrOCRRecipe
from hf_vlm.training.recipe_files import RECIPE_FOLDER
from hf_vlm.training.tasks import load_recipe
from hf_vlm.training.trocr import build_trainer
from tests.tiny_lines import TEXTS, recipe_of, write_lines
from tests.training.tiny_conversations import write_conversations, write_parts
from tests.training.tiny_pictures import write_pictures


def command_of(recipe):
    """The words behind `hf-vlm` in the recipe's header."""
    header = (RECIPE_FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8")
    match = re.search(r"^# command: +hf-vlm (.+)$", header, re.MULTILINE)
    assert match, f"{recipe} has no `# command:` line"
    return shlex.split(match[1])


# A document that the recipes learn from, and one of each that they keep for validation.
DOCUMENTS = ["any", "cu31924087948174", "ehri/EHRI-ET-WL16560044_01", *["any"] * 20]


def write_parquet(folder, texts):
    """A data set in the Hub's form, every row of the kind that the recipes choose."""
    for split in ("train", "validation"):
        pictures = write_lines(folder.parent / f"{folder.name}-{split}", texts)
        rows = {
            "image": [str(pictures / f"line_{index}.png") for index in range(len(texts))],
            "text": texts,
            "kind": ["handwritten-fr"] * len(texts),
            "document": DOCUMENTS[: len(texts)],
        }
        folder.mkdir(exist_ok=True)
        rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        rows.to_parquet(folder / f"{split}.parquet")


@pytest.fixture
def data_folder(tmp_path):
    """What the recipes call DATA, in small, and a font for machines without one."""
    for name in ("ocr_printed", "ocr_typewritten", "ocr_handwritten"):
        write_parquet(tmp_path / name, TEXTS)
    (tmp_path / "sentences.txt").write_text("It was late.\nWe saw the ship go by.\n" * 20, encoding="utf-8")
    (tmp_path / "font.ttf").write_bytes(ImageFont.load_default(20).path.getvalue())
    return tmp_path


def dry_run_on(data_folder, command):
    """Exit code of a recipe's command as a dry run, its DATA and PARTS in `data_folder`."""
    words = [word.replace("DATA", str(data_folder)).replace("PARTS", str(data_folder)) for word in command]
    small = [
        f"training.output_dir={data_folder / 'out'}",
        "training.per_device_train_batch_size=2",
        f"data.synthetic.fonts=[{data_folder / 'font.ttf'}]",
    ]
    return main([*words, "--dry-run", *small])


def test_mini_lines_command_runs(data_folder, capsys):
    assert dry_run_on(data_folder, command_of("trocr-mini-lines")) == 0
    told = capsys.readouterr().out
    assert "encoder.vision_model" in told
    parameters = int(re.search(r"^all +([\d,]+)", told, re.MULTILINE)[1].replace(",", ""))
    assert parameters < 7_500_000
    assert (data_folder / "out" / "dry_run.png").is_file()


def test_dinov2_minilm_command_runs(data_folder, capsys):
    """On random parts of the two families, small."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**shape, image_size=28, patch_size=14)).save_pretrained(data_folder / "dinov2-small")
    processor = BitImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
    processor.save_pretrained(data_folder / "dinov2-small")
    tokenizer = build_character_tokenizer(alphabet=LATIN_ALPHABET)
    config = BertConfig(**shape, intermediate_size=32, vocab_size=len(tokenizer), max_position_embeddings=144)
    BertModel(config).save_pretrained(data_folder / "minilm")
    tokenizer.save_pretrained(data_folder / "minilm")
    assert dry_run_on(data_folder, command_of("trocr-dinov2-minilm")) == 0
    assert "encoder.vision_model" in capsys.readouterr().out


def test_stage2_command_runs(data_folder, capsys, monkeypatch):
    """With the reader that comes with the package in the place of stage 1's."""
    monkeypatch.chdir(data_folder)
    Path("runs").mkdir()
    Path("runs/trocr-dinov2-minilm").symlink_to(default_ocr_model())
    printed = "data.synthetic.kinds={print: 1}"  # the only face there is has no pen
    assert dry_run_on(data_folder, [*command_of("trocr-stage2"), printed]) == 0, capsys.readouterr().err
    assert "encoder.vision_model" in capsys.readouterr().out


def test_finetune_lines_command_runs(tmp_path, capsys, monkeypatch):
    """Where there is no checkout, only data: the model comes with the package."""
    (tmp_path / "scripts").symlink_to(Path(__file__).parents[2] / "scripts")
    monkeypatch.chdir(tmp_path)
    assert main([*command_of("trocr-finetune-lines"), "--dry-run"]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "validation set" in told


@pytest.fixture
def pictures_folder(tmp_path):
    """Ten classes of small pictures, in the Hub's form."""
    for split in ("train", "validation"):
        pictures = write_pictures(tmp_path / "pictures" / split, 2, [f"class {i}" for i in range(10)], size=(32, 32))
        images = sorted(pictures.glob("*/*.png"))
        rows = {"image": [str(file) for file in images], "label": [file.parent.name for file in images]}
        (tmp_path / "data").mkdir(exist_ok=True)
        rows = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).class_encode_column("label")
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    return tmp_path / "data"


def told_by_picture_recipe(command, folder, capsys):
    """What a recipe's command, as a dry run on few pictures at a time, prints."""
    words = [word.replace("DATA", str(folder)) for word in command]
    small = [f"training.output_dir={folder.parent / 'out'}", "training.per_device_train_batch_size=4"]
    assert main([*words, "--dry-run", *small]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "validation set eval: 20 pictures" in told
    parameters = int(re.search(r"^all +([\d,]+)", told, re.MULTILINE)[1].replace(",", ""))
    assert 2_000_000 < parameters < 3_000_000
    return told


def test_vit_image_classification_command_runs(pictures_folder, capsys):
    told = told_by_picture_recipe(command_of("vit-image-classification"), pictures_folder, capsys)
    assert "500 steps of 4 pictures" in told and "vision_model.layers" in told and "class " in told


def test_swin_image_classification_command_runs(pictures_folder, capsys):
    told = told_by_picture_recipe(command_of("swin-image-classification"), pictures_folder, capsys)
    assert "vision_model.stages" in told


def test_vit_masked_pretraining_command_runs_and_is_fine_tuned(pictures_folder, capsys):
    told = told_by_picture_recipe(command_of("vit-masked-pretraining"), pictures_folder, capsys)
    assert "pixel_decoder.layers" in told
    places = [f"data.folder={pictures_folder}", f"training.output_dir={pictures_folder.parent / 'masked'}"]
    trainer = build_picture_trainer(load_recipe("vit-masked-pretraining", places))
    trainer.save_model()
    from_masked = ["model.config=null", f"model.pretrained={pictures_folder.parent / 'masked'}"]
    command = [*command_of("vit-image-classification"), *from_masked, "optimizer.layer_decay=0.75"]
    told_by_picture_recipe(command, pictures_folder, capsys)


@pytest.mark.parametrize(
    ("command", "parts", "smallest", "largest"),
    [
        (command_of("vae-tokenizer"), ("encoder.stages", "decoder.stages"), 1e6, 3e6),
        (
            command_of("vqvae-tokenizer"),
            ("encoder.stages", "decoder.stages"),
            0.5e6,
            1e6,
        ),  # in half precision below 2 MB
        (command_of("dvae-tokenizer"), ("encoder.groups", "decoder.groups"), 0.2e6, 1e6),
    ],
    ids=["vae", "vqvae", "dvae"],
)
def test_tokenizer_command_runs(command, parts, smallest, largest, pictures_folder, capsys):
    words = [word.replace("DATA", str(pictures_folder)) for word in command]
    small = [f"training.output_dir={pictures_folder.parent / 'out'}", "training.per_device_train_batch_size=4"]
    assert main([*words, "--dry-run", *small]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert all(part in told for part in parts)
    assert smallest < int(re.search(r"^all +([\d,]+)", told, re.MULTILINE)[1].replace(",", "")) < largest


@pytest.mark.slow  # the published size: 98M parameters
def test_dalle_tokenizer_command_runs(pictures_folder, capsys):
    words = [word.replace("DATA", str(pictures_folder)) for word in command_of("dall-e-tokenizer")]
    small = [f"training.output_dir={pictures_folder.parent / 'out'}", "training.per_device_train_batch_size=1"]
    assert main([*words, "--dry-run", *small]) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "3000000 steps of 1 pictures" in told and "pixel_values (1, 3, 256, 256)" in told
    assert "97,616,006" in told  # 53,786,240 of the encoder and 43,829,766 of the decoder


def test_variants_of_the_vqvae_recipe_are_settings_that_it_takes(pictures_folder):
    header = (RECIPE_FOLDER / "vqvae-tokenizer.yaml").read_text(encoding="utf-8").split("# variants:")[1]
    header = header.split("# The paper's")[0]
    variants = re.findall(r"model\.settings\.\S+", header)
    assert len(variants) == 9
    places = [f"data.folder={pictures_folder}", f"training.output_dir={pictures_folder.parent / 'out'}"]
    for chosen in (variants[:1], variants[1:5], variants[5:8], variants[8:]):
        build_tokenizer_trainer(load_recipe("vqvae-tokenizer", [*places, *chosen]))


def test_pretrained_half_precision_folder_is_trained_in_full_precision(recipe_sections, lines_folder, tmp_path):
    trainer = build_trainer(recipe_of(recipe_sections))
    trainer.model.half().save_pretrained(tmp_path / "half")
    trainer.processing_class.save_pretrained(tmp_path / "half")
    stored = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path / "half")
    places = [f"model.pretrained={tmp_path / 'half'}", f"data.folder={lines_folder}"]
    recipe = TrOCRRecipe.load("trocr-finetune-lines", [*places, f"training.output_dir={tmp_path / 'tuned'}"])
    model = build_trainer(recipe).model
    assert {str(p.dtype) for p in stored.parameters()} == {"torch.float16"}
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    assert (model.lm_head if hasattr(model, "lm_head") else model.get_output_embeddings()).weight is (
        model.get_input_embeddings().weight
    )


def run_llava(folder, command, output_dir, *overrides):
    """Exit code of a LLaVA recipe's command on tiny parts; conversations are the longer for a tokenizer of characters."""
    parts = {"PARTS/dinov2-small": "vision", "PARTS/smollm2-135m-instruct": "text", "runs/llava-projector": "first"}
    words = []
    for word in command:
        for name, place in parts.items():
            word = word.replace(name, str(folder / place))
        words.append(word.replace("DATA", str(folder)))
    small = [f"training.output_dir={folder / output_dir}", "training.report_to=none"]
    return main([*words, *small, *overrides])


def test_llava_commands_run_one_after_the_other(tmp_path, capsys):
    write_parts(tmp_path)
    write_conversations(tmp_path)
    for name in ("chat", "captions"):
        (tmp_path / name).rename(tmp_path / f"emoji-{name}")
    first = ["model.settings={image_size: 16, vision_feature_layer: -1}", "training.max_steps=1"]
    assert run_llava(tmp_path, command_of("llava-projector"), "first", *first) == 0
    assert run_llava(tmp_path, command_of("llava-chat"), "second", "--dry-run") == 0
    assert "language_model" in capsys.readouterr().out
    assert run_llava(tmp_path, command_of("llava-chat-lora"), "third", "--dry-run") == 0


def write_llava_lists(folder):
    """LLaVA's own lists, captions and conversations, beside their pictures."""
    (folder / "pictures").mkdir()
    lists = {"captions.json": [], "mix665k.json": []}
    for index in range(4):
        Image.new("RGB", (20, 16), (60 * index, 40, 40)).save(folder / "pictures" / f"{index}.jpg")
        for name, rows in lists.items():
            turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A colour."}]
            rows.append({"id": f"{name}-{index}", "image": f"{index}.jpg", "conversations": turns})
    del lists["mix665k.json"][0]["image"]  # and one without
    lists["mix665k.json"][0]["conversations"][0]["value"] = "What?"
    for name, rows in lists.items():
        (folder / name).write_text(json.dumps(rows), encoding="utf-8")


def test_llava_1_5_commands_run_one_after_the_other(tmp_path, capsys):
    write_parts(tmp_path)
    write_llava_lists(tmp_path)
    parts = {
        "PARTS/clip-vit-large-patch14-336": "vision",
        "PARTS/vicuna-7b-v1.5": "text",
        "runs/llava-1.5-projector": "1",
    }
    small = ["training.global_batch_size=4", "training.report_to=none", "training.dataloader_num_workers=0"]
    first = ["training.max_steps=1", "model.settings.vision_feature_layer=-1"]
    for words, overrides, output in (
        (command_of("llava-1.5-projector"), first, "1"),
        (command_of("llava-1.5-chat"), ["--dry-run"], "2"),
    ):
        for name, place in parts.items():
            words = [word.replace(name, str(tmp_path / place)) for word in words]
        words = [word.replace("DATA", str(tmp_path)) for word in words]
        assert main([*words, *small, *overrides, f"training.output_dir={tmp_path / output}"]) == 0, (
            capsys.readouterr().err
        )
    assert "language_model" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["llava-1.5-projector", "llava-1.5-chat"])
def test_llava_1_5_recipes_have_the_settings_of_the_paper_s_table(recipe):
    training = load_recipe(recipe).training
    wanted = {"llava-1.5-projector": (256, 1e-3), "llava-1.5-chat": (128, 2e-5)}[recipe]
    assert (training["global_batch_size"], training["learning_rate"]) == wanted
    assert training["warmup_steps"] == 0.03 and training["lr_scheduler_type"] == "cosine"
    assert training["weight_decay"] == 0 and training["num_train_epochs"] == 1
    assert load_recipe(recipe).data.max_length == 2048


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml")))
def test_every_shipped_recipe_has_a_test_of_its_command(recipe):
    here = Path(__file__).read_text(encoding="utf-8")
    of_tasks = Path(__file__).with_name("test_task_recipes.py").read_text(encoding="utf-8")
    assert f'command_of("{recipe}")' in here or f'    "{recipe}": (' in of_tasks
