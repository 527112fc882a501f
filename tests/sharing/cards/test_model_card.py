"""Cards of models: what they say is what the run left behind, the Hub's client reads them, and their programs run."""

import ast
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import peft
import pytest
import torch
import transformers
import yaml
from huggingface_hub import EvalResult, ModelCard, metadata_load
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from hf_vlm import (
    CnnLstmForConditionalGeneration,
    LlavaVisionLanguageForConditionalGeneration,
    TrOCREncoderDecoderForConditionalGeneration,
    VisionTransformerForImageClassification,
)
from hf_vlm.cli import main
from hf_vlm.parts.licences import MERGED_FILE, read_merge_record
from hf_vlm.parts.weight_report import PartSource, WeightReport, part_source
from hf_vlm.sharing.cards.architectures import ARCHITECTURES, adapter_usage, code_usage, pipeline_tag, usage
from hf_vlm.sharing.cards.licenses import KNOWN_LICENSES, settle_license
from hf_vlm.sharing.cards.model_card import write_card
from hf_vlm.sharing.cards.pictures import CURVES_FILE, MAX_PICTURE_BYTES
from hf_vlm.sharing.cards.records import eval_results, read_records
from hf_vlm.sharing.cards.run import published
from hf_vlm.sharing.cards.sections import is_handwritten, join_sections
from hf_vlm.sharing.cards.weights import changed_parts
from hf_vlm.sharing.code_folder import export_code
from hf_vlm.training.lora import add_lora, merge_adapter, save_adapter
from hf_vlm.training.lora_layers import LoraSection
from hf_vlm.training.tasks import load_recipe, train
from tests.models.trocr.tiny_models import tiny_reader
from tests.tiny_lines import recipe_of, tiny_recipe, write_splits
from tests.training.test_image_tokenization import tokenizer_recipe
from tests.training.tiny_conversations import tiny_llava_recipe, write_conversations, write_parts
from tests.training.tiny_pictures import picture_recipe_of, tiny_picture_recipe, write_picture_splits
from tests.training.tiny_tasks import write_decoder_parts, write_task_sets

