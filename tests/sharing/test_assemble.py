"""Parts become a folder to train: the model of `from_pretrained_parts`, what is new in it, and what is refused.

Oracle of a folder is the model that Python's `from_pretrained_parts` makes of the same parts after the same seed.
"""

import errno
import json
import shlex

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
    set_seed,
)

from hf_vlm import VisionTransformerConfig, VisionTransformerModel
from hf_vlm.data.word_tokenizer import build_word_tokenizer
from hf_vlm.parts.weight_report import WeightReport, hash_weights
from hf_vlm.sharing import assemble as module
from hf_vlm.sharing.assemble import ARCHITECTURES, assemble
from hf_vlm.training.tasks import load_recipe
from hf_vlm.training.trocr import build_model
from tests.models.llava.tiny_llava import tiny_image_processor, tiny_tokenizer

_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders `vision`, `bert`, `llama` and `words`, as people have them."""
    folder = tmp_path_factory.mktemp("parts")
    set_seed(3)
    vision = CLIPVisionModel(CLIPVisionConfig(**_LAYERS, image_size=16, patch_size=8))
    tokenizer = tiny_tokenizer()
    text = {**_LAYERS, "vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    models = {
        "vision": vision,
        "bert": BertForMaskedLM(BertConfig(**text, max_position_embeddings=64)),
        "llama": LlamaForCausalLM(LlamaConfig(**text, max_position_embeddings=128)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
    tiny_image_processor(16, 16).save_pretrained(folder / "vision")
    for name in ("bert", "llama"):
        tokenizer.save_pretrained(folder / name)
    (folder / "llama" / "LICENSE").write_text("Terms of the language model.")
    (folder / "vision" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    build_word_tokenizer(["a red picture", "a blue one"], min_count=1).save_pretrained(folder / "words")
    return folder


def text_of(parts, architecture):
    return parts / {"trocr": "bert", "llava": "llama", "cnn_lstm": "words"}[architecture]


def by_hand(parts, architecture):
    """Model and processor as Python makes them."""
    kind, text = ARCHITECTURES[architecture], str(text_of(parts, architecture))
    vision = str(parts / "vision")
    processor = kind.processor.from_pretrained_parts(vision, text)
    joined = {} if architecture == "cnn_lstm" else {"processor": processor}
    return kind.model.from_pretrained_parts(vision=vision, text=text, **joined), processor


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_folder_is_the_model_that_python_makes_of_the_parts(parts, tmp_path, architecture):
    set_seed(1)
    expected, its_processor = by_hand(parts, architecture)
    set_seed(1)
    made = assemble(architecture, parts / "vision", text_of(parts, architecture), tmp_path / "out")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert type(model) is type(expected) and made.model_class == type(expected).__name__
    weights = expected.state_dict()
    assert model.state_dict().keys() == weights.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert model.generation_config.to_diff_dict() == expected.generation_config.to_diff_dict()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is type(its_processor)
    assert processor.image_processor.to_dict() == its_processor.image_processor.to_dict()
    assert processor.tokenizer.get_vocab() == its_processor.tokenizer.get_vocab()
    assert made.num_parameters == expected.num_parameters()
    report = WeightReport.load(tmp_path / "out")
    assert report == expected.weight_report == made.report
    # nothing on disk twice: one weights file, as large as the weights that it holds
    weight_files = sorted(file.name for file in (tmp_path / "out").rglob("*.safetensors"))
    assert weight_files == ["model.safetensors"]
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert 4 * made.num_parameters <= size < 4 * made.num_parameters + 64_000


@pytest.mark.parametrize(
    ("architecture", "new"),
    [("trocr", {"decoder": "cross"}), ("llava", {"projector": ""}), ("cnn_lstm", {"projector": "", "decoder": ""})],
)  # fmt: skip
def test_what_is_new_is_told_by_part_with_the_recipe_that_teaches_it(parts, tmp_path, architecture, new):
    out = tmp_path / "a b, {c}"
    made = assemble(architecture, parts / "vision", text_of(parts, architecture), out)
    model = AutoModelForImageTextToText.from_pretrained(out)
    named = {part: model.get_submodule(type(model).part_paths[part]).named_parameters() for part in new}
    assert made.new_parts == {
        part: sum(parameter.numel() for name, parameter in named[part] if word in name) for part, word in new.items()
    }
    assert made.num_new == sum(made.new_parts.values())
    told = str(made)
    assert "Still random" in told and made.next_command in told and str(out) in told
    assert json.loads(json.dumps(made.to_dict()))["new_parts"] == made.new_parts
    words = shlex.split(made.next_command)
    assert words[:2] == ["hf-vlm", "train"]
    recipe = load_recipe(words[2], [*words[3:], "training.output_dir=runs/x"])
    assert recipe.model.pretrained == str(out) and recipe.architecture == architecture


def test_recipe_goes_on_with_the_folder(parts, tmp_path):
    made = assemble("trocr", parts / "vision", parts / "bert", tmp_path / "out")
    words = shlex.split(made.next_command)
    recipe = load_recipe(words[2], words[3:])
    model, processor = build_model(recipe, [])
    of_folder = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert hash_weights(model.state_dict()) == hash_weights(of_folder.state_dict())
    assert processor.max_label_length == 64  # the decoder's positions


def test_nothing_new_is_told_where_all_came_from_parts(parts, tmp_path):
    """A reader's own encoder and decoder, taken apart and put together again."""
    assemble("trocr", parts / "vision", parts / "bert", tmp_path / "first")
    reader = AutoModelForImageTextToText.from_pretrained(tmp_path / "first")
    reader.encoder.vision_model.save_pretrained(tmp_path / "eye")
    reader.decoder.save_pretrained(tmp_path / "hand")
    processor = AutoProcessor.from_pretrained(tmp_path / "first")
    processor.image_processor.save_pretrained(tmp_path / "eye")
    processor.tokenizer.save_pretrained(tmp_path / "hand")
    made = assemble("trocr", tmp_path / "eye", tmp_path / "hand", tmp_path / "again")
    assert made.num_new == 0 and made.next_command == "" and "Still random" not in str(made)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "again")
    pixels = torch.randn(1, 3, 16, 16)
    labels = torch.tensor([[5, 6, 2]])
    with torch.no_grad():
        one, other = (model.eval()(pixel_values=pixels, labels=labels).logits for model in (reader, again))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_settings_and_template_reach_model_and_processor(parts, tmp_path):
    settings = {"num_linear_layers": 1, "vision_feature_layer": -1, "image_aspect_ratio": "square"}
    made = assemble(
        "llava", parts / "vision", parts / "llama", tmp_path / "out",
        chat_template="llava_v1", image_size=32, settings=settings,
    )  # fmt: skip
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert {name: getattr(model.config, name) for name in settings} == settings
    assert list(model.config.image_size) == [32, 32] and processor.image_size == (32, 32)
    assert processor.num_image_tokens == model.config.num_image_tokens == 16
    assert processor.image_aspect_ratio == "square"
    said = processor.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert "USER: hi" in said
    assert made.new_parts == {"projector": 32 * 32 + 32}


