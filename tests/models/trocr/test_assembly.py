"""Any vision encoder and any text model that can cross-attend become a reader; every weight is accounted for."""

import json
from typing import Any

import pytest
import torch
import transformers as hub
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from hf_vlm.models.trocr import assembly
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM
from hf_vlm.models.vit.configuration_vit import VisionTransformerConfig
from hf_vlm.parts.vision_features import configured_image_size, show_every_patch
from hf_vlm.parts.weight_report import WeightReport, hash_weights
from tests.models.trocr.tiny_models import randomise

from_pretrained_parts = TrOCREncoderDecoderForConditionalGeneration.from_pretrained_parts

# Ids of the tiny tokenizer; the vocabulary of most text models has a few rows more, as in real ones.
PAD, START, END, UNKNOWN = 0, 1, 2, 3
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
VOCAB_SIZE = 32

TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 8,
}
TEXT_TOWER = {name: TRANSFORMER[name] for name in list(TRANSFORMER)[:4]} | {"vocab_size": 30, "eos_token_id": 2}
STAGES = {"hidden_sizes": [8, 8, 8, 12], "depths": [1, 1, 1, 1]}


def llava_config() -> PreTrainedConfig:
    text = hub.LlamaConfig(**TEXT_TOWER, num_key_value_heads=2)
    return hub.LlavaConfig(vision_config=hub.CLIPVisionConfig(**TRANSFORMER), text_config=text, image_token_index=3)


def timm_config(architecture: str, **model_args: Any) -> PreTrainedConfig:
    return hub.TimmWrapperConfig(architecture=architecture, do_pooling=False, model_args=model_args)


ENCODERS: dict[str, Any] = {
    "ours": lambda: VisionTransformerConfig(hidden_size=16, num_attention_heads=2, image_size=16),
    "vit": lambda: hub.ViTConfig(**TRANSFORMER),
    "deit": lambda: hub.DeiTConfig(**TRANSFORMER),
    "beit": lambda: hub.BeitConfig(**TRANSFORMER, use_relative_position_bias=True),
    "dinov2": lambda: hub.Dinov2Config(
        hidden_size=20, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    ),
    "swin": lambda: hub.SwinConfig(
        image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2
    ),
    "clip vision tower": lambda: hub.CLIPVisionConfig(**TRANSFORMER),
    "clip": lambda: hub.CLIPConfig(vision_config=TRANSFORMER, text_config=TEXT_TOWER, projection_dim=8),
    "siglip": lambda: hub.SiglipConfig(vision_config=TRANSFORMER, text_config=TEXT_TOWER),
    "aimv2": lambda: hub.Aimv2Config(vision_config=TRANSFORMER, text_config=TEXT_TOWER, projection_dim=8),
    "llava": llava_config,
    "convnext": lambda: hub.ConvNextConfig(**STAGES, image_size=32),
    "resnet": lambda: hub.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "vit-mae": lambda: hub.ViTMAEConfig(**TRANSFORMER, decoder_hidden_size=16, decoder_num_attention_heads=2),
    "yolos": lambda: hub.YolosConfig(**TRANSFORMER | {"image_size": [16, 16]}, num_detection_tokens=3),
    "timm vit": lambda: timm_config(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2
    ),
    "timm resnet": lambda: timm_config("resnet10t", channels=(8, 8, 8, 12), stem_width=8),
}

ENCODER_ONLY = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 22,
    "type_vocab_size": 2,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
TEXTS: dict[str, Any] = {
    "roberta": lambda: hub.RobertaConfig(**ENCODER_ONLY),
    "xlm-roberta": lambda: hub.XLMRobertaConfig(**ENCODER_ONLY),
    "bert": lambda: hub.BertConfig(**ENCODER_ONLY),
    "gpt2": lambda: hub.GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=24, n_layer=2, n_head=3, n_positions=20, bos_token_id=START, eos_token_id=END
    ),
    "bart": lambda: hub.BartConfig(
        vocab_size=VOCAB_SIZE,
        d_model=24,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=3,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=20,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        decoder_start_token_id=END,
    ),
}
COPIED = {"roberta", "xlm-roberta", "bert"}
PAIRS = [(encoder, "roberta") for encoder in ENCODERS] + [("ours", text) for text in TEXTS if text != "roberta"]
OTHER_PAIRS = [(encoder, text) for encoder in ENCODERS for text in TEXTS if (encoder, text) not in PAIRS]


