"""A recipe's `lora`: adapters learn where whole weights would, in every family of recipes, and runs go on exactly."""

import contextlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification, TrainerCallback

from hf_vlm import TrOCREncoderDecoderForConditionalGeneration, VisionTransformerForImageClassification
from hf_vlm.cli import main
from hf_vlm.parts.base_weights import BASE_FILE
from hf_vlm.training import image_classification, image_tokenization, picture_text, trocr
from hf_vlm.training.dry_run import dry_run
from hf_vlm.training.lora import merge_adapter
from hf_vlm.training.scores.evaluation import evaluate_folders
from hf_vlm.training.scores.image_evaluation import evaluate_image_folders
from hf_vlm.training.tasks import load_recipe, train
from tests.tiny_lines import tiny_recipe, write_splits
from tests.training.tiny_pictures import tiny_picture_recipe, write_picture_splits, write_pictures
from tests.training.tiny_tasks import write_decoder_parts, write_task_sets

LORA = {"rank": 2, "alpha": 4, "dropout": 0.1}
MODULES = {
    "trocr": trocr,
    "classification": image_classification,
    "masked": image_classification,
    "vqvae": image_tokenization,
    "caption": picture_text,
}


class Stop(TrainerCallback):
    """Ctrl-C one step behind a checkpoint."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def recipe_of(sections, *overrides):
    file = Path("recipe.yaml")
    file.write_text(yaml.safe_dump(sections), encoding="utf-8")
    return load_recipe(file, overrides)


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sections_of(kind: str) -> dict:
    """A recipe from scratch of one step, and data; `adapting` makes one with adapters of it."""
    if kind == "trocr":
        sections = tiny_recipe(write_splits(Path("data")), "scratch")
    elif kind == "caption":
        write_task_sets(Path("data"))
        write_decoder_parts(Path("data"))
        sections = {
            "task": "caption",
            "architecture": "cnn_lstm",
            "model": {
                "vision": "data/efficientnet-lite0",
                "text": "words",
                "min_word_count": 1,
                "settings": {"attention": "additive", "hidden_size": 24, "embedding_size": 16},
            },
            "data": {
                "folder": "data",
                "train": [{"path": "photo_captions", "split": "train"}],
                "validation": {"captions": {"path": "photo_captions", "split": "validation"}},
            },
            "training": {
                "output_dir": "scratch",
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-2,
                "logging_steps": 1,
                "report_to": "none",
                "disable_tqdm": True,
            },
        }
    else:
        task = {"classification": "image-classification", "masked": "masked-image-modeling"}
        sections = tiny_picture_recipe(
            write_picture_splits(Path("data")), "scratch", task.get(kind, "image-tokenization")
        )
        if kind == "vqvae":
            sections["model"]["config"] = {
                "model_type": "hf_vlm_vqvae",
                "image_size": 16,
                "hidden_channels": [8, 8],
                "num_codes": 16,
                "code_dim": 4,
            }
    sections["training"] |= {"max_steps": 1, "save_steps": 2, "eval_steps": 2}
    return sections


def adapting(sections: dict, output_dir: str) -> dict:
    training = {**sections["training"], "output_dir": output_dir, "max_steps": 4, "learning_rate": 1e-2}
    kept = {name: value for name, value in sections.items() if name not in ("model", "training")}
    return {**kept, "model": {"pretrained": "scratch"}, "lora": dict(LORA), "training": training}


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in ("trocr", "classification") else pytest.mark.slow) for kind in MODULES],
)
def test_interrupted_run_goes_on_to_the_adapter_of_the_uninterrupted_one(kind, monkeypatch):
    sections = sections_of(kind)
    train(recipe_of(sections))
    base = load_file("scratch/model.safetensors")
    whole = train(recipe_of(adapting(sections, "whole")))
    assert whole.state.global_step == 4
    stopped = recipe_of(adapting(sections, "stopped"))
    with monkeypatch.context() as patch:
        trainer = MODULES[kind].build_trainer(stopped)
        trainer.add_callback(Stop())
        patch.setattr(MODULES[kind], "build_trainer", lambda recipe: trainer)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    resumed = train(stopped)
    assert resumed.state.global_step == 4
    for name in ("adapter_model.safetensors", "checkpoint-4/adapter_model.safetensors", f"checkpoint-4/{BASE_FILE}"):
        if name.endswith(".json"):
            assert Path("stopped", name).read_text() == Path("whole", name).read_text()
            continue
        weights, of_whole = load_file(f"stopped/{name}"), load_file(f"whole/{name}")
        assert weights.keys() == of_whole.keys()
        assert all(torch.equal(weights[key], of_whole[key]) for key in weights), name
    assert any(bool(value.any()) for key, value in weights.items() if "lora_B" in key)
    assert not Path("stopped/model.safetensors").exists()
    assert load_file("scratch/model.safetensors").keys() == base.keys()
    assert json.loads(Path("stopped/adapter_config.json").read_text())["base_model_name_or_path"] == "./scratch"


def test_reader_with_adapters_is_evaluated_merged_and_read_with(work, capsys):
    sections = sections_of("trocr")
    train(recipe_of(sections))
    trainer = train(recipe_of({**adapting(sections, "adapter"), "generation": {"max_new_tokens": 5}}))
    learning = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert learning and all(".decoder.model.layers." in name and ".lora_" in name for name in learning)
    scores = dict(evaluate_folders("adapter", ["data"], split="validation"))["data"]
    model = TrOCREncoderDecoderForConditionalGeneration.from_pretrained("adapter")
    assert model.generation_config.max_new_tokens == 5
    merge_adapter("adapter", "merged")
    assert dict(evaluate_folders("merged", ["data"], split="validation"))["data"].cer == scores.cer
    batch = next(iter(trainer.get_train_dataloader()))
    logits = {}
    for folder in ("adapter", "merged", "scratch"):
        capsys.readouterr()
        assert main(["read", "data/train/line_1.png", "--model", folder]) == 0
        assert capsys.readouterr().out.startswith("data/train/line_1.png\t")
        with torch.no_grad():
            logits[folder] = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(folder)(**batch).logits
    torch.testing.assert_close(logits["adapter"], logits["merged"], rtol=0, atol=1e-4)
    assert (logits["adapter"] - logits["scratch"]).abs().max() > 1e-3
    assert main(["read", "data/train/line_1.png", "--model", "adapter", "--precision", "int8"]) == 1
    assert "Merge it first: `hf-vlm merge adapter" in capsys.readouterr().err
    assert main(["evaluate", "adapter", "data", "--split", "validation"]) == 0


def test_classifier_of_other_classes_keeps_its_base_with_the_new_head(work):
    sections = sections_of("classification")
    train(recipe_of(sections))
    write_pictures(work / "other" / "train", 8, ("red", "blue"))
    write_pictures(work / "other" / "validation", 3, ("red", "blue"), seed=1)
    adapted = adapting(sections, "adapter")
    adapted["data"]["folder"] = "other"
    trainer = train(recipe_of(adapted))
    learning = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert all(".lora_" in name or "classifier.modules_to_save." in name for name in learning)
    stored = json.loads((work / "adapter" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == "./adapter/base"
    model = AutoModelForImageClassification.from_pretrained("adapter")
    assert type(model) is VisionTransformerForImageClassification and sorted(model.config.label2id) == ["blue", "red"]
    scores = dict(evaluate_image_folders("adapter", ["other"], split="validation"))["other"]
    (work / "adapter").rename(work / "moved")  # its base moves with it
    assert dict(evaluate_image_folders("moved", ["other"], split="validation"))["other"].accuracy == scores.accuracy
    merge_adapter("moved", "merged")
    assert (work / "merged" / "preprocessor_config.json").is_file()
    assert dict(evaluate_image_folders("merged", ["other"], split="validation"))["other"].accuracy == scores.accuracy


def test_best_adapter_of_a_run_is_kept(work):
    sections = sections_of("classification")
    train(recipe_of(sections))
    trainer = train(recipe_of(adapting(sections, "adapter"), "training.learning_rate=0.3", "training.eval_steps=2"))
    best = trainer.state.best_model_checkpoint
    assert best is not None
    weights, kept = load_file(Path(best) / "adapter_model.safetensors"), load_file("adapter/adapter_model.safetensors")
    assert all(torch.equal(weights[name], kept[name]) for name in kept)


def test_codebook_of_the_base_stays_while_a_tokenizer_adapts(work):
    sections = sections_of("vqvae")
    train(recipe_of(sections))
    before = load_file("scratch/model.safetensors")["codebook.codewords"]
    trainer = train(recipe_of(adapting(sections, "adapter")))  # a base that moves is warned of
    assert torch.equal(trainer.model.get_base_model().codebook.codewords, before)


def test_dry_run_tells_what_adapters_train(work):
    sections = sections_of("trocr")
    train(recipe_of(sections))
    told = dry_run(recipe_of(adapting(sections, "adapter")))
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if len(line.split()) == 3}
    assert rows["encoder.vision_model"][1] == "0" and int(rows["decoder.model"][1].replace(",", "")) > 0


@pytest.mark.parametrize("kind", ["trocr", "classification", "vqvae"])
def test_adapters_want_a_pretrained_model(work, kind):
    sections = sections_of(kind)
    with pytest.raises(ValueError, match="`lora` wants a base that the adapter finds again, `model.pretrained`"):
        recipe_of({**sections, "lora": LORA})


@pytest.mark.parametrize(
    ("kind", "section", "settings", "told"),
    [
        ("classification", "optimizer", {"layer_decay": 0.8}, "`optimizer.layer_decay` is for whole weights, got 0.8"),
        ("vqvae", "optimizer", {"weight_average": 0.9}, "`optimizer.weight_average` is of whole weights, got 0.9"),
        ("caption", "parts", {"train": ["decoder"]}, "`lora.train` tells what trains in full beside adapters"),
        ("trocr", "lora", {"rank": 0}, "`lora.rank` must be 1 or more, got 0"),
        ("trocr", "lora", {"ranc": 4}, "Did you mean `lora.rank`"),
    ],
)
def test_settings_that_adapters_contradict_are_refused(work, kind, section, settings, told):
    with pytest.raises(ValueError, match=told):
        recipe_of({**adapting(sections_of(kind), "adapter"), section: settings})


def test_unknown_role_and_quantisation_are_refused_before_training(work):
    sections = sections_of("trocr")
    train(recipe_of(sections))
    for settings, told in (
        ({"roles": ["language"]}, "`lora.roles` must name parts of the model, `vision`, `decoder`, got `language`"),
        ({"quantization": "nf4"}, "`lora.quantization` is for recipes of LLaVA"),
    ):
        with pytest.raises(ValueError, match=told):
            trocr.build_trainer(recipe_of({**adapting(sections, "adapter"), "lora": settings}))


def test_checkpoints_of_other_adapters_are_refused(work):
    sections = sections_of("trocr")
    train(recipe_of(sections))
    train(recipe_of(adapting(sections, "adapter"), "training.max_steps=2"))
    for lora in ({**LORA, "rank": 4}, None):
        with pytest.raises(ValueError, match=r"another `lora\..*--no-resume"):
            train(recipe_of({**adapting(sections, "adapter"), "lora": lora}))


def test_model_of_another_library_is_refused(work):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sections = sections_of("classification")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **shape)).save_pretrained("scratch")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained("scratch")
    with pytest.raises(ValueError, match="A model of hf-vlm is wanted, .* got a `ViTForImageClassification`"):
        image_classification.build_trainer(recipe_of(adapting(sections, "adapter")))


def of_other_classes(work: Path) -> dict:
    """A trained classifier of three classes, and a recipe that adapts it to two others: its head is a new one."""
    sections = sections_of("classification")
    train(recipe_of(sections))
    write_pictures(work / "other" / "train", 8, ("red", "blue"))
    write_pictures(work / "other" / "validation", 3, ("red", "blue"), seed=1)
    adapted = adapting(sections, "adapter")
    adapted["data"] = {**adapted["data"], "folder": "other"}
    return adapted


def test_dry_run_writes_no_base(work):
    dry_run(recipe_of(of_other_classes(work)))
    assert not Path("adapter/base").exists()


def test_base_of_finished_adapters_is_never_written_over(work):
    adapted = of_other_classes(work)
    train(recipe_of(adapted, "training.max_steps=2"))
    files = {path.name: path.read_bytes() for path in Path("adapter/base").iterdir()}
    recipe = Path("adapter/recipe.yaml").read_text()
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= set(files)
    dry_run(recipe_of(adapted, "training.seed=7"))
    with pytest.raises(ValueError, match=r"another `lora\.rank"):
        train(recipe_of(adapted, "lora.rank=3", "training.seed=7"))
    weights = load_file("scratch/model.safetensors")
    weights["vision_model.final_norm.bias"] += 1
    save_file(weights, "scratch/model.safetensors", {"format": "pt"})
    for resume in (True, False):
        with pytest.raises(ValueError, match=r"wanted in adapter/base, got one with another `vision_.*output_dir"):
            train(recipe_of(adapted), resume=resume)
    write_pictures(work / "third" / "train", 8, ("a", "b", "c", "d"))
    write_pictures(work / "third" / "validation", 3, ("a", "b", "c", "d"), seed=1)
    adapted["data"]["folder"] = "third"
    with pytest.raises(ValueError, match="got one with another `id2label"):
        train(recipe_of(adapted), resume=False)
    assert {path.name: path.read_bytes() for path in Path("adapter/base").iterdir()} == files
    assert Path("adapter/recipe.yaml").read_text() == recipe


def test_resumed_run_on_a_base_of_its_own_ends_as_the_uninterrupted_one(work):
    adapted = of_other_classes(work)
    train(recipe_of({**adapted, "training": {**adapted["training"], "output_dir": "whole"}}))
    train(recipe_of(adapted, "training.max_steps=2", "training.lr_scheduler_type=constant"))
    first = Path("adapter/base/model.safetensors").read_bytes()
    assert first == Path("whole/base/model.safetensors").read_bytes()
    trainer = train(recipe_of(adapted))
    assert trainer.state.global_step == 4 and Path("adapter/base/model.safetensors").read_bytes() == first
    assert sorted(path.name for path in Path("adapter").iterdir() if path.name.startswith(".base")) == []
    model = AutoModelForImageClassification.from_pretrained("adapter")  # a base that moved would be warned of
    assert sorted(model.config.label2id) == ["blue", "red"]


@pytest.mark.parametrize("on_each_node", [False, True])
def test_base_is_written_by_the_first_process_of_all_unless_nodes_keep_their_own(work, monkeypatch, on_each_node):
    trainer = image_classification.build_trainer(
        recipe_of(of_other_classes(work), f"training.save_on_each_node={str(on_each_node).lower()}")
    )
    asked = []

    @contextlib.contextmanager
    def first(self, local=True, desc="work"):
        asked.append(local)
        assert not Path("adapter/base").exists()
        yield
        assert Path("adapter/base/config.json").is_file()

    monkeypatch.setattr(type(trainer.args), "main_process_first", first)
    trainer.save_base()
    assert asked == [on_each_node]