ONE_STEP = ["training.max_steps=1", "training.save_steps=1", "training.eval_steps=1", "training.report_to=none"]
TOKENIZERS = {"vae": "vae", "vqvae": "vq", "dvae": "dvae"}
SWIN = {"model_type": "hf_vlm_swin", "image_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8}
SWIN |= {"depths": [1, 1], "num_attention_heads": [1, 2]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data and parts of every task; the parts have cards, the language model's another licence."""
    folder = tmp_path_factory.mktemp("data")
    write_task_sets(folder)
    write_decoder_parts(folder)
    write_conversations(folder)
    write_parts(folder)
    write_splits(folder / "lines")
    write_picture_splits(folder / "pictures")
    for part, license in (
        ("vision", "mit"),
        ("text", "apache-2.0"),
        ("dinov2-small", "cc-by-nc-4.0"),
        ("minilm", "mit"),
    ):
        (folder / part / "README.md").write_text(f"---\nlicense: {license}\n---\n# {part}\n")
    (folder / "captions" / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: en\n---\nPictures of colours.\n")
    return folder


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """`runs(name)`: the folder of a run of one step, trained when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def train_run(name: str) -> Path:
        out = folder / name / "out"
        out.parent.mkdir()
        if name == "llava":
            small = {"max_steps": 1, "save_steps": 1}
            recipe = load_sections(out, tiny_llava_recipe(data, data, out, training=small))
        elif name == "lora":
            parts = {"lora": {"rank": 2, "alpha": 4, "roles": ["language"]}}
            model = {"pretrained": str(runs_of("llava")), "vision": None, "text": None, "settings": {}}
            small = {"max_steps": 1, "save_steps": 1}
            recipe = load_sections(out, tiny_llava_recipe(data, data, out, training=small, parts=parts, model=model))
        elif name == "trocr":
            recipe = recipe_of(tiny_recipe(data / "lines", out), *ONE_STEP)
        elif name in ("cnn-lstm", "trocr-caption", "trocr-vqa"):
            shipped = {"cnn-lstm": "caption-cnn-lstm", "trocr-caption": "caption-trocr", "trocr-vqa": "vqa-trocr"}[name]
            parts = [f"model.vision={data}/dinov2-small", f"data.folder={data}", f"training.output_dir={out}"]
            own = (
                ["model.settings={hidden_size: 8, embedding_size: 8}"]
                if name == "cnn-lstm"
                else [f"model.text={data}/minilm"]
            )
            recipe = load_recipe(shipped, [*parts, *own, *ONE_STEP, "training.disable_tqdm=true"])
        elif name in ("vit", "swin", "vit-mim"):
            task = "masked-image-modeling" if name == "vit-mim" else "image-classification"
            sections = tiny_picture_recipe(data / "pictures", out, task)
            sections["model"] = {"config": SWIN} if name == "swin" else sections["model"]
            sections["model"]["config"] |= {"masked_image_target": "pixels"} if name == "vit-mim" else {}
            recipe = picture_recipe_of(sections, *ONE_STEP)
        else:
            sections = tokenizer_recipe(TOKENIZERS[name], data / "pictures", out)
            recipe = picture_recipe_of(sections, *ONE_STEP)
        train(recipe)
        return out

    def runs_of(name: str) -> Path:
        if name not in made:
            made[name] = train_run(name)
        return made[name]

    return runs_of


def load_sections(out: Path, sections: dict):
    """The recipe of nested dicts, through a file beside the run."""
    file = out.parent / "recipe.yaml"
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return load_recipe(file)


def card_of(run: Path, out: Path, **settings) -> ModelCard:
    """A card that is written outside of the run, which is shared by tests."""
    return ModelCard.load(write_card(run, out=out / "README.md", **{"license": "cc-by-nc-4.0", **settings}))


def run_program(card: ModelCard, folder: Path, tmp_path: Path, capsys) -> str:
    """What the card's program prints, with the folder in the place of the model's name."""
    (program,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (40, 32), (200, 60, 30)).save(picture)
    name = card.data.get("model_name")
    assert f'"{name}"' in program and '"picture.png"' in program
    capsys.readouterr()
    exec(
        compile(program.replace(f'"{name}"', repr(str(folder))).replace("picture.png", str(picture)), "card", "exec"),
        {},
    )
    return capsys.readouterr().out


# Header and programs

KINDS = {  # run -> pipeline tag, task, what its program prints
    "llava": ("image-text-to-text", "chat", r"\n$"),
    "trocr": ("image-to-text", "ocr", r"'generated_text': "),
    "trocr-caption": ("image-to-text", "caption", r"'generated_text': "),
    "trocr-vqa": ("visual-question-answering", "vqa", r"'answer': .*'score': "),
    "cnn-lstm": ("image-to-text", "caption", r"'generated_text': "),
    "vit": ("image-classification", "image-classification", r"'label': '(red|green|blue)'"),
    "swin": ("image-classification", "image-classification", r"'label': '(red|green|blue)'"),
    "vit-mim": ("image-feature-extraction", "masked-image-modeling", r"torch.Size\(\[1, \d+, 16\]\)"),
    "vae": ("image-feature-extraction", "image-tokenization", r"torch.Size\(\[1, 3, 16, 16\]\)"),
    "vqvae": ("image-feature-extraction", "image-tokenization", r"\[\[ *\d+[, ]"),
    "dvae": ("image-feature-extraction", "image-tokenization", r"\[\[ *\d+[, ]"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_card_of_a_run_has_the_hubs_fields_and_a_program_that_runs(kind, runs, tmp_path, capsys):
    tag, task, printed = KINDS[kind]
    card = card_of(runs(kind), tmp_path, name=f"tiny-{kind}")
    header = metadata_load(tmp_path / "README.md")
    assert header["library_name"] == "transformers" and header["license"] == "cc-by-nc-4.0"
    assert header["pipeline_tag"] == tag and header["model_name"] == f"tiny-{kind}"
    assert (
        "hf-vlm" in header["tags"] and task in header["tags"] and all(isinstance(word, str) for word in header["tags"])
    )
    assert card.data.to_dict() == header  # nothing is lost on the way through the Hub's client
    assert f"trained for the task `{task}`" in card.text
    assert re.search(printed, run_program(card, runs(kind), tmp_path, capsys))


@pytest.mark.parametrize("kind", [*KINDS, "lora"])
def test_card_tells_no_folder_of_this_machine(kind, runs, data, tmp_path):
    card_of(runs(kind), tmp_path)
    text = (tmp_path / "README.md").read_text()
    for folder in (data, runs(kind), tmp_path, Path.home(), Path.cwd()):
        assert str(folder) not in text
    assert not re.search(r"(?<![\w:/.])/(tmp|home|root|Users|work)\b", text)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_recipes_that_a_card_names_go_on_with_a_model(model_type):
    for task, command in ARCHITECTURES[model_type].recipes.items():
        recipe, *overrides = command.replace("NAME", "some-model").split()
        loaded = load_recipe(recipe, [*overrides, "data.folder=DATA"])
        assert loaded.task == task and loaded.model.pretrained == "some-model"


def test_pipeline_tags_are_those_of_the_hub():
    tags = {pipeline_tag(kind, "", task) for kind in ARCHITECTURES for task in ("", "ocr", "caption", "vqa", "chat")}
    known = {"image-text-to-text", "image-to-text", "visual-question-answering", "image-feature-extraction"}
    assert tags <= known


# Body


def test_card_tells_parts_with_sources_licences_and_hashes(runs, tmp_path):
    card = card_of(runs("llava"), tmp_path, license="apache-2.0")
    rows = {cells[1].strip(): cells for line in card.text.splitlines() if len(cells := line.split("|")) == 9}
    report = WeightReport.load(runs("llava"))
    assert rows["vision"][2:4] == [" `vision` ", " mit "] and rows["language"][2:4] == [" `text` ", " apache-2.0 "]
    assert rows["projector"][2].strip() == "new" and rows["projector"][6].strip() == "whole"
    assert rows["vision"][6].strip() == rows["language"][6].strip() == "no"
    for part in report.parts:
        assert part.sha256[:16] in rows[part.name][7]
        copied = sum(part.copied.values())
        assert rows[part.name][4].strip() == f"{copied:,}"
    assert "are those that it describes" in card.text


def test_card_tells_weights_that_are_not_those_of_the_report(runs, tmp_path):
    run = tmp_path / "run"
    LlavaVisionLanguageForConditionalGeneration.from_pretrained(runs("llava")).save_pretrained(run)
    assert changed_parts(run) == []
    weights = load_file(run / "model.safetensors")
    name = next(name for name in weights if name.startswith("vision_model."))
    weights[name] = weights[name] + 1
    save_file(weights, run / "model.safetensors", metadata={"format": "pt"})
    assert changed_parts(run) == ["vision"]
    card = ModelCard.load(write_card(run, license="apache-2.0"))
    assert "The weights of `vision` in this folder are not those" in card.text
    assert "are those that it describes" not in card.text


def test_card_tells_data_settings_and_course(runs, tmp_path):
    card = card_of(runs("llava"), tmp_path, license="apache-2.0")
    assert "| captions | train | chat | 1 | 12 | cc-by-4.0 |" in card.text
    assert card.data.language == ["en"]
    assert "- steps of the optimizer: 1\n" in card.text and "- rows of a batch: 1 a device" in card.text
    assert re.search(r"- time: 0:0\d:\d\d \(h:mm:ss\)", card.text)
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])
    assert settings["training"]["learning_rate"] == 0.01 and settings["data"] == {"max_length": 200, "max_tokens": 256}
    assert (
        "grouping" not in str(settings)
        and "output_dir" not in str(settings)
        and settings["model"]["vision"] == "vision"
    )
    assert "`caption`, `vqa`, `nlvr`, `translate`, which its architecture can learn" in card.text
    assert "No evaluation is recorded" in card.text


def test_card_tells_what_the_run_ran_on(runs, tmp_path):
    run = copied(runs("llava"), tmp_path / "run")
    card = card_of(run, tmp_path)
    device = json.loads((run / "run_environment.json").read_text())["sessions"][0]["device"]
    assert "Rows are those that the run learnt from." in card.text and f"- device: 1 x {device}\n" in card.text
    assert f"peft {peft.__version__}, python {platform.python_version()}, torch {torch.__version__}, " in card.text
    assert "1 a device; on 1 device" in card.text and "not recorded" not in card.text.split("## Training")[1][:900]

    noted = json.loads((run / "run_environment.json").read_text())
    session = noted["sessions"][0] | {"seconds": 3600.4, "num_devices": 8, "device": "NVIDIA"}
    noted["sessions"] = [session, session | {"seconds": 1.0, "num_devices": 2}]
    noted["rows"]["train"] = [4321]
    (run / "run_environment.json").write_text(json.dumps(noted))
    text = card_of(run, tmp_path).text
    assert "- time: 1:00:01 (h:mm:ss) in 2 sessions\n" in text and "- device: 8 x NVIDIA; then 2 x NVIDIA\n" in text
    assert "a device; on 8, then 2 devices" in text and "| captions | train | chat | 1 | 4,321 |" in text
    noted["sessions"] = [session | {"first_step": 7}]
    (run / "run_environment.json").write_text(json.dumps(noted))
    assert "(h:mm:ss), from step 7 on; that of those before is not recorded" in card_of(run, tmp_path).text
    (run / "run_environment.json").unlink()
    without = card_of(run, tmp_path).text
    assert "- device, version of torch: not recorded" in without and "when this card was written" in without
    assert "since the last start or resumption" in without


def test_card_tells_the_alphabet_and_what_was_validated(runs, tmp_path):
    card = card_of(runs("trocr"), tmp_path, license="mit")
    assert "It writes 27 characters, the space among them, and no other: `` abcdefghijklmnopqrstuvwxyz ``" in card.text
    state = json.loads((runs("trocr") / "trainer_state.json").read_text())
    (cer,) = [entry["eval_cer"] for entry in state["log_history"] if "eval_cer" in entry]
    assert f"| cer | {cer:.5g} |" in card.text
    assert (
        "Trained from random weights." in card.text
        and "hf-vlm train trocr-finetune-lines model.pretrained=out" in card.text
    )


def test_secrets_of_a_recipe_are_not_told(runs, tmp_path):
    run = copied(runs("vit"), tmp_path / "run")
    sections = yaml.safe_load((run / "recipe.yaml").read_text())
    sections["training"] |= {"hub_token": "hf_secret", "hub_model_id": "me/private", "run_name": "of-my-boss"}
    (run / "recipe.yaml").write_text(yaml.safe_dump(sections))
    text = write_card(run, license="mit").read_text()
    assert "hf_secret" not in text and "me/private" not in text and "of-my-boss" not in text


def copied(run: Path, folder: Path) -> Path:
    """A run's files, without its checkpoints."""
    folder.mkdir()
    for file in run.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_classes_are_told_and_curves_are_drawn_where_there_is_a_curve(data, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    train(
        picture_recipe_of(tiny_picture_recipe(data / "pictures", out), "training.max_steps=2", "training.save_steps=2")
    )
    card = ModelCard.load(write_card(out, license="mit"))
    assert (
        f"![Loss by step]({CURVES_FILE})" in card.text
        and "calls every picture one of them: blue, green, red" in card.text
    )
    with Image.open(out / CURVES_FILE) as picture:
        assert picture.size[0] > 300
    assert (out / CURVES_FILE).stat().st_size < MAX_PICTURE_BYTES


def test_picture_is_put_beside_the_card_and_made_smaller_if_it_is_large(runs, tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (900, 900, 3), generator=generator, dtype=torch.uint8).numpy()
    Image.fromarray(pixels).save(tmp_path / "large.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    assert (tmp_path / "large.png").stat().st_size > MAX_PICTURE_BYTES
    for name, shown in (("small.png", "small.png"), ("large.png", "large-small.jpg")):
        out = tmp_path / f"of-{name}"
        card = card_of(runs("vit"), out, picture=tmp_path / name)
        assert f"]({shown})" in card.text and (out / shown).stat().st_size <= MAX_PICTURE_BYTES
        Image.open(out / shown).verify()
    again = ModelCard.load(write_card(runs("vit"), out=out / "README.md"))
    assert "](large-small.jpg)" in again.text
    (tmp_path / "none.png").write_text("no picture")
    with pytest.raises(ValueError, match="A picture is wanted, got none.png"):
        card_of(runs("vit"), tmp_path, picture=tmp_path / "none.png")


# Figures


@pytest.fixture
def captioned(runs, data, tmp_path, capsys):
    """A copy of a captioner, and the record of its evaluation."""
    run, record = copied(runs("cnn-lstm"), tmp_path / "run"), tmp_path / "record.json"
    command = ["evaluate", str(run), str(data / "photo_captions"), "--split", "validation", "--record", str(record)]
    assert main([*command, "--max-rows", "3"]) == 0, capsys.readouterr().err
    return run, record


def test_records_become_tables_and_the_hubs_results(captioned, tmp_path):
    run, record = captioned
    measured = json.loads(record.read_text())
    card = ModelCard.load(write_card(run, license="cc-by-nc-4.0", records=[record]))
    results = {result.metric_type: result for result in card.data.eval_results}
    assert all(isinstance(result, EvalResult) for result in results.values())
    assert results["cider"].metric_value == measured["cider"] and results["rouge"].metric_value == measured["rouge_l"]
    assert (results["bleu"].task_type, results["bleu"].dataset_split) == ("image-to-text", "validation")
    assert results["bleu"].dataset_type == results["bleu"].dataset_name == "photo_captions"
    assert results["bleu"].verified is None and results["bleu"].dataset_revision is None
    assert card.data.metrics == ["cider", "bleu", "rouge", "chrf"]
    assert f"| photo_captions | validation | 3 | {measured['cider']:.3f} |" in card.text
    assert f"torch {torch.__version__.split('+')[0]}" in card.text and "transformers 5." in card.text
    assert str(tmp_path) not in card.text


def test_records_in_the_folder_are_found_and_those_of_other_weights_refused(captioned, runs, tmp_path):
    run, record = captioned
    (run / "record.json").write_bytes(record.read_bytes())
    assert ModelCard.load(write_card(run, license="cc-by-nc-4.0")).data.eval_results
    other = json.loads(record.read_text()) | {"weights_sha256": "0" * 64}
    record.write_text(json.dumps(other))
    before = (run / "README.md").read_bytes()
    with pytest.raises(
        ValueError,
        match=r"Records of these weights are wanted, .*got record.json of others, 000000000000\.\.\. .*--record FILE`",
    ):
        write_card(run, license="cc-by-nc-4.0", records=[record])
    assert (run / "README.md").read_bytes() == before


def test_figures_stay_with_the_weights_that_were_measured(captioned):
    run, record = captioned
    first = ModelCard.load(write_card(run, license="cc-by-nc-4.0", records=[record]))
    again = ModelCard.load(write_card(run))
    assert again.data.eval_results == first.data.eval_results and again.text == first.text
    model = CnnLstmForConditionalGeneration.from_pretrained(run)
    with torch.no_grad():
        next(model.decoder.parameters()).add_(1)
    model.save_pretrained(run)
    with pytest.warns(UserWarning, match="figures of the old card are of other weights"):
        changed = ModelCard.load(write_card(run))
    assert (
        changed.data.eval_results is None
        and changed.data.metrics is None
        and "How they were measured" not in changed.text
    )


def test_figures_without_the_own_pictures_are_told_but_not_the_hubs(captioned, tmp_path):
    run, record = captioned
    blind = json.loads(record.read_text()) | {
        "pictures": "none",
        "by_kind": {"dogs": {"cider": 0.1, "num_questions": 2}},
    }
    (tmp_path / "blind.json").write_text(json.dumps(blind))
    card = ModelCard.load(write_card(run, license="cc-by-nc-4.0", records=[record, tmp_path / "blind.json"]))
    assert "| photo_captions | validation | none | 3 |" in card.text and "| dogs | 2 | 0.100 |" in card.text
    assert len(card.data.eval_results) == 4


@pytest.mark.parametrize(
    ("kind", "folder", "split", "num_rows", "score"),
    [
        ("trocr", "lines", "validation", 3, "cer"),
        ("vit", "pictures", "validation", 9, "accuracy"),
        ("vqvae", "pictures", "validation", 9, "psnr"),
    ],
)
def test_json_of_an_evaluation_tells_a_card_rows_command_versions_and_weights(
    kind, folder, split, num_rows, score, runs, data, tmp_path, capsys, monkeypatch
):
    command = ["evaluate", str(runs(kind)), str(data / folder), "--split", split, "--json"]
    monkeypatch.setattr("sys.argv", ["/usr/bin/hf-vlm", *command])
    capsys.readouterr()
    assert main(command) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('{"data"')]
    file = tmp_path / "measured.json"
    file.write_text(line + "\n")
    card = card_of(runs(kind), tmp_path / "card", license="mit", records=[file])  # warnings are errors: they load
    assert re.search(rf"\| {folder} \| {split} \| {num_rows} \|", card.text)
    assert f"`hf-vlm evaluate out {folder} --split {split} --json`" in card.text
    assert "versions not recorded" not in card.text and f"transformers {transformers.__version__}" in card.text
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results[score].metric_value == json.loads(line)[score] and results[score].dataset_split == split
    file.write_text(json.dumps(json.loads(line) | {"weights_sha256": "0" * 64}))
    with pytest.raises(ValueError, match="Records of these weights are wanted.* by `hf-vlm evaluate --json > FILE`"):
        card_of(runs(kind), tmp_path / "other", license="mit", records=[file])


def test_json_of_every_kind_of_evaluation_is_read(tmp_path):
    lines = {"data": "/data/lines", "cer": 0.5, "wer": 0.25, "word_f1": 0.125, "word_accuracy": 0.0, "num_lines": 7}
    pictures = {"data": "org/pictures", "accuracy": 0.75, "top5_accuracy": None, "num_pictures": 5, "predictions": []}
    tokenizer = {"data": "p", "loss": 1.0, "mse": 0.01, "psnr": 20.0, "used_codes": 3, "perplexity": 2.5}
    file = tmp_path / "of-all.json"
    file.write_text("".join(json.dumps(entry) + "\n" for entry in (lines, pictures, tokenizer)))
    records = read_records([file])
    assert [record.task for record in records] == ["ocr", "image-classification", "image-tokenization"]
    assert [record.num_rows for record in records] == [7, 5, None]
    assert records[0].data == "lines" and records[1].data == "org/pictures"
    told = [(result.metric_type, result.metric_value) for result in eval_results(records)]
    assert told[:3] == [("cer", 0.5), ("wer", 0.25), ("word_f1", 0.125)]
    assert told[4:] == [("accuracy", 0.75), ("mse", 0.01), ("psnr", 20.0)]


@pytest.mark.parametrize("content", ['{"data": "x"}', "no json", "[]", '{"cer": 0.5}', '{"data": "x", "cer": "low"}'])
def test_file_that_is_no_record_is_refused(content, tmp_path):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(ValueError, match="JSON of `hf-vlm evaluate --record` or `--json` is wanted, got odd.json"):
        read_records([tmp_path / "odd.json"])
    with pytest.raises(FileNotFoundError, match="got `.*none.json`, which is no file"):
        read_records([tmp_path / "none.json"])


# Licences


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"a": "mit", "b": "mit"}, "mit"),
        ({"a": "mit", "b": "apache-2.0"}, "apache-2.0"),
        ({"a": "cc0-1.0", "b": "bsd-3-clause"}, "bsd-3-clause"),
        ({"a": "llama2"}, "llama2"),
        ({"a": "cc-by-4.0", "b": "cc-by-4.0"}, "cc-by-4.0"),
    ],
)
def test_licence_follows_from_parts_that_agree(parts, expected):
    assert settle_license(None, parts) == expected


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"a": ""},
        {"a": "mit", "b": ""},
        {"a": "mit", "b": "cc-by-4.0"},
        {"a": "other"},
        {"a": "gpl-3.0", "b": "mit"},
    ],
)
def test_licence_must_be_named_where_parts_do_not_simply_agree(parts):
    told = "; ".join(f"`{role}`: {license or 'not recorded'}" for role, license in parts.items()) or "no part with one"
    with pytest.raises(ValueError, match=r"Name it by `license` \(`--license`\)") as error:
        settle_license(None, parts)
    assert all(piece in str(error.value) for piece in told.split("; "))