def tiny_tokenizer(words: list[str] = WORDS) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_encoder(name: str, folder) -> torch.nn.Module:
    """A folder as on the Hub, weights that matter, and the vision model as it should come out."""
    if name.startswith("timm"):
        pytest.importorskip("timm")
    config = ENCODERS[name]()
    auto = hub.AutoModelForImageTextToText if name == "llava" else AutoModel
    whole = auto.from_config(config).eval()
    randomise(whole, std=0.2)
    whole.save_pretrained(folder)
    tower = whole if getattr(config, "vision_config", None) is None else whole.get_encoder(modality="image")
    show_every_patch(tower.config)
    return tower


def save_text(name: str, folder, **fields: Any) -> Any:
    """A text model with its masked or causal head, and its tokenizer."""
    config = TEXTS[name]()
    for field, value in fields.items():
        setattr(config, field, value)
    auto = hub.AutoModelForMaskedLM if name in COPIED else AutoModel
    model = auto.from_config(config).eval()
    randomise(model, std=0.2)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def assemble(encoder: str, text: str, tmp_path, **settings: Any):
    tower = save_encoder(encoder, tmp_path / "vision")
    source = save_text(text, tmp_path / "text")
    reader = from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text", **settings)
    return reader, tower, source


def check_pair(encoder: str, text: str, tmp_path) -> None:
    reader, tower, source = assemble(encoder, text, tmp_path, label_smoothing=0.1, max_new_tokens=6, num_beams=2)
    assert not reader.training
    assert isinstance(reader.decoder, TrOCREncoderDecoderForCausalLM) == (text in COPIED)
    assert isinstance(reader.encoder.projection, torch.nn.Identity) == (
        text in COPIED or reader.config.vision_hidden_size == 24
    )

    # The encoder is the pretrained one, weight for weight; so is every decoder weight that the report calls copied.
    for name, tensor in tower.state_dict().items():
        assert torch.equal(reader.encoder.vision_model.state_dict()[name], tensor), name
    decoder = reader.weight_report["decoder"]
    assert (reader.weight_report["vision"].source, decoder.source) == ("vision", "text")  # folders by their names alone
    if text not in COPIED:
        theirs = {name.removeprefix("transformer."): tensor for name, tensor in source.state_dict().items()}
        kept = reader.decoder.state_dict()
        for name in decoder.copied:
            found = theirs[name.removeprefix("transformer.").removeprefix("model.")]
            assert torch.equal(kept[name], found), name
    assert all("cross" in name for name in decoder.new)
    assert bool(decoder.new) == (text != "bart")  # which has its own
    accounted = {
        f"{prefix}{name}"
        for part, prefix in (
            ("vision", "encoder.vision_model."),
            ("projector", "encoder.projection."),
            ("decoder", "decoder."),
        )
        if part in [report.name for report in reader.weight_report.parts]
        for kind in ("copied", "new", "tied")
        for name in getattr(reader.weight_report[part], kind)
    }
    assert accounted == set(reader.state_dict())

    # It learns, writes, and its folder needs nothing else.
    picture = torch.randn(2, 3, *configured_image_size(reader.config.vision_config))
    labels = torch.tensor([[5, 6, END], [7, END, -100]])
    reader.train()
    reader(pixel_values=picture, labels=labels).loss.backward()
    assert all(parameter.grad is not None for name, parameter in reader.decoder.named_parameters() if "cross" in name)
    reader.eval()
    reader.save_pretrained(tmp_path / "reader")
    reloaded, info = AutoModel.from_pretrained(tmp_path / "reader", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        expected = reader(pixel_values=picture, labels=labels).logits
        assert torch.equal(reloaded(pixel_values=picture, labels=labels).logits, expected)
    assert (expected[0] - expected[1]).abs().max() > 0
    written = reader.generate(picture)
    assert written.shape[1] <= 7
    assert written[0, 0] == reader.config.decoder_start_token_id == (END if text == "bart" else START)
    assert torch.equal(reloaded.generate(picture), written)
    assert reloaded.generation_config.num_beams == 2 and reloaded.config.label_smoothing == 0.1
    saved = WeightReport.load(tmp_path / "reader")
    assert saved == reader.weight_report
    assert saved["vision"].sha256 == hash_weights(reloaded.encoder.vision_model.state_dict())


@pytest.mark.parametrize(("encoder", "text"), PAIRS, ids=[f"{e} + {t}" for e, t in PAIRS])
def test_pair_is_assembled_learns_saves_and_reloads(encoder, text, tmp_path):
    check_pair(encoder, text, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "text"), OTHER_PAIRS, ids=[f"{e} + {t}" for e, t in OTHER_PAIRS])
