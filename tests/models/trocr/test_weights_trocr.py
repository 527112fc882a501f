"""Names and config fields of TrOCR folders: the oracle is transformers' own TrOCR with the same weights."""

import pytest
import torch
from transformers import (
    DeiTConfig,
    GPT2Config,
    TrOCRConfig,
    TrOCRForCausalLM,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderConfig, TrOCREncoderDecoderTextConfig
from hf_vlm.models.trocr.modeling_trocr import TrOCREncoderDecoderForConditionalGeneration
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM
from hf_vlm.models.trocr.weights_trocr import (
    config_from_vision_encoder_decoder,
    decoder_weights_from_trocr,
    text_config_from_trocr,
    weights_from_vision_encoder_decoder,
)
from hf_vlm.parts.checkpoint_files import read_config, read_weights

# Settings of the published decoders, and some that no folder has.
DECODERS = {
    "base": {},
    "small": {"activation_function": "relu", "scale_embedding": True, "tie_word_embeddings": False},
    "large": {
        "activation_function": "relu",
        "scale_embedding": True,
        "layernorm_embedding": False,
        "use_learned_position_embeddings": False,
    },
    "wide picture": {"cross_attention_hidden_size": 20},
    "other padding": {"use_learned_position_embeddings": False, "pad_token_id": 4},
}


def make_trocr_config(**settings) -> TrOCRConfig:
    small = {"vocab_size": 32, "d_model": 24, "decoder_layers": 2, "decoder_attention_heads": 3, "decoder_ffn_dim": 40}
    return TrOCRConfig(**(small | {"max_position_embeddings": 18} | settings))


def randomise(model: torch.nn.Module) -> None:
    """Give every tensor, norms and biases too, values that matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)


def make_folder(folder, encoder=None, decoder=None) -> VisionEncoderDecoderModel:
    encoder = encoder or ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    decoder = decoder or make_trocr_config()
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 1, 2
    model = VisionEncoderDecoderModel(config).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


def load_decoder(folder) -> TrOCREncoderDecoderForCausalLM:
    fields = text_config_from_trocr(read_config(folder))
    config = TrOCREncoderDecoderTextConfig(**fields)
    decoder = TrOCREncoderDecoderForCausalLM(config).eval()
    missing, unexpected = decoder.load_state_dict(
        decoder_weights_from_trocr(read_weights(folder), config), strict=False
    )
    assert not unexpected
    assert set(missing) == ({"lm_head.weight"} if config.tie_word_embeddings else set())
    return decoder


@pytest.mark.parametrize("settings", DECODERS.values(), ids=DECODERS)
@torch.no_grad()
def test_decoder_of_a_trocr_file_gives_equal_logits(settings, tmp_path):
    theirs = TrOCRForCausalLM(make_trocr_config(is_decoder=True, **settings)).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = load_decoder(tmp_path)
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "input_ids": torch.randint(5, 32, (2, 18), generator=generator),
        "encoder_hidden_states": torch.randn(
            2, 7, settings.get("cross_attention_hidden_size", 24), generator=generator
        ),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
    }
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs, use_cache=False).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("encoder_width", [24, 16])
@torch.no_grad()
def test_whole_folder_gives_equal_logits_with_and_without_a_projection(encoder_width, tmp_path):
    encoder = DeiTConfig(
        hidden_size=encoder_width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
    )
    theirs = make_folder(tmp_path, encoder=encoder)
    ours = TrOCREncoderDecoderForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert isinstance(ours.encoder.projection, torch.nn.Identity) == (encoder_width == 24)
    inputs = {
        "pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)),
        "decoder_input_ids": torch.tensor([[2, 5, 9, 30], [2, 31, 6, 7]]),
    }
    torch.testing.assert_close(ours(**inputs).logits, theirs(**inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decoder", [None, GPT2Config(vocab_size=32, n_embd=24, n_layer=1, n_head=2, n_positions=18)])
def test_every_tensor_of_the_file_is_carried_over(decoder, tmp_path):
    make_folder(tmp_path, decoder=decoder)
    config = TrOCREncoderDecoderConfig(**config_from_vision_encoder_decoder(read_config(tmp_path)))
    theirs = read_weights(tmp_path)
    ours = weights_from_vision_encoder_decoder(theirs, config)
    assert len(ours) == len(theirs)
    # Values say which came from which; only the two unread rows of the position table may be lost.
    total = sum(tensor.double().abs().sum() for tensor in theirs.values())
    unread = 0.0 if decoder else theirs["decoder.model.decoder.embed_positions.weight"][:2].double().abs().sum()
    torch.testing.assert_close(sum(tensor.double().abs().sum() for tensor in ours.values()), total - unread)


def test_token_ids_of_the_whole_win_over_the_decoders():
    section = make_trocr_config(decoder_start_token_id=2, pad_token_id=1).to_dict()
    whole = {"encoder": ViTConfig().to_dict(), "decoder": section, "decoder_start_token_id": 0, "pad_token_id": None}
    fields = config_from_vision_encoder_decoder(whole)
    assert (fields["decoder_start_token_id"], fields["pad_token_id"], fields["eos_token_id"]) == (0, 1, 2)


def test_start_token_that_the_file_leaves_out_is_that_of_transformers():
    section = make_trocr_config().to_dict()
    del section["decoder_start_token_id"]
    fields = config_from_vision_encoder_decoder({"encoder": ViTConfig().to_dict(), "decoder": section})
    assert fields["decoder_start_token_id"] == 2


def test_fields_that_the_file_leaves_out_have_the_defaults_of_transformers():
    ours, theirs = text_config_from_trocr({"model_type": "trocr"}), TrOCRConfig()
    assert (ours["hidden_size"], ours["num_hidden_layers"]) == (theirs.d_model, theirs.decoder_layers)
    assert ours["max_position_embeddings"] == theirs.max_position_embeddings


def decoder_file(**settings) -> tuple[dict[str, torch.Tensor], TrOCREncoderDecoderTextConfig]:
    config = make_trocr_config(is_decoder=True, **settings)
    text_config = TrOCREncoderDecoderTextConfig(**text_config_from_trocr(config.to_dict()))
    return dict(TrOCRForCausalLM(config).state_dict()), text_config


def test_marker_of_old_sinusoidal_files_is_left_out():
    weights, config = decoder_file(use_learned_position_embeddings=False)
    weights["model.decoder.embed_positions._float_tensor"] = torch.zeros(1)
    assert not [name for name in decoder_weights_from_trocr(weights, config) if "positions" in name]


def test_unknown_tensor_is_refused_by_name():
    weights, config = decoder_file()
    weights["model.decoder.layers.2.fc1.weight"] = torch.zeros(40, 24)
    with pytest.raises(ValueError, match=r"got `model\.decoder\.layers\.2\.fc1\.weight`"):
        decoder_weights_from_trocr(weights, config)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("model.decoder.layers.1.encoder_attn.k_proj.bias", {}),
        ("model.decoder.embed_positions.weight", {}),
        ("output_projection.weight", {"tie_word_embeddings": False}),
    ],
)
def test_missing_tensor_is_refused_by_name(name, settings):
    weights, config = decoder_file(**settings)
    del weights[name]
    with pytest.raises(ValueError, match=f"got none named `{name}`"):
        decoder_weights_from_trocr(weights, config)


def test_tensor_of_no_part_is_refused_by_name():
    config = TrOCREncoderDecoderConfig()
    with pytest.raises(ValueError, match=r"got `language_model\.norm\.weight`"):
        weights_from_vision_encoder_decoder({"language_model.norm.weight": torch.zeros(1)}, config)


@pytest.mark.parametrize("section", ["encoder", "decoder"])
def test_config_without_a_section_is_refused(section):
    config = {"encoder": {"model_type": "vit"}, "decoder": {"model_type": "trocr"}}
    del config[section]
    with pytest.raises(ValueError, match=f"a section `{section}`"):
        config_from_vision_encoder_decoder(config)


def test_config_of_another_decoder_is_refused():
    with pytest.raises(ValueError, match="'trocr' wanted, got 'gpt2'"):
        text_config_from_trocr({"model_type": "gpt2"})