@pytest.mark.parametrize(
    ("wanted", "part"),
    [
        ("apache-2.0", "cc-by-nc-4.0"),
        ("apache-2.0", "llama2"),
        ("mit", "apache-2.0"),
        ("cc0-1.0", "mit"),
        ("gpl-3.0", "cc-by-nc-4.0"),
        ("cc-by-nc-4.0", "llama2"),
        ("apache-2.0", "other (a-name, https://x.org)"),
    ],
)
def test_licence_that_allows_more_than_a_part_is_refused(wanted, part):
    with pytest.raises(ValueError, match=re.escape(f"that of its part `vision`, {part}, got `{wanted}`")):
        settle_license(wanted, {"vision": part})
    assert settle_license("other", {"vision": part}) == "other"


@pytest.mark.parametrize(
    ("wanted", "part"),
    [("apache-2.0", "mit"), ("mit", "bsd-3-clause"), ("cc-by-nc-4.0", "apache-2.0"), ("llama2", "llama2"), ("mit", "")],
)
def test_licence_that_allows_no_more_is_taken(wanted, part):
    assert settle_license(wanted, {"vision": part}) == wanted


@pytest.mark.parametrize(("wanted", "near"), [("apache2", "apache-2.0"), ("MIT", "mit"), ("cc-by-nc", "cc-by-nc-")])
def test_unknown_licence_is_refused_with_the_nearest(wanted, near):
    with pytest.raises(ValueError, match=rf"got '{wanted}'. Did you mean `{near}"):
        settle_license(wanted, {})
    assert len(set(KNOWN_LICENSES)) == len(KNOWN_LICENSES)


