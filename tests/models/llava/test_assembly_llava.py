"""Any vision encoder and any causal language model become an assistant; every weight and decision is accounted for."""

import json
import logging
from typing import Any

import pytest
import torch
import transformers as hub
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from hf_vlm.models.llava.modeling_llava import LlavaVisionLanguageForConditionalGeneration
from hf_vlm.models.llava.processing_llava import LlavaVisionLanguageProcessor
from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.parts.weight_report import WeightReport, hash_weights
from tests.models.llava.tiny_llava import NUM_TOKENS, randomise, tiny_image_processor, tiny_tokenizer

from_pretrained_parts = LlavaVisionLanguageForConditionalGeneration.from_pretrained_parts

PAD, START, END, IM_END = 0, 1, 2, 5  # ids of the tiny tokenizer

TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 7,
    "eos_token_id": 8,
}


def save_vision(folder, config: Any = None, size: int = 16) -> PreTrainedModel:
    """A folder as on the Hub, weights that matter, with its image processor; the model is given back."""
    model = AutoModel.from_config(config or hub.CLIPVisionConfig(**TRANSFORMER)).eval()
    randomise(model)
    model.save_pretrained(folder)
    tiny_image_processor(size, size).save_pretrained(folder)
    return model


def save_text(folder, config: Any = None, tokenizer: Any = None, **fields: Any) -> PreTrainedModel:
    """The same of a language model with its tokenizer."""
    model = AutoModelForCausalLM.from_config(config or hub.LlamaConfig(**TEXT | fields)).eval()
    randomise(model)
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return model


@pytest.fixture
def folders(tmp_path):
    """Names of two folders of parts, and what is in them."""
    tower, language_model = save_vision(tmp_path / "tower"), save_text(tmp_path / "words")
    return {"vision": tmp_path / "tower", "text": tmp_path / "words"}, tower, language_model


def sample(processor: LlavaVisionLanguageProcessor) -> dict[str, torch.Tensor]:
    """Two questions, one about two pictures and one about none."""
    pictures = [Image.new("RGB", (20, 12), "red"), Image.new("RGB", (9, 14), "blue")]
    texts = ["<image>and<image>which?", "why?"]
    return dict(processor(images=pictures, text=texts, padding=True, return_tensors="pt"))


@torch.no_grad()
def test_folders_are_joined_weight_for_weight(folders):
    parts, tower, language_model = folders
    model = from_pretrained_parts(**parts)
    assert not model.training
    for name, tensor in tower.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[name], tensor), name
    rows = len(language_model.get_input_embeddings().weight)
    kept = model.language_model.state_dict()
    for name, tensor in language_model.state_dict().items():
        assert torch.equal(kept[name][: len(tensor)], tensor), name
    assert len(model.get_input_embeddings().weight) == rows + 1
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts)
    batch = sample(processor)
    logits = model(**batch).logits
    ids = batch["input_ids"][1:, batch["attention_mask"][1].bool()]
    plain = language_model(ids).logits[0]
    torch.testing.assert_close(logits[1, batch["attention_mask"][1].bool(), :rows], plain, atol=1e-5, rtol=1e-5)


def test_report_accounts_for_every_tensor_and_is_saved(folders, tmp_path, caplog):
    parts, tower, _ = folders
    with caplog.at_level(logging.INFO, logger="hf_vlm"):
        model = from_pretrained_parts(**parts)
    assert model.weight_report.table() in caplog.text and "1 row for the image token" in caplog.text
    vision, projector, language = (model.weight_report[name] for name in ("vision", "projector", "language"))
    assert (vision.source, projector.source, language.source) == ("tower", "", "words")
    assert set(projector.new) == set(model.projector.state_dict()) and not projector.copied
    assert set(vision.copied) == set(model.vision_model.state_dict()) and not vision.new
    assert set(language.copied) == set(model.language_model.state_dict()) and not language.new
    assert vision.sha256 == hash_weights(tower.state_dict())
    model.save_pretrained(tmp_path / "whole")
    saved = WeightReport.load(tmp_path / "whole")
    assert saved == model.weight_report
    reloaded = AutoModel.from_pretrained(tmp_path / "whole")
    assert reloaded.weight_report == saved
    for name, part in (
        ("vision", reloaded.vision_model),
        ("projector", reloaded.projector),
        ("language", reloaded.language_model),
    ):
        assert saved[name].sha256 == hash_weights(part.state_dict()), name


