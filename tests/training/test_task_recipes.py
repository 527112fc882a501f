"""Captioning, OCR, questions, statements, translation and chat, each trained and evaluated from its shipped recipe, in small."""

import json

import pytest
import yaml

from hf_vlm import LlavaVisionLanguageForConditionalGeneration, LlavaVisionLanguageProcessor
from hf_vlm.cli import main
from hf_vlm.training.tasks import load_recipe
from tests.tiny_lines import TEXTS, write_lines
from tests.training.test_recipes import command_of
from tests.training.tiny_conversations import write_conversations, write_parts
from tests.training.tiny_tasks import write_decoder_parts, write_task_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What headers call DATA and PARTS, and the runs that recipes go on from, in small."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task_sets(folder)
    write_decoder_parts(folder)
    write_parts(folder)
    write_conversations(folder)
    (folder / "chat").rename(folder / "emoji-chat")
    model = LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts(
        str(folder / "vision"), str(folder / "text"), vision_feature_layer=-1, image_size=16
    )
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(
        str(folder / "vision"), str(folder / "text"), vision_feature_layer=-1, image_size=16
    )
    for run in ("llava-projector", "llava-chat"):
        model.save_pretrained(folder / run)
        processor.save_pretrained(folder / run)
    return folder


def train(folder, command, *overrides):
    """Exit code of a recipe's own command, two steps long."""
    words = [
        word.replace("runs/", f"{folder}/").replace("DATA", str(folder)).replace("PARTS", str(folder))
        for word in command
    ]
    small = ["training.max_steps=2", "training.save_steps=2", "training.eval_steps=2", "training.report_to=none"]
    return main([*words, *small, "training.disable_tqdm=true", *overrides])


def evaluate(run, data, task, *options, capsys):
    """The record of an evaluation, and what the command printed."""
    capsys.readouterr()
    record = run / "record.json"
    arguments = ["evaluate", str(run), str(data), "--split", "validation", "--task", task, "--record", str(record)]
    assert main([*arguments, *options]) == 0, capsys.readouterr().err
    return json.loads(record.read_text()), capsys.readouterr().out


RUNS = {
    "caption-cnn-lstm": ("caption", "photo_captions", "cider"),
    "caption-trocr": ("caption", "photo_captions", "cider"),
    "caption-llava": ("caption", "photo_captions", "cider"),
    "vqa-trocr": ("vqa", "vqa_rooms", "vqa_accuracy"),
    "vqa-llava": ("vqa", "vqa_rooms", "vqa_accuracy"),
    "nlvr-llava": ("nlvr", "emoji-nlvr", "accuracy"),
    "translate-llava": ("translate", "emoji-translate", "bleu"),
    "tasks-llava": ("nlvr", "emoji-nlvr", "accuracy"),
    "llava-chat": ("chat", "emoji-chat", "exact_match"),
}


@pytest.mark.parametrize("recipe", RUNS)
def test_recipe_trains_and_its_task_is_evaluated(recipe, folder, tmp_path, capsys):
    task, data, main_score = RUNS[recipe]
    run = tmp_path / "run"
    overrides = [f"training.output_dir={run}"]
    if recipe == "caption-cnn-lstm":
        overrides += ["model.settings={attention: additive, hidden_size: 16, embedding_size: 8}"]
    assert train(folder, command_of(recipe), *overrides) == 0, capsys.readouterr().err
    saved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert saved["task"] == task and saved["architecture"] in recipe.replace("-", "_")
    options = ["--max-new-tokens", "8", "--max-rows", "6"]
    record, told = evaluate(run, folder / data, task, *options, capsys=capsys)
    expected = {"chat": 4, "nlvr": 8}.get(task, 6)  # there are four conversations; statements come in groups of four
    assert record["num_questions"] == len(record["examples"]) == expected
    assert main_score in record and main_score.replace("_", " ") in told
    assert record["task"] == task and record["decoding"]["max_new_tokens"] == 8 and record["pictures"] == "own"


def test_ocr_recipe_trains_and_is_evaluated_as_a_task(tmp_path, capsys):
    for split in ("train", "validation"):
        pictures = write_lines(tmp_path / split, TEXTS)
        rows = [{"file_name": f"line_{at}.png", "text": text} for at, text in enumerate(TEXTS)]
        (pictures / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (pictures / "metadata.csv").unlink(missing_ok=True)
    run = tmp_path / "run"
    small = [f"data.folder={tmp_path}", "data.train=[{path: ., split: train}]", "data.validation={}"]
    command = ["train", "trocr-finetune-lines", *small, f"training.output_dir={run}", "training.report_to=none"]
    assert main([*command, "training.max_steps=1", "training.dataloader_num_workers=0"]) == 0
    record, told = evaluate(run, tmp_path, "ocr", "--max-rows", "2", capsys=capsys)
    assert record["cer"] < 0.5 and "cer" in told and record["examples"][0]["references"] == [TEXTS[0]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=nlvr"],
            "`architecture` must be `llava` for the task `nlvr`, got 'cnn_lstm'. `cnn_lstm` does `caption`.",
        ),
        (["task=vqa"], "`architecture` must be `trocr` or `llava` for the task `vqa`, got 'cnn_lstm'."),
        (
            ["architecture=lstm"],
            "`architecture` must be `cnn_lstm` or `trocr` or `llava` for the task `caption`, got 'lstm'.",
        ),
        (["task=captions"], "`task` must be one of `ocr`, `caption`, `vqa`, "),
        (["data.train.0.weight=0"], "`weight` of `photo_captions` must be above 0, got 0"),
        (["data.train.0.weight=-1"], "must be above 0, got -1"),
        (["data.train.0.prompt=captoin"], "A format prompt must be .* Did you mean `caption`"),
        (["data.train.0.task=vqa"], "All sets must be of the recipe's task `caption`, got `photo_captions` of `vqa`"),
        (["parts.train=[]"], "`parts.train` wants a part"),
        (["parts.train=[vision, decoder]"], "`data.features_folder` keeps features of a vision encoder that stays"),
        (["architecture=trocr"], "`model.text: words` makes a vocabulary for a CNN"),
        (["model.pretrained=x"], "Give exactly one of the two"),
    ],
)
def test_impossible_task_recipes_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        load_recipe("caption-cnn-lstm", overrides)


def test_weight_of_a_mixture_is_how_often_rows_come(folder, tmp_path):
    from hf_vlm.training.picture_text import build_trainer

    def rows_of(weight):
        places = [f"data.folder={folder}", f"model.vision={folder}/efficientnet-lite0", f"data.train.0.weight={weight}"]
        shape = "model.settings={hidden_size: 8, embedding_size: 8}"
        recipe = load_recipe(
            "caption-cnn-lstm", [*places, shape, f"training.output_dir={tmp_path}", "training.report_to=none"]
        )
        dataset = build_trainer(recipe).train_dataset
        return [
            (float(dataset[index]["image_features"].sum()), dataset[index]["text"]) for index in range(len(dataset))
        ]

    once, twice, half = rows_of(1), rows_of(2.5), rows_of(0.5)
    assert len(once) == 24 and len(twice) == 60 and len(half) == 12
    assert twice[:48] == once * 2 and set(twice[48:]) <= set(once) and twice[48:] == half
