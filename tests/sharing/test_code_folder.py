"""A folder that brings its own code does without hf_vlm what the folder that it was made from does with it.

Oracle: the installed classes on the folder exported from; `bare_process.py` asks both the same.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import torch as safetensors_torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
)

import hf_vlm
from hf_vlm import (
    CnnLstmProcessor,
    DVAEConfig,
    DVAEImageProcessor,
    DVAEModel,
    LlavaVisionLanguageConfig,
    LlavaVisionLanguageForConditionalGeneration,
    LlavaVisionLanguageProcessor,
    SwinTransformerImageProcessor,
    SwinTransformerModel,
    TrOCREncoderDecoderForCausalLM,
    TrOCREncoderDecoderProcessor,
    TrOCREncoderDecoderTextConfig,
    VAEConfig,
    VAEImageProcessor,
    VAEModel,
    VisionTransformerConfig,
    VisionTransformerForImageClassification,
    VisionTransformerForMaskedImageModeling,
    VisionTransformerImageProcessor,
    VisionTransformerModel,
    VQVAEImageProcessor,
)
from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.data.word_tokenizer import build_word_tokenizer
from hf_vlm.models.llava import chat_template
from hf_vlm.parts.hub_config import VERSION_KEY
from hf_vlm.sharing import code_folder, flat_code
from hf_vlm.sharing.cards.model_card import write_card
from hf_vlm.sharing.code_folder import card_asks_for_package, export_code, programs_of
from hf_vlm.sharing.flat_code import check_code, flatten
from hf_vlm.sharing.new_folder import new_folder
from tests.hub_server import HubServer
from tests.models.cnn_lstm.tiny_captioners import tiny_captioner
from tests.models.llava.tiny_llava import LLAMA, NUM_TOKENS, tiny_image_processor, tiny_tokenizer
from tests.models.llava.tiny_llava import randomise as randomise_llava
from tests.models.swin.tiny_swin import tiny_swin
from tests.models.trocr.tiny_models import TEXT_DECODER, randomise, tiny_reader
from tests.sharing import bare_process
from tests.tiny_tokenizers import tiny_vqvae

SIZE = {"size": {"height": 32, "width": 32}}
VIT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SWIN = {"model_type": "hf_vlm_swin", "embed_dim": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "window_size": 4}
VQVAE = {"model_type": "hf_vlm_vqvae", "hidden_channels": [8, 8], "num_residual_blocks": [0, 0], "num_codes": 32}
CLIP = {"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
CLIP |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}


def saved(folder: Path, *parts: Any) -> Path:
    for part in parts:
        if isinstance(part, torch.nn.Module):
            part.eval()
        part.save_pretrained(folder)
    return folder


def save_vit(folder: Path) -> Path:
    config = VisionTransformerConfig(**VIT, num_labels=3)
    model = VisionTransformerForImageClassification(config)
    randomise(model)
    return saved(folder, model, VisionTransformerImageProcessor(**SIZE))


def save_vit_masked(folder: Path) -> Path:
    model = VisionTransformerForMaskedImageModeling(VisionTransformerConfig(**VIT, masked_image_target="pixels"))
    randomise(model, 0.2)
    return saved(folder, model)


def save_vit_on_swin(folder: Path) -> Path:
    config = VisionTransformerConfig(**VIT, patch_size=1, backbone_config={**SWIN, "image_size": 32})
    return saved(folder, VisionTransformerModel(config))


def save_swin(folder: Path) -> Path:
    return saved(folder, tiny_swin(SwinTransformerModel), SwinTransformerImageProcessor(**SIZE))


def save_vae(folder: Path) -> Path:
    model = VAEModel(VAEConfig(image_size=8, hidden_channels=(8, 8), num_residual_blocks=(0, 0), latent_channels=4))
    return saved(folder, model, VAEImageProcessor(size={"height": 8, "width": 8}))


def save_vqvae(folder: Path) -> Path:
    return saved(folder, tiny_vqvae(), VQVAEImageProcessor(size={"height": 8, "width": 8}))


def save_dvae(folder: Path) -> Path:
    config = DVAEConfig(image_size=8, group_channels=8, num_groups=2, code_dim=8, num_codes=64)
    return saved(folder, DVAEModel(config), DVAEImageProcessor(size={"height": 8, "width": 8}))


def save_trocr(folder: Path) -> Path:
    settings = {"keep_aspect_ratio": True, "pad_multiple": 8, "do_convert_grayscale": True}
    image_processor = VisionTransformerImageProcessor(size={"height": 16, "width": 48}, **settings)
    model = tiny_reader(text={"vocab_size": 8}, std=1.0)
    return saved(folder, model, TrOCREncoderDecoderProcessor(image_processor, _letters()))


def save_trocr_on_clip(folder: Path) -> Path:
    model = tiny_reader(vision=CLIP, text={"vocab_size": 8}, std=1.0)
    return saved(folder, model, TrOCREncoderDecoderProcessor(_clip_pictures(), _letters()))


def save_trocr_text(folder: Path) -> Path:
    model = TrOCREncoderDecoderForCausalLM(TrOCREncoderDecoderTextConfig(**TEXT_DECODER))
    randomise(model)
    return saved(folder, model)


def save_cnn_lstm(folder: Path) -> Path:
    return _save_captioner(folder, {**SWIN, "image_size": 32}, attention="additive")


def save_cnn_lstm_on_resnet(folder: Path) -> Path:
    return _save_captioner(folder, None)


def _save_captioner(folder: Path, vision: dict[str, Any] | None, **settings: Any) -> Path:
    tokenizer = build_word_tokenizer(["a dog", "a cat"], min_count=1)
    return saved(folder, tiny_captioner(vision=vision, **settings), CnnLstmProcessor(_clip_pictures(), tokenizer))


def save_llava(folder: Path) -> Path:
    vision = {"model_type": "hf_vlm_vit", **VIT, "image_size": 32, "pooling": "none"}
    return _save_llava(folder, vision, VisionTransformerImageProcessor(**SIZE))


def save_llava_on_swin(folder: Path) -> Path:
    return _save_llava(folder, {**SWIN, "image_size": 32}, SwinTransformerImageProcessor(**SIZE))


def save_llava_on_vqvae(folder: Path) -> Path:
    return _save_llava(folder, {**VQVAE, "image_size": 32}, VQVAEImageProcessor(**SIZE))


def save_llava_on_clip(folder: Path) -> Path:
    return _save_llava(folder, CLIP, _clip_pictures())


def _save_llava(folder: Path, vision: dict[str, Any], image_processor: Any) -> Path:
    language = {**LLAMA, "vocab_size": NUM_TOKENS + 1, "max_position_embeddings": 512}
    settings = {"vision_feature_layer": -1, "image_token_id": NUM_TOKENS}
    config = LlavaVisionLanguageConfig(vision_config=vision, text_config=language, **settings)
    model = LlavaVisionLanguageForConditionalGeneration(config).eval()
    randomise_llava(model)
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(
        image_processor, tiny_tokenizer(), vision_config=model.config.vision_config, vision_feature_layer=-1
    )
    return saved(folder, model, processor)


def _letters() -> Any:
    return build_character_tokenizer(alphabet="abc ")


def _clip_pictures() -> CLIPImageProcessor:
    return tiny_image_processor(32, 32)


FOLDERS = {name.removeprefix("save_"): save for name, save in list(globals().items()) if name.startswith("save_")}


# What differs from folder to folder, once for each


class Exports:
    """Every folder, saved and exported, and what a process without hf_vlm got of the exported ones."""

    def __init__(self, root: Path) -> None:
        self.sources, self.exports, self.root = root / "sources", root / "exports", root
        for name, save in FOLDERS.items():
            torch.manual_seed(0)
            export_code(save(self.sources / name), self.exports / name)
        self.found = run_bare(self.exports, root / "bare")


def run_bare(folders: Path, scratch: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    """What `bare_process.py` finds, in a process that can't import an hf_vlm installed in place: `-S` reads no `.pth` files."""
    scratch.mkdir()
    results = scratch / "results.pt"
    given = {"PYTHONPATH": sysconfig.get_path("purelib"), "HF_HOME": str(scratch / "hf"), "TMPDIR": str(scratch)}
    command = [sys.executable, "-S", bare_process.__file__, str(folders), str(results), *arguments]
    done = subprocess.run(
        command, env={**os.environ, **given, **environment}, capture_output=True, text=True, cwd=scratch
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(results, weights_only=True)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("code"))