def test_report_tells_of_an_unused_pooler_that_the_folder_lacks(tmp_path):
    save_vision(tmp_path / "tower", hub.ViTConfig(**TRANSFORMER)), save_text(tmp_path / "words")
    file = tmp_path / "tower" / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(file).items() if "pooler" not in name}
    save_file(weights, file, metadata={"format": "pt"})
    report = from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words").weight_report["vision"]
    assert set(report.new) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert len(report.copied) == len(weights)  # under other names in the file


def test_saved_report_has_the_hashes_of_what_was_trained(folders, tmp_path):
    parts, tower, _ = folders
    model = from_pretrained_parts(**parts)
    before = model.weight_report["projector"].sha256
    with torch.no_grad():
        model.projector.linears[0].weight.add_(1)
    model.save_pretrained(tmp_path / "trained")
    saved = WeightReport.load(tmp_path / "trained")
    assert saved["projector"].sha256 == hash_weights(model.projector.state_dict()) != before
    assert saved["vision"].sha256 == hash_weights(tower.state_dict())


def test_tied_embeddings_stay_tied_and_are_told(tmp_path):
    save_vision(tmp_path / "tower"), save_text(tmp_path / "words", tie_word_embeddings=True)
    model = from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.tie_word_embeddings
    assert list(model.weight_report["language"].tied) == ["lm_head.weight"]
    model.save_pretrained(tmp_path / "whole")
    reloaded, info = AutoModel.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight


@torch.no_grad()
def test_instances_give_the_same_assistant_as_folders_and_stay_as_they_are(folders):
    parts, tower, language_model = folders
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts)
    before = [{name: tensor.clone() for name, tensor in part.state_dict().items()} for part in (tower, language_model)]
    configs = tower.config.to_dict(), language_model.config.to_dict()
    torch.manual_seed(0)
    by_instance = from_pretrained_parts(vision=tower, text=language_model, processor=processor)
    torch.manual_seed(0)
    by_folder = from_pretrained_parts(**parts)
    for name, tensor in by_folder.state_dict().items():
        assert torch.equal(by_instance.state_dict()[name], tensor), name
    assert by_instance.generation_config.to_dict() == by_folder.generation_config.to_dict()
    by_instance.set_attn_implementation("eager")
    randomise(by_instance)
    assert (tower.config.to_dict(), language_model.config.to_dict()) == configs
    for part, tensors in zip((tower, language_model), before, strict=True):
        for name, tensor in part.state_dict().items():
            assert torch.equal(tensor, tensors[name]), name


def test_instances_want_a_processor(folders):
    parts, tower, language_model = folders
    for given in ({"vision": tower, "text": parts["text"]}, {"vision": parts["vision"], "text": language_model}):
        with pytest.raises(ValueError, match="`processor` is wanted with loaded models"):
            from_pretrained_parts(**given)


@torch.no_grad()
def test_vision_tower_is_taken_out_of_its_whole(tmp_path):
    text_tower = {name: TRANSFORMER[name] for name in list(TRANSFORMER)[:4]} | {"vocab_size": 30, "eos_token_id": 2}
    whole = save_vision(
        tmp_path / "clip", hub.CLIPConfig(vision_config=TRANSFORMER, text_config=text_tower, projection_dim=8)
    )
    save_text(tmp_path / "words")
    model = from_pretrained_parts(vision=tmp_path / "clip", text=tmp_path / "words")
    assert model.config.vision_config.model_type == "clip_vision_model"
    wanted = whole.vision_model.state_dict()
    for name, tensor in model.vision_model.state_dict().items():
        assert torch.equal(tensor, wanted[name.removeprefix("vision_model.")]), name
    assert model.weight_report["vision"].dropped


# The image token


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_image_token_gets_a_row_that_is_the_mean_of_the_others(tied, tmp_path):
    save_vision(tmp_path / "tower")
    language_model = save_text(tmp_path / "words", tie_word_embeddings=tied)
    model = from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")
    assert model.config.image_token_id == NUM_TOKENS
    assert model.config.text_config.vocab_size == NUM_TOKENS + 1
    for part in ("get_input_embeddings", "get_output_embeddings"):
        old = getattr(language_model, part)().weight
        new = getattr(model, part)().weight
        assert torch.equal(new[:NUM_TOKENS], old)
        torch.testing.assert_close(new[NUM_TOKENS], old.mean(dim=0))


