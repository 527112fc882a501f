"""What a run's report is made of: the run's own numbers, its model's own answers, and its data as the model reads it."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from hf_vlm import VisionTransformerConfig, VisionTransformerModel
from hf_vlm.cli import main
from hf_vlm.data.conversations.conversations import read_conversations
from hf_vlm.data.labelled_images import read_images
from hf_vlm.training.reports.run_collectors import WantedText, write, written_mask
from hf_vlm.training.reports.run_report import make_report
from hf_vlm.training.reports.run_samples import Findings, Sample, judge, spread
from hf_vlm.training.scores.conversation_evaluation import answer_conversations, load_visual_chat
from hf_vlm.training.scores.evaluation import evaluate_folders
from hf_vlm.training.scores.image_evaluation import evaluate_image_folders
from hf_vlm.training.scores.task_evaluation import load_answerer
from hf_vlm.training.tasks import train
from tests.data.line_files import write_font
from tests.models.llava.tiny_llava import tiny_image_processor
from tests.tiny_lines import TEXTS, recipe_of, tiny_recipe, write_splits
from tests.training import tiny_conversations
from tests.training.tiny_pictures import picture_recipe_of, tiny_picture_recipe, write_picture_splits


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, and the hash of what is in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shown_text(mask) -> str:
    """A mask as text, learnt tokens in brackets."""
    return "".join(f"[{token.text}]" if token.is_learnt else token.text for token in mask.tokens)


@pytest.fixture(scope="module")
def lines_run(tmp_path_factory) -> Path:
    """A TrOCR after three steps, evaluated at each."""
    folder = tmp_path_factory.mktemp("lines")
    sections = tiny_recipe(write_splits(folder / "lines"), folder / "run")
    sections["data"]["validation"]["lines"]["ignore_case"] = True
    train(recipe_of(sections))
    return folder / "run"


@pytest.fixture(scope="module")
def chat_folders(tmp_path_factory) -> tuple[Path, Path]:
    torch.manual_seed(0)
    data = tiny_conversations.write_conversations(tmp_path_factory.mktemp("data"))
    return tiny_conversations.write_parts(tmp_path_factory.mktemp("parts")), data


@pytest.fixture(scope="module")
def chat_run(chat_folders, tmp_path_factory) -> Path:
    """A LLaVA after three steps, its features kept on disk."""
    folder = tmp_path_factory.mktemp("chat")
    sections = tiny_conversations.tiny_llava_recipe(
        *chat_folders,
        folder / "run",
        data={
            "train": [{"path": "chat", "split": "train"}],
            "validation": {"chat": {"path": "chat", "split": "validation"}},
            "features_folder": "features",
        },
        parts={"train": ["projector"]},
        training={"max_steps": 3, "eval_steps": 3, "save_steps": 3},
        generation={"max_new_tokens": 8},
    )
    train(tiny_conversations.recipe_of(folder, sections))
    return folder / "run"


def test_report_of_lines_holds_the_runs_own_numbers(lines_run):
    report = make_report(lines_run, num_samples=2)
    state = json.loads((lines_run / "trainer_state.json").read_text())
    for chart, line, key in (
        ("loss", "training", "loss"),
        ("grad norm", "training", "grad_norm"),
        ("learning rate", "training", "learning_rate"),
        ("cer", "validation", "eval_cer"),
        ("loss", "validation", "eval_loss"),
    ):
        (found,) = [of for one in report.charts if one.title == chart for of in one.lines if of.name == line]
        logged = [(entry["step"], entry[key]) for entry in state["log_history"] if key in entry]
        assert list(zip(found.steps, found.values, strict=True)) == logged and len(logged) == 3
    speeds = {"items per second", "tokens per second", "learnt tokens per second"}
    assert {chart.title for chart in report.charts} == {"loss", "grad norm", "learning rate", "cer", "wer"} | speeds
    assert report.recipe == (lines_run / "recipe.yaml").read_text(encoding="utf-8")
    assert report.task == "ocr" and report.facts["Steps"] == "3 of 3" and "since" in report.facts["Time"]
    model = torch.nn.ModuleList([VisionTransformerModel(VisionTransformerConfig(**vision_of(lines_run)))])
    (vision,) = [part for part in report.findings.parts if part.name == "vision"]
    assert vision.num_parameters == vision.num_trained == sum(weight.numel() for weight in model.parameters())


def vision_of(run: Path) -> dict:
    settings = yaml.safe_load((run / "recipe.yaml").read_text())["model"]["vision_config"]
    return {name: value for name, value in settings.items() if name != "model_type"} | {"pooling": "none"}


def test_lines_are_read_and_scored_as_in_evaluation(lines_run):
    report = make_report(lines_run, num_samples=2)
    found = report.findings
    folder = str(lines_run.parent / "lines")
    (_, scores) = next(iter(evaluate_folders(str(lines_run), [folder], split="validation", ignore_case=True)))
    assert found.asked_of == "validation set lines: 3 of 3 rows" and found.problems == []
    assert [sample.references for sample in found.samples] == [["a ship"], ["the rain"], ["no dogs"]]
    assert [sample.answer for sample in found.samples] == scores.predictions
    assert report.to_dict()["error_rate"] == pytest.approx(scores.cer)
    assert found.shown == [0, 2] and [sample.pictures[0].size for sample in found.samples] == [
        (78, 28),
        (96, 28),
        (87, 28),
    ]
    assert sum(length.num_lines for length in report.by_length) == 3
    assert sum(confusion.number for confusion in report.confusions) <= sum(
        len(sample.edits) for sample in found.samples
    )
    assert [len(sample.edits) for sample in report.worst] and len(report.worst) <= 3


def test_lines_have_maps_of_their_words_and_literal_masks(lines_run):
    found = make_report(lines_run, num_samples=3).findings
    for sample in found.samples:
        said = sample.answer.split()
        if len(said) > 1:
            assert [one.word for one in sample.maps] == said[:8]
        assert all(one.picture.width == 320 and 0 < one.most <= 1 for one in sample.maps)
        assert all(one.picture.width / one.picture.height > 2.5 for one in sample.maps)
    assert any(sample.maps for sample in found.samples) or all(not sample.answer.strip() for sample in found.samples)
    assert [shown_text(mask) for mask in found.masks] == [
        "<s>" + "".join(f"[{character}]" for character in text) + "[</s>]" for text in TEXTS[:3]
    ]
    assert found.masks[0].num_learnt == len(TEXTS[0]) + 1 and "metadata.jsonl" in found.masks[0].source


@pytest.mark.parametrize("ignore_case", [True, False])
def test_case_is_folded_where_the_recipe_folds_it(lines_run, tmp_path, monkeypatch, ignore_case):
    lines = Path(shutil.copytree(lines_run.parent / "lines", tmp_path / "lines"))
    texts = lines / "validation" / "metadata.jsonl"
    texts.write_text(texts.read_text().replace("a ship", "A Ship"))
    validation = {"lines": {"path": ".", "split": "validation", "ignore_case": ignore_case}}
    data = {"folder": str(lines), "validation": validation}
    run = changed_copy(lines_run, tmp_path, lambda sections: sections["data"].update(data))
    monkeypatch.setattr(
        "hf_vlm.training.reports.run_collectors.TrOCREncoderDecoderProcessor.batch_decode",
        lambda self, token_ids, **settings: ["a ship"] * len(token_ids),
    )
    assert make_report(run, num_samples=1).findings.samples[0].is_right is ignore_case


@pytest.mark.parametrize("run", ["lines_run", "chat_run"])
def test_nothing_of_a_run_is_changed_but_the_report(run, request, capsys):
    folder = request.getfixturevalue(run)
    before = contents(folder.parent)
    assert main(["show", str(folder), "--samples", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    after = contents(folder.parent)
    assert set(after) - set(before) == {"run/report.html"}
    assert {name: after[name] for name in before} == before
    assert told["file"] == str(folder / "report.html") and told["num_shown"] == 1 and told["problems"] == []
    assert set(told["curves"]) >= {"loss", "learning rate", "grad norm"}
    (folder / "report.html").unlink()


def test_show_writes_where_it_is_told_and_names_what_a_run_is(lines_run, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert main(["show", str(lines_run), "--samples", "2", "--out", str(page)]) == 0
    assert f"{page}: 8 charts, 2 answers of 3" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    for wrong, told in (
        (["show", str(tmp_path)], "with `recipe.yaml`, `trainer_state.json`"),
        (["show", str(tmp_path / "none")], "The folder of a run is wanted"),
        (["show", str(lines_run), "--out", str(tmp_path)], "A file for the report is wanted"),
    ):
        assert main(wrong) == 1
        assert told in capsys.readouterr().err


def changed_copy(run: Path, folder: Path, change) -> Path:
    """A copy of a run with another recipe."""
    copy = Path(shutil.copytree(run, folder / "copy"))
    sections = yaml.safe_load((copy / "recipe.yaml").read_text())
    change(sections)
    (copy / "recipe.yaml").write_text(yaml.safe_dump(sections))
    return copy


def test_training_set_is_asked_where_there_is_no_other(lines_run, tmp_path):
    run = changed_copy(lines_run, tmp_path, lambda sections: sections["data"].update(validation={}))
    found = make_report(run, num_samples=1).findings
    assert found.asked_of == "training set . (train): 4 of 8 rows"
    assert [sample.references[0] for sample in found.samples] == [TEXTS[index] for index in (0, 2, 5, 7)]


def test_rendered_lines_are_read_where_there_are_no_others(lines_run, tmp_path):
    synthetic = {"fonts": [str(write_font(tmp_path))], "kinds": {"print": 1.0}}
    data = {"train": [], "validation": {}, "synthetic": synthetic}
    run = changed_copy(lines_run, tmp_path, lambda sections: sections["data"].update(data))
    found = make_report(run, num_samples=1).findings
    assert found.asked_of == "4 lines, rendered as in training" and len(found.masks) == 3
    assert all(sample.references[0] and sample.source.startswith("rendered line") for sample in found.samples)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda sections: sections["data"].update(folder="/nowhere"), "/nowhere"),
        (lambda sections: sections.update(task="reading tea leaves"), "reading tea leaves"),
    ],
)
def test_report_without_data_says_why_and_keeps_the_curves(lines_run, tmp_path, change, told):
    report = make_report(changed_copy(lines_run, tmp_path, change), num_samples=1)
    assert report.findings is None and told in report.problem and told in report.to_dict()["problems"][0]
    assert len(report.charts) == 8 and report.facts["Architecture"] == "TrOCREncoderDecoderForConditionalGeneration"


def test_broken_picture_is_left_out_and_told(lines_run, tmp_path):
    lines = Path(shutil.copytree(lines_run.parent / "lines", tmp_path / "lines"))
    (lines / "validation" / "line_1.png").write_bytes(b"")
    run = changed_copy(lines_run, tmp_path, lambda sections: sections["data"].update(folder=str(lines)))
    found = make_report(run, num_samples=3).findings
    assert [sample.references for sample in found.samples] == [["a ship"], ["no dogs"]]
    assert len(found.problems) == 1 and "line_1.png" in found.problems[0]


def test_chat_is_answered_by_the_trained_model(chat_run, chat_folders):
    report = make_report(chat_run, num_samples=2)
    found = report.findings
    model, processor = load_visual_chat(str(chat_run))
    rows = read_conversations(chat_folders[1] / "chat", "validation")
    assert found.asked_of == "validation set chat: 4 of 4 rows"
    assert [sample.answer for sample in found.samples] == answer_conversations(model, processor, rows, batch_size=8)
    assert [len(sample.pictures) for sample in found.samples] == [rows.num_images(index) for index in range(4)]
    assert found.samples[1].turns == [("user", "What colour??")] + [
        ("assistant", "green"), ("user", "What colour??")]  # fmt: skip
    assert found.samples[1].references == ["green"]
    trained = {part.name: (part.num_parameters, part.num_trained) for part in found.parts}
    counted = {name: sum(weight.numel() for weight in module.parameters()) for name, module in parts_of(model).items()}
    assert trained == {name: (number, number if name == "projector" else 0) for name, number in counted.items()}


def parts_of(model) -> dict:
    return {"vision": model.vision_model, "projector": model.projector, "language": model.language_model}


def test_chat_has_literal_masks(chat_run):
    masks = make_report(chat_run, num_samples=1).findings.masks
    start, turn, end = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "[<|im_end|>]\n"
    red, green, blue = (
        "".join(f"[{character}]" for character in name) + end for name in ("red", "green", "blue and red")
    )
    assert [shown_text(mask) for mask in masks] == [
        f"{start}What colour?{turn}{red}",
        f"{start}<image> x 4\nWhat colour??{turn}{green}{start}What colour??{turn}{green}",
        f"{start}<image> x 4\n<image> x 4\nWhat colour???{turn}{blue}",
    ]
    assert masks[1].num_learnt == 2 * (len("green") + 1)


def test_maps_of_an_answer_are_the_attention_of_the_place_before_it(chat_run, chat_folders):
    found = make_report(chat_run, num_samples=4).findings
    model, processor = load_visual_chat(str(chat_run))
    rows = read_conversations(chat_folders[1] / "chat", "validation")
    num_compared = 0
    looked = [index for index, sample in enumerate(found.samples) if sample.maps]
    assert looked and all(rows.num_images(index) for index in looked)
    model.language_model.set_attn_implementation("eager")
    for index in looked:
        first = found.samples[index].maps[0]
        if len(first.word) > 1:
            continue  # the word is of several tokens
        num_compared += 1
        prompt = processor.apply_chat_template(rows.messages(index)[:-1], add_generation_prompt=True, tokenize=False)
        inputs = processor(images=rows.images(index), text=[prompt], add_special_tokens=False)
        with torch.no_grad():
            attentions = model(**inputs, output_attentions=True).attentions
        places = (inputs["input_ids"][0] == processor.image_token_id).nonzero().flatten()[:4]
        wanted = torch.stack([layer[0, :, -1, places].mean(dim=0) for layer in attentions]).mean(dim=0)
        assert first.most == pytest.approx(float(wanted.max()), rel=1e-4)
        assert first.picture.size == (128, 128)
    assert num_compared


def test_adapter_is_loaded_on_its_base_and_counted(chat_folders, tmp_path):
    base = tiny_conversations.recipe_of(
        tmp_path, tiny_conversations.tiny_llava_recipe(*chat_folders, tmp_path / "base")
    )
    base.training["max_steps"] = 1
    train(base)
    sections = tiny_conversations.tiny_llava_recipe(
        *chat_folders,
        tmp_path / "run",
        model={"pretrained": str(tmp_path / "base"), "vision": None, "text": None, "settings": {}},
        parts={"train": ["projector"], "lora": {"rank": 2, "alpha": 4, "roles": ["language"]}},
        training={"max_steps": 1, "save_steps": 1},
        generation={"max_new_tokens": 4},
    )
    trainer = train(tiny_conversations.recipe_of(tmp_path, sections))
    report = make_report(tmp_path / "run", num_samples=1)
    assert report.problem is None and "with a LoRA adapter" in report.facts["Architecture"]
    learnt = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    assert sum(part.num_trained for part in report.findings.parts) == learnt
    assert report.findings.asked_of.startswith("training set captions (train): 4 of 12")

    shutil.rmtree(tmp_path / "base")
    report = make_report(tmp_path / "run", num_samples=1)
    assert "The base model" in report.problem and report.facts["Architecture"].startswith("LoRA adapter of ")
    assert report.charts


def test_classifier_is_asked_and_its_confusions_are_of_classes(tmp_path):
    pictures = write_picture_splits(tmp_path / "pictures")
    train(picture_recipe_of(tiny_picture_recipe(pictures, tmp_path / "run")))
    report = make_report(tmp_path / "run", num_samples=3)
    found = report.findings
    (_, scores) = next(iter(evaluate_image_folders(str(tmp_path / "run"), [str(pictures)], split="validation")))
    assert [sample.answer for sample in found.samples] == [
        f"{row['predicted']} ({100 * row['probability']:.1f} %)" for row in scores.predictions
    ]
    assert [sample.references for sample in found.samples] == [[row["label"]] for row in scores.predictions]
    right = [row["predicted"] == row["label"] for row in scores.predictions]
    assert [sample.is_right for sample in found.samples] == right
    assert sum(confusion.number for confusion in report.confusions) == right.count(False)
    assert {kind.kind: kind.num_rows for kind in report.by_kind} == {"blue": 3, "green": 3, "red": 3}
    assert "hf-vlm explain" in found.maps_note and found.masks == [] and found.masks_note
    assert "accuracy" in {chart.title for chart in report.charts}


def test_tokenizer_shows_what_it_makes_of_pictures(tmp_path):
    pictures = write_picture_splits(tmp_path / "pictures")
    sections = tiny_picture_recipe(pictures, tmp_path / "run", "image-tokenization")
    sections["model"]["config"] = {"model_type": "hf_vlm_vae", "image_size": 16, "hidden_channels": [8, 8]}
    trainer = train(picture_recipe_of(sections, "training.max_steps=2"))
    found = make_report(tmp_path / "run", num_samples=2).findings
    assert len(found.samples) == 2 and all(len(sample.pictures) == 2 for sample in found.samples)
    original = trainer.eval_collator([read_images(pictures, "validation", with_labels=False)[0]])["pixel_values"]
    with torch.no_grad():
        error = (trainer.model.eval().reconstruct(original) - original).square().mean()
    assert found.samples[0].answer.endswith(f"mean squared error {float(error):.4g}")
    assert found.samples[0].is_right is None and found.masks_note


def caption_run(tmp_path: Path) -> Path:
    """A CNN + LSTM with attention on two colours, trained for two steps."""
    data = tmp_path / "data"
    for split in ("train", "validation"):
        (data / split).mkdir(parents=True)
        rows = []
        for number in range(6):
            name = ("red", "blue")[number % 2]
            Image.new("RGB", (20, 16), name).save(data / split / f"{number}.png")
            rows.append(json.dumps({"file_name": f"{number}.png", "captions": [f"a {name} picture", f"all {name}"]}))
        (data / split / "metadata.jsonl").write_text("\n".join(rows))
    vision = VisionTransformerModel(
        VisionTransformerConfig(
            image_size=16, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, pooling="none"
        )
    )
    vision.save_pretrained(tmp_path / "vision")
    tiny_image_processor().save_pretrained(tmp_path / "vision")
    sections = {
        "task": "caption",
        "architecture": "cnn_lstm",
        "model": {
            "vision": str(tmp_path / "vision"),
            "text": "words",
            "min_word_count": 1,
            "settings": {"attention": "additive", "embedding_size": 8, "hidden_size": 12},
        },
        "data": {
            "folder": str(data),
            "train": [{"path": ".", "split": "train"}],
            "validation": {"colours": {"path": ".", "split": "validation"}},
        },
        "training": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "eval_steps": 2,
            "save_steps": 2,
            "disable_tqdm": True,
            "report_to": "none",
        },
        "generation": {"max_new_tokens": 4, "num_beams": 2},
    }
    train(tiny_conversations.recipe_of(tmp_path, sections))
    return tmp_path / "run"


def test_captioner_has_maps_of_its_words_and_literal_masks(tmp_path):
    found = make_report(caption_run(tmp_path), num_samples=2).findings
    assert found.asked_of == "validation set colours: 6 of 6 rows" and found.maps_note == ""
    assert found.samples[0].references == ["a red picture", "all red"] and found.samples[0].turns == []
    shown = [found.samples[index] for index in found.shown]
    assert all(len(sample.maps) >= len(sample.answer.split()[:8]) for sample in shown)
    assert all(one.picture.size == (128, 128) for sample in shown for one in sample.maps)
    text = shown_text(found.masks[0])
    assert text.count("[") == found.masks[0].num_learnt == len("a red picture".split()) + 1
    assert text == "<start>[ a][ red][ picture][ <end>]"
    assert {part.name: part.num_trained > 0 for part in found.parts}["vision"] is False


def test_question_stands_before_what_is_written_and_is_not_learnt(lines_run):
    model, processor = load_answerer(str(lines_run), "vqa")
    picture = Image.open(lines_run.parent / "lines" / "train" / "line_1.png")
    rows = [WantedText("row", picture, ["a cat", "cats"], question) for question in ("old", "what is it")]
    found = Findings("", [])
    write(model.eval(), processor, rows, "vqa", found, 2)
    assert [sample.turns for sample in found.samples] == [[("user", "old")], [("user", "what is it")]]
    for row, sample in zip(rows, found.samples, strict=True):
        inputs = processor(images=[picture], prompt=[row.question], return_tensors="pt")
        begun = inputs["decoder_input_ids"].shape[1]
        token_ids = model.generate(**inputs)[0, begun:]
        assert sample.answer == processor.decode(token_ids, skip_special_tokens=True) and not sample.maps
    assert shown_text(written_mask(model, processor, rows[0])) == "<s>old</s>[a][ ][c][a][t][</s>]"


@pytest.mark.parametrize(
    ("task", "references", "answer", "is_right"),
    [
        ("ocr", ["a cat"], "a cat", True),
        ("ocr", ["a cat"], "A cat", False),
        ("chat", ["red"], "Red.", True),
        ("chat", ["red", "crimson"], "crimson", True),
        ("chat", ["red"], "blue", False),
        ("chat", ["a cat on a mat"], "a cat lies there", None),
        ("caption", ["a cat on a mat"], "a cat on a mat", True),
        ("vqa", ["two"], "2", True),
        ("vqa", ["two"] * 2 + ["three"] * 8, "2", True),
        ("vqa", ["two"] + ["three"] * 9, "2", False),
        ("nlvr", ["true"], "Yes, it is.", True),
        ("nlvr", ["true"], "perhaps", False),
        ("chat", [" "], "blue", None),
    ],
)
def test_answer_is_right_as_its_task_counts_it(task, references, answer, is_right):
    assert judge(Sample("row", [], [], references, answer), task).is_right is is_right


def test_rows_are_spread_from_the_first_to_the_last():
    assert spread(9, 3) == [0, 4, 8] and spread(2, 5) == [0, 1] and spread(5, 1) == [0] and spread(0, 3) == []
    assert len(set(spread(50, 48))) == 48