def assert_same(found: Any, wanted: Any, where: str) -> None:
    """Tensors and numbers to 1e-5, all else exactly."""
    assert type(found) is type(wanted), f"{where}: {found}"
    if isinstance(wanted, dict):
        assert set(found) == set(wanted), where
        for name, value in wanted.items():
            assert_same(found[name], value, f"{where}, {name}")
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for index, value in enumerate(wanted):
            assert_same(found[index], value, f"{where}, {index}")
    elif isinstance(wanted, torch.Tensor):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5, msg=lambda text: f"{where}: {text}")
    else:
        assert found == (pytest.approx(wanted, abs=1e-5) if isinstance(wanted, float) else wanted), where


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_folder_with_code_does_without_the_package_what_it_does_with_it(exports: Exports, name: str):
    assert_same(exports.found[name], getattr(bare_process, name)(exports.sources / name), name)


def test_package_is_neither_imported_nor_are_its_model_types_registered(exports: Exports):
    assert exports.found["imported"] == [] and exports.found["registered"] == []


@pytest.mark.parametrize("name", ["llava", "trocr", "vit", "vqvae"])
def test_model_saved_again_brings_all_its_code_and_loads(exports: Exports, name: str):
    again = exports.found[f"saved again: {name}"]
    assert again["code"] == sorted(file.name for file in (exports.exports / name).glob("*.py"))
    assert again["auto_map"] == read_json(exports.exports / name / "config.json")["auto_map"]
    assert_same(exports.found[f"loaded again: {name}"], exports.found[name], name)


