"""Any vision encoder and any tokenizer become a captioner; every weight is accounted for."""

import json

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
    pipeline,
)

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.data.word_tokenizer import build_word_tokenizer
from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import CnnLstmForConditionalGeneration
from hf_vlm.models.cnn_lstm.processing_cnn_lstm import CnnLstmProcessor
from hf_vlm.parts.weight_report import WeightReport, hash_weights
from tests.model_contract import train

from_pretrained_parts = CnnLstmForConditionalGeneration.from_pretrained_parts
CAPTIONS = ["a red picture", "a green picture", "a dark blue picture", "nothing at all"]
COLORS = ["red", "green", "navy", "white"]
DECODER = {"embedding_size": 16, "hidden_size": 24}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return build_word_tokenizer(CAPTIONS, min_count=1)


def resnet_config() -> ResNetConfig:
    return ResNetConfig(embedding_size=6, hidden_sizes=[6, 8, 10], depths=[1, 1, 1], layer_type="basic")


@pytest.fixture
def resnet() -> ResNetModel:
    torch.manual_seed(0)
    model = ResNetModel(resnet_config()).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
    return model


def test_encoder_is_copied_and_the_rest_is_new(resnet, tokenizer, tmp_path):
    resnet.save_pretrained(tmp_path / "vision")
    tokenizer.save_pretrained(tmp_path / "words")
    model = from_pretrained_parts(vision=tmp_path / "vision", text=tmp_path / "words", attention="additive", **DECODER)
    for name, tensor in resnet.state_dict().items():
        assert torch.equal(model.encoder.vision_model.state_dict()[name], tensor), name
    report = model.weight_report
    assert [part.name for part in report.parts] == ["vision", "projector", "decoder"]
    assert report["vision"].source == "vision" and not report["vision"].new
    assert set(report["vision"].copied) == set(resnet.state_dict())
    assert set(report["decoder"].new) == set(model.decoder.state_dict()) and not report["decoder"].copied
    assert set(report["projector"].new) == set(model.projector.state_dict())
    assert not model.training


def test_tokenizer_settles_vocabulary_special_tokens_and_generation(resnet, tokenizer, tmp_path):
    model = from_pretrained_parts(vision=resnet, text=tokenizer, **DECODER)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["vocab_size"] == len(tokenizer)
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    assert {name: config[name] for name in tokens} == tokens
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert {name: generation[name] for name in tokens} == tokens
    assert (generation["max_new_tokens"], generation["num_beams"]) == (20, 3)
    assert generation["suppress_tokens"] == [3]  # <unk>
    asked = from_pretrained_parts(vision=resnet, text=tokenizer, max_new_tokens=7, num_beams=1, **DECODER)
    assert (asked.generation_config.max_new_tokens, asked.generation_config.num_beams) == (7, 1)


def test_unknown_word_is_never_written(resnet, tokenizer):
    model = from_pretrained_parts(vision=resnet, text=tokenizer, **DECODER)
    with torch.no_grad():
        model.decoder.output.bias[tokenizer.unk_token_id] = 100.0
    assert tokenizer.unk_token_id not in model.generate(torch.randn(2, 3, 48, 48))


def test_report_is_saved_reloaded_and_renewed(resnet, tokenizer, tmp_path):
    model = from_pretrained_parts(vision=resnet, text=tokenizer, **DECODER)
    with torch.no_grad():
        model.projector.first_input.weight += 1
    model.save_pretrained(tmp_path)
    report = WeightReport.load(tmp_path)
    assert report["projector"].sha256 == hash_weights(model.projector.state_dict())
    assert report["vision"].sha256 == hash_weights(resnet.state_dict())
    reloaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert reloaded.weight_report == report
    assert not hasattr(CnnLstmForConditionalGeneration(model.config), "weight_report")


def test_folder_of_this_machine_is_named_in_no_file(resnet, tokenizer, tmp_path):
    resnet.save_pretrained(tmp_path / "secret" / "vision")
    model = from_pretrained_parts(vision=tmp_path / "secret" / "vision", text=tokenizer, **DECODER)
    model.save_pretrained(tmp_path / "whole")
    for file in (tmp_path / "whole").glob("*.json"):
        assert "secret" not in file.read_text(), file