def test_padded_vocabulary_has_room_for_the_image_token(tmp_path):
    save_vision(tmp_path / "tower")
    language_model = save_text(tmp_path / "words", vocab_size=NUM_TOKENS + 9)
    model = from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")
    assert model.config.image_token_id == NUM_TOKENS
    for name, tensor in language_model.state_dict().items():
        assert torch.equal(model.language_model.state_dict()[name], tensor), name


def test_tokenizer_that_has_an_image_token_keeps_it(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    save_vision(tmp_path / "tower")
    language_model = save_text(tmp_path / "words", vocab_size=NUM_TOKENS + 1, tokenizer=tokenizer)
    model = from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")
    assert model.config.image_token_id == NUM_TOKENS
    assert torch.equal(model.get_input_embeddings().weight, language_model.get_input_embeddings().weight)


def test_tokenizer_larger_than_the_embeddings_is_refused(tmp_path):
    save_vision(tmp_path / "tower"), save_text(tmp_path / "words", vocab_size=NUM_TOKENS - 2)
    with pytest.raises(ValueError, match=f"at most the language model's {NUM_TOKENS - 2} rows .* got {NUM_TOKENS} tok"):
        from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")


def test_tokenizer_with_tokens_behind_the_image_token_needs_rows_for_them(tmp_path):
    # The image token in the middle, two words behind it that have no row.
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.add_tokens(["one", "two"])
    save_vision(tmp_path / "tower"), save_text(tmp_path / "words", vocab_size=NUM_TOKENS + 1, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="at most the language model's"):
        from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")


# Settings


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test if a weight is read."""

    def fail(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(hub.PreTrainedModel, "from_pretrained", fail)
    monkeypatch.setattr(hub.AutoModel, "from_pretrained", fail)
    monkeypatch.setattr(hub.AutoModelForCausalLM, "from_pretrained", fail)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("num_linear_layer", "num_linear_layers"),
        ("vision_feature_layers", "vision_feature_layer"),
        ("image_sizes", "image_size"),
        ("max_new_token", "max_new_tokens"),
        ("procesor", "processor"),
    ],
)
def test_unknown_setting_is_refused_with_the_nearest(wrong, right, folders, no_weights):
    with pytest.raises(ValueError, match=f"`{wrong}` must be a setting .* Did you mean `{right}`?"):
        from_pretrained_parts(**folders[0], **{wrong: 2})


def test_setting_like_no_other_is_refused_too(folders, no_weights):
    with pytest.raises(ValueError, match="`zzz` must be a setting .* Leave it out."):
        from_pretrained_parts(**folders[0], zzz=2)


@torch.no_grad()
def test_settings_of_the_config_reach_the_model(folders):
    settings = {"num_linear_layers": 3, "projector_hidden_act": "relu", "label_smoothing": 0.1}
    model = from_pretrained_parts(**folders[0], **settings, vision_feature_select_strategy="full", max_new_tokens=9)
    assert len(model.projector.linears) == 3 and isinstance(model.projector.activation, torch.nn.ReLU)
    assert model.config.label_smoothing == 0.1
    assert model.config.num_image_tokens == 5  # CLS and 2 x 2 patches
    assert model.generation_config.max_new_tokens == 9


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "layer"),
    [
        (hub.CLIPVisionConfig(**TRANSFORMER), -2),
        (hub.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"), -1),
        (VisionTransformerConfig(hidden_size=16, num_attention_heads=2, image_size=16, patch_size=8), -2),
    ],
    ids=["clip", "resnet", "ours"],
)
def test_layer_before_the_last_is_read_where_it_is_laid_out_like_the_last(config, layer, tmp_path):
    size = 64 if config.model_type == "resnet" else 16
    save_vision(tmp_path / "tower", config, size), save_text(tmp_path / "words")
    model = from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")
    assert model.config.vision_feature_layer == layer
    assert model.config.image_size == [size, size]
    other = from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words", vision_feature_layer=-1)
    assert other.config.vision_feature_layer == -1


@torch.no_grad()
def test_picture_size_is_that_of_the_image_processor_or_the_one_asked_for(folders):
    parts, _, _ = folders
    tiny_image_processor(24, 24).save_pretrained(parts["vision"])  # other than the config's 16
    model = from_pretrained_parts(**parts)
    assert (model.config.image_size, model.config.num_image_tokens) == ([24, 24], 9)
    wanted = from_pretrained_parts(**parts, image_size=32)
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts, image_size=32)
    assert (wanted.config.image_size, wanted.config.num_image_tokens) == ([32, 32], 16)
    batch = sample(processor)
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert wanted(**batch).logits.isfinite().all()


@pytest.mark.parametrize(
    "asked",
    [{"image_size": 32}, {"vision_feature_select_strategy": "full"}],
    ids=["image_size", "strategy"],
)
def test_processor_of_another_number_of_image_tokens_is_refused(asked, folders, no_weights):
    parts, _, _ = folders
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts, **asked)
    expected = {"image_size": 16, "vision_feature_select_strategy": 5}[next(iter(asked))]
    settings = {"image_size": 16} if "image_size" in asked else {}
    with pytest.raises(ValueError, match=f"agree on the tokens of a picture, got {expected} and 4"):
        from_pretrained_parts(**parts, processor=processor, **settings)


def test_processor_of_another_image_token_is_refused(folders):
    parts, _, _ = folders
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts)
    with pytest.raises(ValueError, match=f"agree on the image token, got {NUM_TOKENS} and 3"):
        from_pretrained_parts(**parts, processor=processor, image_token_id=3)


# What can't take part


def bad(name: str) -> tuple[Any, str]:
    small = {name: TEXT[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    return {
        "electra": (hub.ElectraConfig(**small), "from left to right, got `electra`"),
        "bert": (hub.BertConfig(**small), "from left to right, got `bert`.*`is_decoder=True`"),
        "distilbert": (hub.DistilBertConfig(vocab_size=NUM_TOKENS, dim=16, n_layers=1, n_heads=2), "`distilbert`"),
        "t5": (hub.T5Config(vocab_size=NUM_TOKENS, d_model=16, d_kv=8, num_layers=1, num_heads=2), "got `t5`"),
        "bart": (
            hub.BartConfig(vocab_size=NUM_TOKENS, d_model=16, encoder_layers=1, decoder_layers=1),
            "got `bart`",
        ),
        "rwkv": (
            hub.RwkvConfig(vocab_size=NUM_TOKENS, hidden_size=16, num_hidden_layers=1, attention_hidden_size=16),
            "got `rwkv`.*padding would enter",
        ),
        "clip": (hub.CLIPVisionConfig(**TRANSFORMER), "got `clip_vision_model`"),
    }[name]


@pytest.mark.parametrize("name", ["distilbert", "t5", "bart", "rwkv", "clip", "bert", "electra"])
def test_text_model_that_can_not_read_pictures_is_refused_before_weights_load(name, tmp_path, no_weights):
    hub.CLIPVisionConfig(**TRANSFORMER).save_pretrained(tmp_path / "tower")
    tiny_image_processor().save_pretrained(tmp_path / "tower")
    config, said = bad(name)
    config.save_pretrained(tmp_path / "words")
    tiny_tokenizer().save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match=f"(?s)`text` must .*({said})"):
        from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")


@pytest.mark.parametrize("name", ["bert", "electra"])
def test_text_model_that_looks_ahead_is_refused(name, tmp_path):
    # transformers lists encoders like BERT as causal language models, which they are by a setting only.
    config, said = bad(name)
    save_vision(tmp_path / "tower"), save_text(tmp_path / "words", config)
    with pytest.raises(ValueError, match=said):
        from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")


def test_vision_model_without_places_is_refused_before_weights_load(tmp_path, no_weights):
    hub.BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path / "tower")
    tiny_image_processor().save_pretrained(tmp_path / "tower")
    hub.LlamaConfig(**TEXT).save_pretrained(tmp_path / "words")
    tiny_tokenizer().save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match="vision encoder must"):
        from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")


def test_layer_out_of_reach_is_refused_before_weights_load(folders, no_weights):
    with pytest.raises(ValueError, match="one of its 3 hidden states, got -4"):
        from_pretrained_parts(**folders[0], vision_feature_layer=-4)


@pytest.mark.parametrize(
    ("part", "name", "said"),
    [
        ("vision", "encoder.layers.0.mlp", "Every weight of the vision encoder must come from .*tower, got none for 4"),
        ("text", "layers.1.mlp", "Every weight of the language model must come from .*words, got none for 3"),
        ("text", "lm_head", "Every weight of the language model must come from .*words, got none for 1"),
    ],
)
def test_part_that_lacks_a_weight_is_refused(part, name, said, folders):
    parts, _, _ = folders
    file = parts[part] / "model.safetensors"
    weights = load_file(file)
    kept = {key: tensor for key, tensor in weights.items() if name not in key}
    assert len(kept) < len(weights)
    save_file(kept, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=said):
        from_pretrained_parts(**parts)


def test_folder_that_is_not_there_is_named(folders, tmp_path):
    parts, _, _ = folders
    for part in ("vision", "text"):
        with pytest.raises((OSError, ValueError), match="nowhere"):
            from_pretrained_parts(**parts | {part: tmp_path / "nowhere"})


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (tiny_tokenizer(eos_token=None), "must have an end token"),
        (tiny_tokenizer(chat_template=None), "must have a chat template, got none.*chat_template='llava_v1'"),
    ],
    ids=["end", "template"],
)
def test_tokenizer_that_lacks_what_is_needed_is_refused_before_weights_load(tokenizer, said, tmp_path, no_weights):
    hub.CLIPVisionConfig(**TRANSFORMER).save_pretrained(tmp_path / "tower")
    tiny_image_processor().save_pretrained(tmp_path / "tower")
    hub.LlamaConfig(**TEXT).save_pretrained(tmp_path / "words")
    tokenizer.save_pretrained(tmp_path / "words")
    with pytest.raises(ValueError, match=said):
        from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")


def test_tokenizer_without_a_template_is_taken_with_a_named_one(tmp_path):
    save_vision(tmp_path / "tower"), save_text(tmp_path / "words", tokenizer=tiny_tokenizer(chat_template=None))
    parts = {"vision": tmp_path / "tower", "text": tmp_path / "words"}
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts, chat_template="llava_v1")
    model = from_pretrained_parts(**parts, processor=processor)
    assert model.generation_config.eos_token_id == [END]


def test_tokenizer_without_padding_pads_with_its_end_token(tmp_path):
    save_vision(tmp_path / "tower"), save_text(tmp_path / "words", tokenizer=tiny_tokenizer(pad_token=None))
    model = from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")
    assert model.generation_config.pad_token_id == model.config.pad_token_id == END


# Decisions are saved


def test_generation_defaults_follow_from_the_parts_and_are_saved(folders, tmp_path):
    parts, _, language_model = folders
    language_model.generation_config.update(temperature=0.3, do_sample=True, eos_token_id=8, max_length=50)
    language_model.save_pretrained(parts["text"])
    model = from_pretrained_parts(**parts, max_new_tokens=33)
    model.save_pretrained(tmp_path / "whole")
    saved = json.loads((tmp_path / "whole" / "generation_config.json").read_text())
    assert (saved["temperature"], saved["do_sample"]) == (0.3, True)  # the language model's own
    assert saved["eos_token_id"] == [IM_END, END]  # of the turn and of the text, as the tokenizer has them
    assert (saved["pad_token_id"], saved["bos_token_id"], saved["max_new_tokens"]) == (PAD, START, 33)
    assert saved["suppress_tokens"] == [NUM_TOKENS] and "max_length" not in saved
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], config["image_token_id"]) == (
        [IM_END, END],
        PAD,
        NUM_TOKENS,
    )
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole")
    assert reloaded.generation_config.to_dict() == model.generation_config.to_dict() | {
        "transformers_version": reloaded.generation_config.transformers_version
    }


def test_answer_ends_at_the_end_of_the_turn(folders):
    parts, _, _ = folders
    model = from_pretrained_parts(**parts)
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts)
    batch = sample(processor)
    for end in (IM_END, END):

        def shout(module, inputs, output, end=end):
            output.logits[..., end] += 1e4

        hook = model.language_model.register_forward_hook(shout)
        written = model.generate(**batch)
        assert written[:, batch["input_ids"].shape[1] :].tolist() == [[end], [end]]
        hook.remove()


@torch.no_grad()
@pytest.mark.parametrize(
    "auto_class", [LlavaVisionLanguageForConditionalGeneration, AutoModel, AutoModelForImageTextToText]
)
def test_saved_folder_needs_nothing_else(auto_class, folders, tmp_path):
    parts, _, _ = folders
    model = from_pretrained_parts(**parts, vision_feature_layer=1)
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts, vision_feature_layer=1)
    model.save_pretrained(tmp_path / "whole"), processor.save_pretrained(tmp_path / "whole")
    expected_batch = sample(processor)
    expected = model(**expected_batch).logits
    written = model.generate(**expected_batch, max_new_tokens=6)
    for part in parts.values():
        for file in part.iterdir():
            file.unlink()
    reloaded = auto_class.from_pretrained(tmp_path / "whole")
    again = AutoProcessor.from_pretrained(tmp_path / "whole")
    assert type(reloaded) is type(model) and type(again) is LlavaVisionLanguageProcessor
    batch = sample(again)
    assert set(batch) == set(expected_batch)
    for name, value in expected_batch.items():
        assert torch.equal(batch[name], value), name
    assert torch.equal(reloaded(**batch).logits, expected)
    assert torch.equal(reloaded.generate(**batch, max_new_tokens=6), written)


@torch.no_grad()
@pytest.mark.parametrize("gain", [0.02, 1.0, 7.0])
@pytest.mark.parametrize("num_linear_layers", [1, 2])
def test_pictures_start_as_loud_as_words(num_linear_layers, gain, tmp_path):
    save_vision(tmp_path / "tower")
    language_model = save_text(tmp_path / "words")
    randomise(language_model, gain)
    language_model.save_pretrained(tmp_path / "words")
    model = from_pretrained_parts(
        vision=tmp_path / "tower", text=tmp_path / "words", num_linear_layers=num_linear_layers
    )
    words = model.get_input_embeddings().weight.square().mean().sqrt()
    pictures = model.get_image_features(torch.randn(8, 3, 16, 16)).pooler_output
    loudness = torch.stack(list(pictures)).square().mean().sqrt()
    assert 0.7 < loudness / words < 1.4


@torch.no_grad()
def test_pictures_start_as_loud_as_scaled_words(tmp_path):
    # Gemma's embedding module multiplies by the root of the width: what counts is what comes out of it.
    save_vision(tmp_path / "tower")
    config = hub.Gemma3TextConfig(**TEXT | {"pad_token_id": 0}, head_dim=6)
    save_text(tmp_path / "words", config)
    model = from_pretrained_parts(vision=tmp_path / "tower", text=tmp_path / "words")
    table = model.get_input_embeddings()
    words = table(torch.arange(NUM_TOKENS)).square().mean().sqrt()
    assert words > 4 * table.weight.square().mean().sqrt()
    pictures = model.get_image_features(torch.randn(8, 3, 16, 16)).pooler_output
    assert 0.7 < torch.stack(list(pictures)).square().mean().sqrt() / words < 1.4


def test_assembled_assistant_learns_in_every_part(folders):
    parts, _, _ = folders
    model = from_pretrained_parts(**parts).train()
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts)
    picture = Image.new("RGB", (16, 16), "green")
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "colour?"}]},
        {"role": "assistant", "content": "green"},
    ]
    encoded = {name: torch.tensor([value]) for name, value in processor.encode_conversation(messages).items()}
    loss = model(**encoded, pixel_values=processor.prepare_images([picture])).loss
    loss.backward()
    for part in (model.projector, model.language_model.model.layers, model.vision_model):
        assert max(p.grad.abs().max() for p in part.parameters() if p.grad is not None) > 0


def test_shape_of_pictures_must_be_the_processors(folders):
    parts, _, _ = folders
    assert from_pretrained_parts(**parts, image_aspect_ratio="square").config.image_aspect_ratio == "square"
    processor = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts)
    with pytest.raises(ValueError, match="agree on `image_aspect_ratio`, got 'pad' and 'square'"):
        from_pretrained_parts(**parts, processor=processor, image_aspect_ratio="square")


@pytest.mark.parametrize("name", ["vision_hidden_size", "num_prefix_tokens", "num_image_tokens"])
def test_sizes_that_follow_from_the_vision_encoder_are_not_given(folders, name):
    parts, _, _ = folders
    with pytest.raises(ValueError, match=f"`{name}` follows from the vision encoder"):
        from_pretrained_parts(**parts, **{name: 3})


def test_stock_processor_is_refused_with_the_way_to_ours(folders, tmp_path):
    parts, _, _ = folders
    ours = LlavaVisionLanguageProcessor.from_pretrained_parts(**parts)
    stock = hub.LlavaProcessor(
        ours.image_processor, ours.tokenizer, patch_size=8, vision_feature_select_strategy="default"
    )
    stock.save_pretrained(tmp_path / "stock")
    hub.AutoConfig.from_pretrained(parts["vision"]).save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match=r"got a `LlavaProcessor`.*from_pretrained_parts"):
        LlavaVisionLanguageProcessor.from_pretrained(tmp_path / "stock")
    made = LlavaVisionLanguageProcessor.from_pretrained_parts(
        vision=tmp_path / "stock", text=tmp_path / "stock", image_aspect_ratio="square", chat_template="vicuna_v1"
    )
    assert made.num_image_tokens == ours.num_image_tokens