def test_model_trains_without_the_package_and_loads_what_was_saved(exports: Exports):
    assert exports.found["trained"] == {"loss is a number": True, "all learnt": True, "reloaded": True}


def test_part_saved_by_itself_brings_its_code_and_loads(exports: Exports):
    alone = exports.found["part alone"]
    assert alone["same"] and alone["class"] == "VisionTransformerModel"
    assert alone["code"] == sorted(file.name for file in (exports.exports / "llava").glob("*.py"))


def test_config_model_part_and_processor_are_of_one_copy_of_the_code(exports: Exports):
    assert exports.found["one copy"] == {"config": True, "part": True, "modules": 1}


# With the package


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_installed_classes_win_over_the_code_of_the_folder(exports: Exports):
    folder = exports.exports / "llava"
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    assert type(model) is LlavaVisionLanguageForConditionalGeneration
    assert type(model.vision_model) is VisionTransformerModel
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    assert type(processor) is LlavaVisionLanguageProcessor
    assert type(processor.image_processor) is VisionTransformerImageProcessor
    assert type(AutoConfig.from_pretrained(folder)) is LlavaVisionLanguageConfig  # not even asked to be trusted


@pytest.mark.parametrize("name", ["llava", "vit"])
def test_folder_saved_by_installed_classes_names_no_code_as_it_brings_none(exports: Exports, tmp_path, name: str):
    AutoModel.from_pretrained(exports.exports / name).save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(exports.exports / name).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert not [file.name for file in tmp_path.glob("*.json") if "auto_map" in file.read_text(encoding="utf-8")]


# What is written


def test_every_file_of_code_begins_with_version_and_licence(exports: Exports):
    files = [file for folder in exports.exports.iterdir() for file in folder.glob("*.py")]
    for file in files:
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith(f"# Generated by hf-vlm {hf_vlm.__version__}") and "Apache-2.0" in first, file


def test_only_the_files_needed_are_exported(exports: Exports):
    def architectures(name: str) -> set[str]:
        names = [file.name.split("_") for file in (exports.exports / name).glob("models_*.py")]
        return {words[1] for words in names}

    assert architectures("vit") == architectures("vit_masked") == {"vit"}
    assert architectures("vit_on_swin") == {"vit", "swin"}
    assert architectures("trocr_text") == {"trocr"}
    assert architectures("llava_on_swin") == {"llava", "swin", "vit"}  # the config falls back on a ViT
    on_clip = {file.name for file in (exports.exports / "llava_on_clip").glob("models_vit_*.py")}
    assert on_clip == {"models_vit_configuration_vit.py"}