def test_licence_of_a_card_follows_its_parts(runs, tmp_path):
    assert card_of(runs("llava"), tmp_path / "a", license=None).data.license == "apache-2.0"  # mit and apache-2.0
    with pytest.raises(ValueError, match="that of its part `vision`, cc-by-nc-4.0, got `apache-2.0`"):
        card_of(runs("trocr-caption"), tmp_path, license="apache-2.0")
    with pytest.raises(ValueError, match="got `vision`: cc-by-nc-4.0, `decoder`: mit. Name it"):
        card_of(runs("trocr-caption"), tmp_path, license=None)
    with pytest.raises(ValueError, match="got no part with one. Name it"):
        card_of(runs("vit"), tmp_path, license=None)
    assert not (tmp_path / "README.md").exists()


def test_licence_other_wants_name_and_link(runs, tmp_path):
    with pytest.raises(ValueError, match="The licence `other` wants a name and a link"):
        card_of(runs("vit"), tmp_path, license="other", license_name="my-terms")
    link = "https://example.org/terms"
    card = card_of(runs("vit"), tmp_path, license="other", license_name="my-terms", license_link=link)
    assert (card.data.license, card.data.license_name, card.data.license_link) == ("other", "my-terms", link)
    assert f"[my-terms]({link})" in card.text
    again = ModelCard.load(write_card(runs("vit"), out=tmp_path / "README.md"))
    assert again.data.license_name == "my-terms"
    with pytest.raises(ValueError, match="are for the licence `other`, got them with `mit`"):
        card_of(runs("vit"), tmp_path, license="mit", license_name="my-terms")