def test_every_other_pair_is_assembled_too(encoder, text, tmp_path):
    check_pair(encoder, text, tmp_path)


# Instances


@pytest.mark.parametrize("text", TEXTS)
@torch.no_grad()
def test_instances_give_the_same_reader_as_folders_and_stay_as_they_are(text, tmp_path):
    tower, source = save_encoder("clip", tmp_path / "vision"), save_text(text, tmp_path / "text")
    whole = AutoModel.from_pretrained(tmp_path / "vision")
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    configs = tower.config.to_dict(), source.config.to_dict(), whole.config.to_dict()
    processor = TrOCREncoderDecoderProcessor(hub.ViTImageProcessor(), tiny_tokenizer())
    torch.manual_seed(0)
    by_instance = from_pretrained_parts(vision=whole, text=source, processor=processor)
    torch.manual_seed(0)
    by_folder = from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text")
    copied = by_folder.weight_report["decoder"].copied
    assert by_instance.weight_report["decoder"].copied == copied
    for name in copied:
        assert torch.equal(by_instance.decoder.state_dict()[name], by_folder.decoder.state_dict()[name])
    assert by_instance.config.decoder_start_token_id == by_folder.config.decoder_start_token_id
    by_instance.set_attn_implementation("eager")
    randomise(by_instance)
    assert (tower.config.to_dict(), source.config.to_dict(), whole.config.to_dict()) == configs
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_resizing_on_assembly_leaves_the_instance_alone(tmp_path):
    vision = AutoModel.from_config(ENCODERS["ours"]())
    save_text("roberta", tmp_path)
    reader = from_pretrained_parts(vision=vision, text=tmp_path, image_size=(16, 64))
    assert tuple(reader.config.vision_config.image_size) == (16, 64)
    assert vision.config.image_size == 16
    assert reader(pixel_values=torch.randn(1, 3, 16, 64), labels=torch.tensor([[5, END]])).loss.isfinite()


def test_resizing_a_hub_encoder_is_refused(tmp_path):
    save_encoder("vit", tmp_path / "vision"), save_text("roberta", tmp_path / "text")
    with pytest.raises(ValueError, match="`image_size` needs a vision encoder that can be resized, got `ViTModel`"):
        from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text", image_size=32)


# Ways of the text model


def test_last_layers_of_an_encoder_are_kept(tmp_path):
    reader, _, source = assemble("ours", "roberta", tmp_path, num_decoder_layers=1)
    assert reader.config.text_config.num_hidden_layers == 1
    last = source.state_dict()["roberta.encoder.layer.1.intermediate.dense.weight"]
    assert torch.equal(reader.decoder.model.layers[0].mlp.fc1.weight, last)
    assert any("last 1 layers" in reason for reason in reader.weight_report["decoder"].dropped.values())


def test_encoder_may_be_kept_as_it_is(tmp_path):
    reader, _, source = assemble("ours", "bert", tmp_path, keep_text_model=True)
    assert type(reader.decoder).__name__ == "BertLMHeadModel"
    kept = reader.decoder.state_dict()["bert.encoder.layer.1.output.dense.weight"]
    assert torch.equal(kept, source.state_dict()["bert.encoder.layer.1.output.dense.weight"])