def test_auto_map_names_every_auto_class_that_serves_the_model(exports: Exports):
    auto_map = read_json(exports.exports / "vit" / "config.json")["auto_map"]
    assert auto_map == {
        "AutoConfig": "auto_classes.VisionTransformerConfig",
        "AutoBackbone": "auto_classes.VisionTransformerBackbone",
        "AutoModel": "auto_classes.VisionTransformerModel",
        "AutoModelForImageClassification": "auto_classes.VisionTransformerForImageClassification",
        "AutoModelForMaskedImageModeling": "auto_classes.VisionTransformerForMaskedImageModeling",
    }
    processors = read_json(exports.exports / "trocr" / "processor_config.json")
    assert processors["auto_map"] == {"AutoProcessor": "auto_classes.TrOCREncoderDecoderProcessor"}
    assert processors["image_processor"]["auto_map"]["AutoImageProcessor"] == {
        "torchvision": "auto_classes.VisionTransformerImageProcessor",
        "pil": "auto_classes.VisionTransformerImageProcessorPil",
    }


def test_weights_card_and_report_come_along_and_a_training_run_stays(tmp_path):
    source = save_vit(tmp_path / "run")
    VisionTransformerForImageClassification.from_pretrained(source).save_pretrained(source, max_shard_size="10KB")
    shards = sorted(file.name for file in source.glob("model-*.safetensors"))
    assert len(shards) > 1
    taken = ("README.md", "LICENSE", "weight_report.json", "samples.png", "additional_chat_templates/rag.jinja")
    left = (
        "trainer_state.json",
        "training_args.bin",
        "projector.safetensors",
        "checkpoint-3/model.safetensors",
        "x.py",
    )
    for name in (*taken, *left):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text('{"parts": []}')
    out = export_code(source, tmp_path / "out")
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert {*taken, *shards, "model.safetensors.index.json"} <= files and not files & set(left)
    assert (out / "README.md").read_text() == (source / "README.md").read_text()
    for name in shards:
        assert (out / name).read_bytes() == (source / name).read_bytes()
        assert not (out / name).samefile(source / name)  # what is saved over it later leaves the source alone
    wanted = AutoModelForImageClassification.from_pretrained(source).state_dict()
    found = AutoModelForImageClassification.from_pretrained(out).state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_exported_folder_can_be_exported_again(exports: Exports, tmp_path):
    again = export_code(exports.exports / "llava", tmp_path / "again")
    for file in (exports.exports / "llava").iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes(), file.name


def test_part_that_was_loaded_with_code_leaves_no_reference_to_it(exports: Exports, tmp_path):
    source = shutil.copytree(exports.sources / "llava", tmp_path / "llava")
    config = read_json(source / "config.json")
    config["vision_config"]["auto_map"] = {"AutoModel": "elsewhere.VisionTransformerModel"}
    (source / "config.json").write_text(json.dumps(config))
    out = export_code(source, tmp_path / "out")
    assert "auto_map" not in read_json(out / "config.json")["vision_config"]


# What is refused


def test_folder_that_holds_something_is_refused(exports: Exports, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="`out` must be a new or an empty folder"):
        export_code(exports.sources / "vit", tmp_path)
    with pytest.raises(ValueError, match="`out` must be a new or an empty folder"):
        export_code(exports.sources / "vit", tmp_path / "config.json")
    (tmp_path / "empty").mkdir()
    assert export_code(exports.sources / "vit", tmp_path / "empty") == tmp_path / "empty"


def test_adapter_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="Merge it first: `hf-vlm merge"):
        export_code(tmp_path, tmp_path / "out")


def test_model_of_another_package_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="begins with `hf_vlm_`, got `vit`"):
        export_code(tmp_path, tmp_path / "out")