# What is there already


def test_text_and_header_of_the_author_stay(runs, tmp_path):
    file = tmp_path / "README.md"
    card_of(runs("vit"), tmp_path, limits="Not for medical pictures.")
    text = file.read_text()
    text = (
        text.replace("<!-- hf-vlm: begin use -->", "My own words.\n\n<!-- hf-vlm: begin use -->")
        + "\n## Thanks\n\nTo all.\n"
    )
    text = text.replace("pip install hf-vlm", "pip install something-else")  # within marks: is written anew
    file.write_text(
        text.replace("library_name: transformers", "library_name: transformers\ndatasets:\n- me/mine\nthumbnail: a.png")
    )
    card = ModelCard.load(write_card(runs("vit"), out=file, limits="Not for medical pictures."))
    body = card.text
    assert body.index("end summary") < body.index("My own words.") < body.index("begin use")
    assert body.rstrip().endswith("## Thanks\n\nTo all.") and body.count("Not for medical pictures.") == 1
    assert "something-else" not in body and card.data.datasets == ["me/mine"] and card.data.thumbnail == "a.png"
    assert card.data.license == "cc-by-nc-4.0"
    written = file.read_bytes()
    write_card(runs("vit"), out=file)
    assert file.read_bytes() == written


def test_handwritten_card_is_not_touched(runs, tmp_path):
    file = tmp_path / "README.md"
    file.write_text("---\nlicense: mit\n---\n# My model\n\nIt is mine.\n")
    before = file.read_bytes()
    with pytest.raises(
        ValueError, match=r"got one written by hand, which stays as it is. Write elsewhere with `out` \(`--out FILE`\)"
    ):
        card_of(runs("vit"), tmp_path)
    assert file.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_form_of_peft_is_no_handwriting_until_it_is_filled_in(runs):
    form = ModelCard.load(runs("lora") / "README.md").text
    assert "More Information Needed" in form and not is_handwritten(form)
    assert is_handwritten(form.replace("[More Information Needed]", "My model.", 1))