def test_bert_that_cross_attends_already_is_kept_with_its_cross_attention(tmp_path):
    config = TEXTS["bert"]()
    config.is_decoder = config.add_cross_attention = True
    decoder = AutoModelForCausalLM.from_config(config)
    randomise(decoder)
    decoder.save_pretrained(tmp_path)
    reader = from_pretrained_parts(vision=AutoModel.from_config(ENCODERS["ours"]()), text=tmp_path)
    assert type(reader.decoder) is type(decoder)
    assert not reader.weight_report["decoder"].new
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(reader.decoder.state_dict()[name], tensor)


def test_decoder_of_ours_is_a_text_model_too(tmp_path):
    first, _, _ = assemble("ours", "roberta", tmp_path)
    first.decoder.save_pretrained(tmp_path / "decoder")
    second = from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "decoder")
    assert type(second.decoder) is TrOCREncoderDecoderForCausalLM and not second.weight_report["decoder"].new
    assert torch.equal(second.decoder.lm_head.weight, first.decoder.lm_head.weight)


def test_encoder_of_a_reader_of_ours_is_a_vision_model_too(tmp_path):
    first, tower, _ = assemble("ours", "roberta", tmp_path)
    first.save_pretrained(tmp_path / "reader")
    second = from_pretrained_parts(vision=tmp_path / "reader", text=tmp_path / "text")
    assert type(second.encoder.vision_model) is type(tower)
    for name, tensor in tower.state_dict().items():
        assert torch.equal(second.encoder.vision_model.state_dict()[name], tensor)


def test_layers_of_a_model_that_is_kept_can_not_be_chosen(tmp_path):
    with pytest.raises(ValueError, match="got it with a `gpt2` that is kept as it is"):
        assemble("ours", "gpt2", tmp_path, num_decoder_layers=1)


LLAMA = {"num_key_value_heads": 2, "pad_token_id": 0}


@pytest.mark.parametrize("kind", ["llama", "t5", "vit"])
def test_text_model_that_can_not_cross_attend_is_refused_before_any_weight_is_read(kind, tmp_path, monkeypatch):
    config = {
        "llama": lambda: hub.LlamaConfig(**TEXT_TOWER, **LLAMA),
        "t5": lambda: hub.T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
        "vit": lambda: hub.ViTConfig(**TRANSFORMER),
    }[kind]()
    AutoModel.from_config(config).save_pretrained(tmp_path / "text")
    save_encoder("vit", tmp_path / "vision")
    read = []
    monkeypatch.setattr(assembly, "load_vision_model", lambda *args, **kwargs: read.append(args))
    why = "whose decoder it builds with its encoder only" if kind == "t5" else "which cannot.*use the projector model"
    with pytest.raises(ValueError, match=f"got `{kind}`, {why}"):
        from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text")
    assert not read


def test_misspelt_setting_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="`label_smothing` must be a setting .* Did you mean `label_smoothing`"):
        assemble("vit", "roberta", tmp_path, label_smothing=0.1)


def test_vision_model_below_a_head_is_taken_without_the_head(tmp_path):
    whole = hub.ViTForImageClassification(hub.ViTConfig(**TRANSFORMER))
    randomise(whole, std=0.2)
    save_text("roberta", tmp_path / "text")
    reader = from_pretrained_parts(vision=whole, text=tmp_path / "text")
    for name, tensor in whole.vit.state_dict().items():
        assert torch.equal(reader.encoder.vision_model.state_dict()[name], tensor)
    report = reader.weight_report["vision"]
    assert list(report.dropped) == ["classifier.bias", "classifier.weight"]
    assert all(name.startswith("pooler.") for name in report.new)


def test_every_tensor_of_a_whole_bart_is_accounted_for(tmp_path):
    save_encoder("vit", tmp_path / "vision"), save_text("bart", tmp_path / "base")
    whole = hub.BartForConditionalGeneration(hub.AutoConfig.from_pretrained(tmp_path / "base")).eval()
    randomise(whole, std=0.2)
    whole.save_pretrained(tmp_path / "text")
    reader = from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text")
    report = reader.weight_report["decoder"]
    file_names = set(load_file(tmp_path / "text" / "model.safetensors"))
    unnamed = file_names - set(report.dropped) - set(reader.decoder.state_dict())
    assert unnamed <= {"model.shared.weight"}  # the words of both halves, which the decoder has under its own name
    assert "final_logits_bias" in report.dropped
    shared = whole.model.shared.weight
    assert torch.equal(reader.decoder.get_input_embeddings().weight, shared)