def test_head_that_nothing_reads_is_not_to_be_learnt(parts, tmp_path):
    """A ViT without its pooler: `AutoModel` makes one, at random."""
    vit = ViTModel(ViTConfig(**_LAYERS, image_size=16, patch_size=8), add_pooling_layer=False)
    vit.save_pretrained(tmp_path / "vit")
    tiny_image_processor(16, 16).save_pretrained(tmp_path / "vit")
    made = assemble("llava", tmp_path / "vit", parts / "llama", tmp_path / "out")
    assert made.report["vision"].new and set(made.new_parts) == {"projector"}


def test_picture_size_resizes_a_readers_encoder(parts, tmp_path):
    own = VisionTransformerModel(VisionTransformerConfig(hidden_size=32, num_attention_heads=4, image_size=16))
    own.save_pretrained(tmp_path / "own")
    tiny_image_processor(16, 16).save_pretrained(tmp_path / "own")
    assemble("trocr", tmp_path / "own", parts / "bert", tmp_path / "out", image_size=(16, 48))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert list(model.config.vision_config.image_size) == [16, 48]
    picture = Image.new("RGB", (100, 30), "white")
    inputs = AutoProcessor.from_pretrained(tmp_path / "out")(images=picture, return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (16, 48)
    assert model.generate(**inputs, max_new_tokens=3).shape[0] == 1


def test_licences_of_parts_go_along(parts, tmp_path):
    made = assemble("llava", parts / "vision", parts / "llama", tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "Terms of the language model."
    assert made.report["vision"].license == "apache-2.0" and made.report["vision"].source == "vision"
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights is an error."""

    def refused(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(refused))


@pytest.mark.parametrize(
    ("architecture", "text", "given", "message"),
    [
        ("reader", "bert", {}, "`architecture` must be one of `trocr`, `llava`, `cnn_lstm`, got 'reader'"),
        ("trocr", "llama", {}, "`text` must be a model that can cross-attend .* got `llama`"),
        ("llava", "bert", {}, "`text` must .* got `bert`"),
        ("trocr", "vision", {}, "must hold a tokenizer's files"),
        ("cnn_lstm", "vision", {}, "must hold a tokenizer's files"),
        ("trocr", "bert", {"chat_template": "llava_v1"}, "`chat_template` is for `llava`.* got it with `trocr`"),
        ("cnn_lstm", "words", {"image_size": 32}, "`image_size` is for `trocr` and `llava`, got 32 with `cnn_lstm`"),
        ("llava", "llama", {"settings": {"num_linear_layer": 1}}, "`num_linear_layer` must .* Did you mean `num_linear_layers`"),
        ("llava", "llama", {"settings": {"processor": 1}}, "`processor` must be a setting"),
        ("llava", "llama", {"image_size": 32, "settings": {"image_size": 64}}, "wanted once, got 32 and 64"),
    ],
)  # fmt: skip
def test_what_can_not_work_is_refused_before_weights_are_loaded(
    parts, tmp_path, no_weights, architecture, text, given, message
):
    with pytest.raises(ValueError, match=message):
        assemble(architecture, parts / "vision", parts / text, tmp_path / "out", **given)
    assert list(tmp_path.iterdir()) == []


def test_text_model_as_vision_is_refused_before_weights_are_loaded(parts, tmp_path, no_weights):
    with pytest.raises(ValueError, match="vision"):
        assemble("llava", parts / "llama", parts / "llama", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="`config.json` wanted in `.*nowhere`"):
        assemble("llava", parts / "nowhere", parts / "llama", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_holds_something_is_refused_and_stays(parts, tmp_path, no_weights):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="`out` must be a new or an empty folder"):
        assemble("llava", parts / "vision", parts / "llama", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_nothing_is_left_where_writing_fails(parts, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "copy_licence", full)
    with pytest.raises(OSError, match="wants a disk with room for it"):
        assemble("llava", parts / "vision", parts / "llama", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