def test_sections_keep_their_places():
    first = join_sections({"a": "one", "b": "two"}, None)
    moved = first.replace("<!-- hf-vlm: begin b -->", "mine\n\n<!-- hf-vlm: begin b -->")
    again = join_sections({"a": "1", "new": "N", "b": "2", "last": "L"}, moved)
    order = [again.index(word) for word in ("\n1\n", "\nN\n", "mine", "\n2\n", "\nL\n")]
    assert order == sorted(order) and "one" not in again and "two" not in again
    without = join_sections({"b": "2"}, moved)
    assert "begin a" not in without and "mine" in without and "one" not in without


@pytest.mark.parametrize(
    "text",
    [
        "<!-- hf-vlm: begin a -->\nx\n",
        "<!-- hf-vlm: end a -->\n",
        "<!-- hf-vlm: begin a -->\n<!-- hf-vlm: begin b -->\n<!-- hf-vlm: end a -->\n<!-- hf-vlm: end b -->\n",
        "<!-- hf-vlm: begin a -->\n<!-- hf-vlm: end a -->\n<!-- hf-vlm: begin a -->\n<!-- hf-vlm: end a -->\n",
    ],
)
def test_marks_out_of_place_are_refused(text):
    with pytest.raises(ValueError, match="The marks of `hf-vlm card` in README.md must come in pairs"):
        join_sections({"a": "one"}, text)


# Adapters, merged models, folders of others


def test_card_of_an_adapter(runs, tmp_path, capsys, monkeypatch):
    adapter, base = runs("lora"), runs("llava")
    card = card_of(adapter, tmp_path, license=None, name="tiny-adapter")
    assert card.data.library_name == "peft" and card.data.license == "apache-2.0" and "lora" in card.data.tags
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.base_model is None  # the base has no Hub name
    assert "kind: LORA, rank 2, alpha 4" in card.text and "parts with adapters: `language`" in card.text
    assert "trained in full and saved with it: `projector`" in card.text
    for role, sha256 in json.loads((adapter / "base_weights.json").read_text())["sha256"].items():
        assert f"| {role} | `{sha256}` |" in card.text
    monkeypatch.chdir(base.parent)  # where the base has the name that the card gives it
    run_program(card, adapter, tmp_path, capsys)


@pytest.mark.parametrize("named", ["./llava", "../llava", ["./llava"]])
def test_card_of_an_adapter_drops_the_folder_that_peft_named_as_its_base(runs, tmp_path, named):
    adapter = copied(runs("lora"), tmp_path / "adapter")
    settings = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": "./llava"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    header = {"base_model": named, "base_model_relation": "adapter", "tags": ["base_model:adapter:./llava", "mine"]}
    (adapter / "README.md").write_text(f"---\n{yaml.safe_dump(header)}---\n")
    card = ModelCard.load(write_card(adapter, license="apache-2.0"))
    assert card.data.base_model is None and card.data.to_dict().get("base_model_relation") is None
    assert "mine" in card.data.tags and not any("base_model" in tag for tag in card.data.tags)
    assert "base_model:" not in (adapter / "README.md").read_text() and "./llava" not in card.text


def test_damaged_report_or_hashes_stop_no_card(runs, tmp_path):
    folder = copied(runs("llava"), tmp_path / "model")
    (folder / "weight_report.json").write_text("{")
    with pytest.warns(UserWarning, match="Without a report of the model's parts"):
        write_card(folder, license="apache-2.0")
    adapter = copied(runs("lora"), tmp_path / "adapter")
    (adapter / "base_weights.json").write_text('{"sha256": ["x"]}')
    write_card(adapter, license="apache-2.0")


def test_merged_and_saved_again_models_keep_their_report(runs, tmp_path):
    merged = tmp_path / "merged"
    merge_adapter(runs("lora"), merged, base=runs("llava"))
    report, base = WeightReport.load(merged), WeightReport.load(runs("llava"))
    assert [(part.name, part.source, part.license) for part in report.parts] == [
        (part.name, part.source, part.license) for part in base.parts
    ]
    assert changed_parts(merged) == [] and report["vision"].sha256 == base["vision"].sha256
    assert report["language"].sha256 != base["language"].sha256
    assert "`vision`" in write_card(merged).read_text()


def test_merged_model_keeps_what_the_run_of_its_adapter_left_behind(runs, tmp_path):
    merged = tmp_path / "merged"
    merge_adapter(runs("lora"), merged, base=runs("llava"))
    card, of_adapter = ModelCard.load(write_card(merged)), card_of(runs("lora"), tmp_path)
    assert section_of(card, "data") == section_of(of_adapter, "data")
    assert "trained for the task `chat`" in card.text and "- steps of the optimizer: 1\n" in card.text
    assert "LoRA, rank 2" in card.text and str(tmp_path) not in (merged / MERGED_FILE).read_text()