def test_instance_that_is_handed_over_stays_as_it_is(resnet, tokenizer):
    before = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    model = from_pretrained_parts(vision=resnet, text=tokenizer, **DECODER)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    assert model.config.vision_config is not resnet.config
    for name, tensor in resnet.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("kind", ["classifier", "clip", "vit"])
def test_vision_model_is_taken_out_of_its_whole(kind, tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    pictures = {"image_size": 32, "patch_size": 16}
    if kind == "classifier":
        whole = ResNetForImageClassification(resnet_config())
    elif kind == "clip":
        whole = CLIPModel(
            CLIPConfig(vision_config=sizes | pictures, text_config=sizes | {"vocab_size": 9}, projection_dim=8)
        )
    else:
        whole = ViTModel(ViTConfig(**sizes, **pictures))
    whole.save_pretrained(tmp_path)
    model = from_pretrained_parts(vision=tmp_path, text=tokenizer, attention="additive", **DECODER)
    assert model.vision_features(torch.randn(1, 3, 32, 32)).shape[1] == 4
    assert bool(model.weight_report["vision"].dropped) == (kind != "vit")


def test_any_tokenizer_will_do(resnet):
    tokenizer = build_character_tokenizer(CAPTIONS)
    tokenizer.add_special_tokens({"pad_token": "</s>", "unk_token": "</s>"})  # as GPT-2's, one for all
    model = from_pretrained_parts(vision=resnet, text=tokenizer, **DECODER)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (2, 2)
    assert model.generation_config.suppress_tokens is None
    assert model.generate(torch.randn(1, 3, 48, 48)).shape[0] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hiden_size": 3}, "`hiden_size` must be a setting .* Did you mean `hidden_size`"),
        ({"num_beam": 3}, "Did you mean `num_beams`"),
        ({"vocab_size": 5}, "at least the tokenizer's"),
    ],
)
def test_settings_that_are_wrong_are_refused(settings, message, resnet, tokenizer):
    with pytest.raises(ValueError, match=message):
        from_pretrained_parts(vision=resnet, text=tokenizer, **settings)


def test_vocabulary_may_have_room_for_more(resnet, tokenizer):
    assert (
        from_pretrained_parts(vision=resnet, text=tokenizer, vocab_size=99, **DECODER).decoder.output.out_features == 99
    )


def test_tokenizer_without_end_is_refused(resnet, tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"end token \(`eos_token` or `sep_token`\), got none"):
        from_pretrained_parts(vision=resnet, text=tokenizer)


def test_folder_without_a_tokenizer_is_named(resnet, tmp_path):
    resnet.save_pretrained(tmp_path / "no_words")
    with pytest.raises(ValueError, match="no_words must hold a tokenizer"):
        from_pretrained_parts(vision=resnet, text=tmp_path / "no_words")


def test_folder_that_lacks_a_weight_is_refused(resnet, tokenizer, tmp_path):
    model = from_pretrained_parts(vision=resnet, text=tokenizer, **DECODER)
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "decoder.lstm.bias_hh_l0"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"got none for 1 tensors, the first `decoder\.lstm\.bias_hh_l0`"):
        AutoModel.from_pretrained(tmp_path)


def test_trained_captioner_is_served_by_the_pipeline(resnet, tokenizer, tmp_path):
    image_processor = ViTImageProcessor(size={"height": 48, "width": 48})
    processor = CnnLstmProcessor.from_pretrained_parts(vision=image_processor, text=tokenizer)
    torch.manual_seed(0)
    model = from_pretrained_parts(vision=resnet, text=tokenizer, dropout=0.0, **DECODER)
    pictures = [Image.new("RGB", (60, 50), color) for color in COLORS]
    model.encoder.vision_model.requires_grad_(False)
    train(model, dict(processor(images=pictures, text=CAPTIONS)), 150, 2e-2)
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    write = pipeline("image-captioning", model=str(tmp_path))
    assert [texts[0]["generated_text"] for texts in write(pictures, batch_size=2)] == CAPTIONS
    several = write(pictures[0], num_beams=4, num_return_sequences=3)
    assert len({text["generated_text"] for text in several}) == 3