def test_folder_without_all_its_weights_is_refused_and_leaves_nothing(exports: Exports, tmp_path):
    source = shutil.copytree(exports.sources / "vit", tmp_path / "vit")
    (source / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="Weights are wanted in"):
        export_code(source, tmp_path / "out")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    with pytest.raises(FileNotFoundError, match="names 1 shards, got none called `model-00001-of-00001.safetensors`"):
        export_code(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def scramble(file: Path) -> None:
    file.write_bytes(bytes(range(100)))


@pytest.mark.parametrize("damage", [cut, scramble])
def test_damaged_weights_are_refused_by_name(exports: Exports, tmp_path, damage: Callable[[Path], None]):
    source = shutil.copytree(exports.sources / "vit", tmp_path / "vit")
    damage(source / "model.safetensors")
    with pytest.raises(ValueError, match=r"vit/model.safetensors` must be a whole safetensors file"):
        export_code(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"hidden_size": 32}, "must have the shapes that its `config.json` asks for"),
        ({"num_hidden_layers": 2}, "must hold every weight of its model, got none for"),
        ({"depth_of_field": 3}, "depth_of_field"),
    ],
)
def test_config_that_does_not_fit_is_refused(exports: Exports, tmp_path, settings: dict, complaint: str):
    source = shutil.copytree(exports.sources / "vit", tmp_path / "vit")
    config = read_json(source / "config.json") | settings
    if "depth_of_field" in settings:  # of a version to come
        config[VERSION_KEY] = "99.0.0"
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=complaint):
        export_code(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["vit"]


def test_missing_shard_tensor_is_refused(exports: Exports, tmp_path):
    source = shutil.copytree(exports.sources / "vit", tmp_path / "vit")
    AutoModelForImageClassification.from_pretrained(source).save_pretrained(source, max_shard_size="10KB")
    shard = sorted(source.glob("model-*.safetensors"))[0]
    safetensors_torch.save_file(
        dict(list(safetensors_torch.load_file(shard).items())[1:]), shard, metadata={"format": "pt"}
    )
    with pytest.raises(ValueError, match="got none for 1 tensors"):
        export_code(source, tmp_path / "out")


def test_damaged_processor_file_is_refused_by_name(exports: Exports, tmp_path):
    source = shutil.copytree(exports.sources / "trocr", tmp_path / "trocr")
    (source / "processor_config.json").write_text('{"a": 1,')
    with pytest.raises(ValueError, match=r"trocr/processor_config.json` must be JSON"):
        export_code(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "file", "of", "wanted"),
    [
        ("trocr", "preprocessor_config.json", "vqvae", "a `TrOCREncoderDecoderProcessor`, got those of a `VQVAEImageP"),
        ("vit", "preprocessor_config.json", "vqvae", "for `hf_vlm_vit`, got those of a `VQVAEImageProcessor"),
        ("vqvae", "preprocessor_config.json", "vit", "for `hf_vlm_vqvae`, got those of a `VisionTransformerImageP"),
        ("vit", None, "trocr", "of an image processor, got those of a `TrOCREncoderDecoderProcessor`"),
        ("llava", "processor_config.json", "llava_on_vqvae", "for `hf_vlm_vit`, got those of a `VQVAEImageProcessor"),
    ],
)
def test_processor_of_another_kind_is_refused(
    exports: Exports, tmp_path, model: str, file: str | None, of: str, wanted: str
):
    source = shutil.copytree(exports.sources / model, tmp_path / model)
    if file is None or file == "preprocessor_config.json":
        (source / "processor_config.json").unlink(missing_ok=True)
    for taken in exports.sources.joinpath(of).iterdir():
        if taken.name == file or (file is None and taken.name not in ("config.json", "model.safetensors")):
            shutil.copy(taken, source)
    with pytest.raises(ValueError, match=wanted):
        export_code(source, tmp_path / "out")