@pytest.fixture
def merged_reader(tmp_path, monkeypatch):
    """Of an adapter on a reader under Apache-2.0, both with a notice, and neither with a report or a run."""
    monkeypatch.chdir(tmp_path)
    tiny_reader().save_pretrained("base")
    Path("base", "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    Path("base", "LICENSE").write_text("Terms of the base.")
    Path("base", "NOTICE").write_text("By the base's authors.")
    model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained("base")
    save_adapter(add_lora(model, LoraSection(rank=2, alpha=4)), "adapter")
    Path("adapter", "NOTICE").write_text("By the adapter's author.")
    merge_adapter("adapter", "merged")
    return tmp_path / "merged"


@pytest.mark.parametrize("is_base_gone", [False, True])
def test_licence_of_a_merged_model_follows_that_of_its_base(is_base_gone, merged_reader, tmp_path):
    if is_base_gone:
        (tmp_path / "base").rename(tmp_path / "moved")
    for settings in ({}, {"out": tmp_path / "elsewhere" / "card.md"}):
        with pytest.raises(ValueError, match="that of its part `base`, apache-2.0, got `mit`"):
            write_card(merged_reader, license="mit", **settings)
        card = ModelCard.load(write_card(merged_reader, **settings))
        assert card.data.license == "apache-2.0" and "Trained on from base." in card.text
    assert main(["card", str(merged_reader), "--license", "mit"]) == 1


def test_licence_of_an_adapter_on_a_merged_model_follows_that_of_the_first_base(merged_reader, tmp_path):
    model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained("merged")
    save_adapter(add_lora(model, LoraSection(rank=2, alpha=4)), "second")
    assert ModelCard.load(write_card("second")).data.license == "apache-2.0"
    Path("second", "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    merge_adapter("second", "merged-again")
    record = read_merge_record("merged-again")
    assert record["base"] == {"name": "./merged", "license": "apache-2.0"}
    assert record["adapter"] == {"name": "./second", "license": "cc-by-nc-4.0"}
    with pytest.raises(ValueError, match="that of its part `adapter`, cc-by-nc-4.0, got `apache-2.0`"):
        write_card("merged-again", license="apache-2.0")


def test_merging_takes_licence_and_notices_along(merged_reader):
    assert (merged_reader / "LICENSE").read_text() == "Terms of the base."
    assert (merged_reader / "NOTICE").read_text() == "By the base's authors.\n\nBy the adapter's author."


def test_merging_refuses_a_folder_that_holds_something(merged_reader, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "LICENSE").write_text("mine")
    with pytest.raises(ValueError, match="`out` must be a new or an empty folder, got mine. Name another one."):
        merge_adapter("adapter", "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["LICENSE"]
    (tmp_path / "empty").mkdir()
    merge_adapter("adapter", "empty")


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_card_beside_the_weights_binds_the_licence(is_elsewhere, runs, tmp_path):
    run = copied(runs("vit"), tmp_path / "run")
    write_card(run, license="apache-2.0")
    out = tmp_path / "card.md" if is_elsewhere else None
    with pytest.raises(ValueError, match="the card that lies beside the weights says, apache-2.0, got `mit`"):
        write_card(run, license="mit", out=out)
    assert ModelCard.load(write_card(run, out=out)).data.license == "apache-2.0"
    assert ModelCard.load(write_card(run, license="cc-by-4.0", out=out)).data.license == "cc-by-4.0"


@pytest.mark.parametrize(
    ("model_type", "pipeline"),
    [
        ("hf_vlm_trocr", "text-recognition"),
        ("hf_vlm_cnn_lstm", "image-captioning"),
        ("hf_vlm_llava", "image-text-to-text"),
    ],
)
def test_model_without_a_recipe_has_the_pipeline_of_its_architecture(model_type, pipeline):
    assert f'pipeline("{pipeline}", ' in usage(model_type, "", "", "x")


def test_reader_without_a_recipe_is_offered_for_text(merged_reader):
    assert 'pipeline("text-recognition", model="merged")' in write_card(merged_reader).read_text()


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("name", ['a "quoted" name', "back\\new", "it's"])
def test_programs_hold_any_name(model_type, name):
    programs = [
        usage(model_type, "", "", name),
        code_usage(model_type, "", "", name),
        adapter_usage(model_type, "", "", name, name, has_processor=True),
        adapter_usage(model_type, "", "", "x", name, has_processor=False),
    ]
    for program in programs:
        words = [node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)]
        assert name in words


@pytest.mark.parametrize("file_name", ["em oji.png", "brackets (1).png", "100%.png", "smile \N{GRINNING FACE}.png"])
def test_picture_of_any_name_is_shown_and_stays(file_name, runs, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / file_name)
    out = tmp_path / "card"
    card = card_of(runs("vit"), out, picture=tmp_path / file_name, name="a [good] model")
    (shown,) = re.findall(r"^!\[a \\\[good\\\] model\]\((\S+)\)$", card.text, re.MULTILINE)
    assert unquote(shown) == file_name and "(" not in shown and (out / file_name).is_file()
    assert card_of(runs("vit"), out, name="a [good] model").text == card.text


def test_commands_hold_any_name(runs, tmp_path):
    name = "it's a model"
    for kind in ("vit", "lora"):
        text = card_of(runs(kind), tmp_path / kind, name=name).text
        (commands,) = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
        commands = re.findall(r"`(hf-vlm merge .*?)`", text) if kind == "lora" else commands.splitlines()
        for command in commands:
            assert name in [word.removeprefix("model.pretrained=") for word in shlex.split(command)]


def test_limits_that_occur_in_other_text_are_not_dropped(runs, tmp_path):
    card = card_of(runs("vit"), tmp_path, limits="No evaluation")  # which the card says too, of itself
    assert card.text.count("\n\nNo evaluation\n\n") == 1
    file = tmp_path / "README.md"
    file.write_text(file.read_text() + "\nNot for medical pictures, nor for others.\n")
    card = card_of(runs("vit"), tmp_path, limits="Not for medical pictures")
    assert "\n\nNot for medical pictures\n\n" in card.text
    again = card_of(runs("vit"), tmp_path, limits="Not for medical pictures")
    assert again.text == card.text


def test_card_that_is_to_be_a_folder_is_refused_before_anything_is_written(runs, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "shown.png")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"`out` \(`--out`\) must be the file of the card, got the folder .*out. Name"):
        write_card(runs("vit"), license="mit", picture=tmp_path / "shown.png", out=tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "shown.png"]
    assert not list((tmp_path / "out").iterdir())


def test_card_that_fails_leaves_nothing(runs, tmp_path, monkeypatch):
    def full(self, *args, **settings):
        raise OSError("no room")

    Image.new("RGB", (8, 8)).save(tmp_path / "shown.png")
    (tmp_path / "out").mkdir()
    with monkeypatch.context() as broken, pytest.raises(OSError, match="no room"):
        broken.setattr(Path, "write_text", full)
        card_of(runs("vit"), tmp_path / "out", picture=tmp_path / "shown.png")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", ["llava", "cnn-lstm", "trocr-caption", "trocr-vqa"])
def test_run_and_checkpoint_of_an_assembled_model_have_a_report_of_their_weights(kind, runs):
    run = runs(kind)
    for folder in (run, run / "checkpoint-1"):
        assert changed_parts(folder) == [] and any(part.license for part in WeightReport.load(folder).parts)


@pytest.mark.parametrize("kind", ["trocr-vqa", "vit", "vae"])
def test_card_of_a_folder_with_code_uses_its_code_and_keeps_what_the_run_told(kind, runs, tmp_path):
    run = copied(runs(kind), tmp_path / "run")
    before = ModelCard.load(write_card(run, license="cc-by-nc-4.0", name=f"tiny-{kind}"))
    exported = export_code(run, tmp_path / "exported")
    assert not (exported / "recipe.yaml").exists()
    card = ModelCard.load(write_card(exported))
    assert "trust_remote_code=True" in card.text and "import hf_vlm" not in card.text
    for name in ("data", "training", "figures"):
        assert section_of(card, name) == section_of(before, name)
    assert card.data.pipeline_tag == before.data.pipeline_tag and card.data.tags == before.data.tags
    assert card.data.license == before.data.license and f"task `{KINDS[kind][1]}`" in card.text


def section_of(card: ModelCard, name: str) -> str:
    return card.text.split(f"<!-- hf-vlm: begin {name} -->")[1].split(f"<!-- hf-vlm: end {name} -->")[0]


@pytest.mark.parametrize("kind", ["trocr-vqa", "vit"])
def test_program_of_a_folder_with_code_runs_without_hf_vlm(kind, runs, tmp_path):
    exported = export_code(runs(kind), tmp_path / "exported")
    card = ModelCard.load(write_card(exported, license="cc-by-nc-4.0"))
    (program,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    Image.new("RGB", (40, 32), (200, 60, 30)).save(tmp_path / "picture.png")
    blocked = f"import sys\nsys.modules['hf_vlm'] = None\n{program}\nassert model.__module__.startswith('transformers_modules')"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", blocked], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("torch.Size([1, 3])" in done.stdout) == (kind == "vit") and done.stdout.strip() != "{}"


def test_folder_that_is_none_of_ours_is_refused(runs, tmp_path):
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)).save_pretrained(
        tmp_path / "vit"
    )
    with pytest.raises(ValueError, match="A model of hf-vlm is wanted, of type .*got `vit` in"):
        write_card(tmp_path / "vit", license="mit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="with `config.json` or `adapter_config.json`, got .*empty without"):
        write_card(tmp_path / "empty", license="mit")
    (tmp_path / "empty" / "checkpoint-5").mkdir()
    with pytest.raises(ValueError, match="it has `checkpoint-5`: name one of them, or go on with the run.$"):
        write_card(tmp_path / "empty", license="mit")
    with pytest.raises(ValueError, match="For a model of the Hub give `out`"):
        write_card("org/model", license="mit")
    with pytest.raises(
        FileNotFoundError, match="got 'org/model', which is neither here, nor on the Hub or in its cache"
    ):
        write_card("org/model", license="mit", out=tmp_path / "card.md")


def test_folder_without_weights_is_refused(runs, tmp_path):
    run = copied(runs("vit"), tmp_path / "run")
    (run / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="The weights of a model are wanted in"):
        write_card(run, license="mit")
    assert not (run / "README.md").exists()


def test_model_without_a_run_has_a_card_that_says_so(tmp_path, runs):
    VisionTransformerForImageClassification.from_pretrained(runs("vit")).save_pretrained(tmp_path / "model")
    card = ModelCard.load(write_card(tmp_path / "model", license="mit"))
    assert "## Training" not in card.text and "## Data" not in card.text and "trained for the task" not in card.text
    assert "how good it is, is not known" in card.text


def test_model_of_the_hub_names_it(runs, tmp_path, monkeypatch):
    """In a cache laid out as the Hub's client lays it out."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--org--parts"
    snapshot = repository / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    copied(runs("vit"), snapshot)
    (snapshot / "README.md").write_text("---\nlicense: other\nlicense_name: terms\nlicense_link: https://x.org\n---\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    expected = PartSource("org/parts", "other (terms, https://x.org)", commit)
    assert part_source("org/parts") == part_source(snapshot) == expected
    with pytest.raises(ValueError, match="the card that lies beside the weights says, other .*, got `mit`"):
        write_card("org/parts", license="mit", out=tmp_path / "card.md")
    card = write_card("org/parts", out=tmp_path / "card.md").read_text()
    assert 'model="org/parts"' in card and "name: org/parts" in card and "license_link: https://x.org" in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hf-vlm evaluate /tmp/runs/x /home/me/data --record=/a/b.json", "hf-vlm evaluate x data --record=b.json"),
        ("../../tmp/runs/x and ~/data/y and runs/z", "x and y and runs/z"),
        (r"C:\Users\me\model", "model"),
        ("https://huggingface.co/org/name and org/name", "https://huggingface.co/org/name and org/name"),
        ("a/b 3/4 and/or", "a/b 3/4 and/or"),
    ],
)
def test_published_text_has_no_folders_of_this_machine(text, expected):
    assert published(text) == expected