# Vocabulary and tokens


def test_tokenizer_with_more_tokens_than_the_text_model_is_refused(tmp_path):
    save_encoder("vit", tmp_path / "vision"), save_text("roberta", tmp_path / "text")
    larger = tiny_tokenizer([*WORDS, *"ABCDEFGH"])
    processor = TrOCREncoderDecoderProcessor(hub.ViTImageProcessor(), larger)
    with pytest.raises(ValueError, match="at most the text model's 32 tokens, got 38"):
        from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text", processor=processor)
    larger.save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="at most the text model's 32 tokens, got 38"):
        from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text")


@pytest.mark.parametrize("text", ["roberta", "gpt2"])
def test_token_ids_come_from_the_tokenizer_and_are_saved(text, tmp_path):
    save_encoder("vit", tmp_path / "vision")
    save_text(text, tmp_path / "text", bos_token_id=7, eos_token_id=8, pad_token_id=9)
    reader = from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text")
    reader.save_pretrained(tmp_path / "reader")
    for file in ("config.json", "generation_config.json"):
        saved = json.loads((tmp_path / "reader" / file).read_text())
        assert (saved["decoder_start_token_id"], saved["bos_token_id"]) == (START, START)
        assert (saved["eos_token_id"], saved["pad_token_id"]) == (END, PAD)
    assert reader.config.text_config.eos_token_id == END


def test_text_model_without_a_tokenizer_keeps_its_own_token_ids(tmp_path):
    # transformers would make a tokenizer of special tokens alone, with ids that mean nothing here.
    save_encoder("vit", tmp_path / "vision")
    model = hub.RobertaModel(hub.RobertaConfig(**ENCODER_ONLY | {"bos_token_id": 7, "eos_token_id": 8}))
    model.save_pretrained(tmp_path / "text")
    reader = from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text")
    assert (reader.config.decoder_start_token_id, reader.config.eos_token_id) == (7, 8)


def test_settings_win_over_what_follows_from_the_parts(tmp_path):
    reader, _, _ = assemble("vit", "roberta", tmp_path, decoder_start_token_id=END, max_new_tokens=300)
    assert reader.generation_config.decoder_start_token_id == END
    # RoBERTa counts positions behind its padding id 0: 22 rows are 21 tokens, the start token among them.
    assert reader.generation_config.max_new_tokens == 20


# Damaged parts


def test_text_model_that_lacks_a_layer_is_refused(tmp_path):
    for text, part in (("roberta", "layer.1"), ("gpt2", "h.1.mlp")):
        save_encoder("vit", tmp_path / "vision"), save_text(text, tmp_path / text)
        weights = load_file(tmp_path / text / "model.safetensors")
        weights = {name: tensor for name, tensor in weights.items() if part not in name}
        save_file(weights, tmp_path / text / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match="complete"):
            from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / text)


def test_vision_encoder_that_lacks_a_layer_is_refused(tmp_path):
    save_encoder("vit", tmp_path / "vision"), save_text("roberta", tmp_path / "text")
    weights = load_file(tmp_path / "vision/model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if "layer.0.output" not in name}
    save_file(weights, tmp_path / "vision/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="Every weight of the vision encoder must come from"):
        from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "text")


def test_model_and_processor_of_the_same_parts_work_together(tmp_path):
    save_encoder("vit", tmp_path / "vision"), save_text("roberta", tmp_path / "text")
    hub.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vision")
    parts = {"vision": tmp_path / "vision", "text": tmp_path / "text"}
    processor = TrOCREncoderDecoderProcessor.from_pretrained_parts(**parts)
    reader = from_pretrained_parts(**parts, processor=processor)
    batch = processor(images=[Image.new("L", (40, 12), 200)] * 2, text=["abc", "d"])
    assert batch["labels"].tolist() == [[4, 5, 6, END], [7, END, -100, -100]]
    assert reader(**batch).loss.isfinite()