def test_name_that_is_nowhere_is_refused_by_its_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^`config.json` wanted in"):
        export_code(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize("by", ["folder", "link", "link to nothing"])
def test_empty_folder_that_is_there_stays_the_same_folder(exports: Exports, tmp_path, by: str):
    real = tmp_path / "real"
    if by != "link to nothing":
        real.mkdir()
    out = real
    if by != "folder":
        out = tmp_path / "link"
        out.symlink_to(real)
    number = real.stat().st_ino if real.exists() else None
    export_code(exports.sources / "vit", out)
    assert (tmp_path / "link").is_symlink() == (by != "folder")
    assert number in (None, real.stat().st_ino)  # a mounted volume can't be replaced
    assert {path.name for path in real.iterdir()} == {path.name for path in (exports.exports / "vit").iterdir()}


def test_failure_in_a_folder_that_is_there_leaves_it_empty(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    rename, done = Path.rename, []

    def rename_once(path: Path, target: Path) -> Path:
        if done:
            raise OSError("gone")
        done.append(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_once)
    with pytest.raises(OSError, match="gone"), new_folder(tmp_path / "out") as written:
        for name in ("a", "b"):
            (written / name).mkdir()
            (written / name / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not list((tmp_path / "out").iterdir())
    monkeypatch.undo()
    with pytest.raises(ValueError, match="must stay empty"), new_folder(tmp_path / "out"):
        (tmp_path / "out" / "of another").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["of another"]


def test_card_of_ours_is_written_anew_and_one_by_hand_stays(exports: Exports, tmp_path):
    source = shutil.copytree(exports.sources / "vit", tmp_path / "vit")
    card = write_card(source, license="mit", name="cats")
    card.write_text(card.read_text() + "\nMine.\n")
    assert "pip install hf-vlm" in card.read_text()
    out = export_code(source, tmp_path / "out")
    text = (out / "README.md").read_text()
    assert "pip install hf-vlm" not in text and "trust_remote_code=True" in text
    assert "Mine." in text and "model_name: cats" in text and not card_asks_for_package(out)
    card.write_text("# Cats\n\n`pip install hf-vlm`\n")
    out = export_code(source, tmp_path / "again")
    assert (out / "README.md").read_text() == card.read_text() and card_asks_for_package(out)


@pytest.mark.parametrize(
    ("name", "loaders"),
    [
        ("vit", ["AutoModelForImageClassification", "AutoImageProcessor"]),
        ("vit_masked", ["AutoModelForMaskedImageModeling"]),
        ("trocr_text", ["AutoModelForCausalLM"]),
        ("llava", ["AutoModelForImageTextToText", "AutoProcessor"]),
    ],
)
def test_programs_name_the_auto_classes(exports: Exports, name: str, loaders: list[str]):
    wanted = [f"{loader}.from_pretrained(..., trust_remote_code=True)" for loader in loaders]
    found = programs_of(exports.exports / name)
    if name == "llava":  # several Auto classes make it
        assert hasattr(transformers, found[0].split(".")[0])
        found, wanted = found[1:], wanted[1:]
    assert found == wanted


def test_failure_half_way_leaves_nothing(exports: Exports, tmp_path, monkeypatch):
    def fail(folder: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(code_folder, "check_code", fail)
    with pytest.raises(OSError, match="no space left"):
        export_code(exports.sources / "vit", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# Text of imports


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package of three modules, in place of ours."""
    root = tmp_path / "hf_vlm"
    files = {
        "blocks/attention.py": "def attention(): ...\nHEADS = 2\n",
        "parts/loading.py": "from __future__ import annotations\nimport json\ndef load(): ...\n",
        "models/vit/model.py": (
            '"""Über Aufmerksamkeit."""\n\nimport torch  # kept\n\nfrom ...blocks.attention import (  # both\n'
            "    HEADS,\n    attention,\n)\nfrom  ...parts.loading  import load as load_it; N = '\N{GREEK SMALL LETTER PI}'\n"
            "if TYPE_CHECKING:\n    from .config import Config\n\n\nclass Model: ...  # from ...blocks.attention import x\n"
        ),
        "models/vit/config.py": "class Config: ...\n",
        "models/swin/model.py": "",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(flat_code, "PACKAGE", root)
    return root


def test_imports_are_rewritten_and_nothing_else(package: Path):
    files = flatten(["models.vit.model"])
    names = ["blocks_attention.py", "models_vit_config.py", "models_vit_model.py", "parts_loading.py"]
    assert list(files) == names
    before = (package / "models/vit/model.py").read_text(encoding="utf-8")
    wanted = before.replace("from ...blocks.attention import (", "from .blocks_attention import (")
    wanted = wanted.replace("...parts.loading ", ".parts_loading ").replace("from .config", "from .models_vit_config")
    assert files["models_vit_model.py"].split("\n", 1)[1] == wanted
    assert files["models_vit_model.py"].startswith("# Generated by hf-vlm")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("from hf_vlm.blocks.attention import HEADS", "import our own code relatively"),
        ("import hf_vlm.blocks.attention", "import our own code relatively"),
        ("def f():\n    from hf_vlm import HEADS", "import our own code relatively"),
        ("from ...blocks import attention", "defining module, `blocks` is none"),
        ("from . import config", "defining module, `models.vit` is none"),
        ("from .missing import x", "defining module, `models.vit.missing` is none"),
        ("from .\\\n    config import Config", "an import in another form"),
    ],
)
def test_import_that_can_not_be_followed_is_refused(package: Path, line: str, complaint: str):
    (package / "models/vit/model.py").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=complaint):
        flatten(["models.vit.model"])


def test_modules_of_one_flat_name_are_refused(package: Path):
    (package / "models/vit_model.py").write_text("")
    with pytest.raises(AssertionError):
        flatten(["models.vit.model", "models.vit_model"])


def test_constants_read_from_files_are_written_out():
    text = flatten(["models.llava.chat_template"])["models_llava_chat_template.py"]
    names: dict[str, Any] = {"__name__": "flat"}
    exec(compile(text, "flat", "exec"), names)  # it lies nowhere: `__file__` is not set
    assert names["TEMPLATES"] == chat_template.TEMPLATES and len(names["TEMPLATES"]) == 5


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("blocks_attention.py", None, "there is no `blocks_attention`"),
        ("blocks_attention.py", "", "`blocks_attention` defines no"),
        ("blocks_attention.py", "HEADS = 2", "`blocks_attention` defines no"),
        ("blocks_extra.py", "", r"\['blocks_extra'\]"),  # would stay behind when the model is saved again
        ("blocks_extra.py", "import hf_vlm", r"imports \['hf_vlm'\]"),
        ("blocks_extra.py", "try:\n    import hf_vlm\nexcept ImportError: ...", r"imports \['hf_vlm'\]"),
        ("blocks_extra.py", "def f():\n    import peft", r"imports \['peft'\]"),
        ("blocks_extra.py", "from ..attention import x", "there is no"),
    ],
)
def test_code_that_is_not_whole_is_refused(whole_code: Path, file: str, text: str | None, complaint: str):
    if text is None:
        (whole_code / file).unlink()
    else:
        (whole_code / file).write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match=complaint):
        check_code(whole_code)


@pytest.fixture
def whole_code(tmp_path) -> Path:
    (tmp_path / "auto_classes.py").write_text("from .blocks_attention import HEADS, attention\n")
    (tmp_path / "blocks_attention.py").write_text("import torch\nHEADS, WIDTH = 2, 3\ndef attention(): ...\n")
    check_code(tmp_path)
    return tmp_path


def test_optional_package_may_be_imported_in_a_try(whole_code: Path):
    optional = "HEADS = 2\ntry:\n    import peft\nexcept ImportError:\n    peft = None\ndef attention(): ...\n"
    (whole_code / "blocks_attention.py").write_text(optional)
    check_code(whole_code)


@pytest.mark.slow  # it takes a server and one more process
def test_folder_goes_over_the_hub_and_back_without_the_package(exports: Exports, tmp_path):
    with HubServer() as hub:
        environment = hub.environment(hub.add_user("me"), str(tmp_path / "home"))
        found = run_bare(exports.exports, tmp_path / "bare", "me", HF_HUB_OFFLINE="0", **environment)["hub"]
    assert isinstance(found, dict), found
    assert found["modules"] == ["transformers_modules", "me", "again"]
    assert_same(found["first"], exports.found["llava"], "first")
    assert_same(found["again"], exports.found["llava"], "again")
