"""Names and config fields of other LLaVA folders: the oracle is transformers' own LLaVA with the same weights."""

import copy

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionConfig

from hf_vlm.models.llava.configuration_llava import LlavaVisionLanguageConfig
from hf_vlm.models.llava.weights_llava import (
    check_not_delta,
    config_from_llava,
    config_from_original,
    is_original_layout,
    weights_from_llava,
    weights_from_original,
)
from hf_vlm.parts.checkpoint_files import read_config, read_weights
from tests.models.llava.stock_folders import (
    BOS,
    EOS,
    IMAGE_TOKEN,
    PAD,
    original_config,
    original_weights,
    stock_model,
    text_config,
    vision_config,
    vision_model,
)

PARTS = [("clip", "llama"), ("siglip", "llama"), ("clip", "mistral"), ("siglip", "mistral")]
LAYOUTS = {"usual names": {}, "names in memory": {"save_original_format": False}}


def wanted_names(config: LlavaVisionLanguageConfig) -> set[str]:
    """Every tensor that ours must get, asked of the parts."""
    names = {f"vision_model.{name}" for name in AutoModel.from_config(config.vision_config).state_dict()}
    names |= {f"language_model.{name}" for name in AutoModelForCausalLM.from_config(config.text_config).state_dict()}
    layers = range(config.num_linear_layers)
    return names | {f"projector.linears.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


# Folders of transformers


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("vision", "text"), PARTS)
def test_every_tensor_of_a_stock_file_comes_under_our_name(vision, text, layout, tmp_path):
    stock = stock_model(vision, text)
    stock.save_pretrained(tmp_path, **LAYOUTS[layout])
    config = LlavaVisionLanguageConfig(**config_from_llava(read_config(tmp_path)))
    ours = weights_from_llava(read_weights(tmp_path), config)
    assert set(ours) == wanted_names(config)
    expected = {
        "vision_model.embeddings.patch_embedding.weight": stock.model.vision_tower.embeddings.patch_embedding.weight,
        "vision_model.encoder.layers.2.mlp.fc1.bias": stock.model.vision_tower.encoder.layers[2].mlp.fc1.bias,
        "projector.linears.0.weight": stock.model.multi_modal_projector.linear_1.weight,
        "projector.linears.0.bias": stock.model.multi_modal_projector.linear_1.bias,
        "projector.linears.1.weight": stock.model.multi_modal_projector.linear_2.weight,
        "projector.linears.1.bias": stock.model.multi_modal_projector.linear_2.bias,
        "language_model.model.embed_tokens.weight": stock.model.language_model.embed_tokens.weight,
        "language_model.model.layers.1.mlp.up_proj.weight": stock.model.language_model.layers[1].mlp.up_proj.weight,
        "language_model.model.norm.weight": stock.model.language_model.norm.weight,
        "language_model.lm_head.weight": stock.lm_head.weight,
    }
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name
    # Values say which came from which in the parts, too.
    total = sum(parameter.detach().double().abs().sum() for parameter in stock.parameters())
    torch.testing.assert_close(sum(tensor.double().abs().sum() for tensor in ours.values()), total)


def test_stock_config_becomes_ours():
    stock = stock_model(vision_feature_layer=-3, projector_hidden_act="relu")
    fields = config_from_llava(stock.config.to_dict())
    config = LlavaVisionLanguageConfig(**fields)
    assert type(config.vision_config) is CLIPVisionConfig
    assert config.vision_config.num_hidden_layers == 3
    assert (config.text_config.model_type, config.text_config.hidden_size) == ("llama", 24)
    assert (config.num_linear_layers, config.projector_hidden_act) == (2, "relu")
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-3, "default")
    assert (config.vision_hidden_size, config.num_image_tokens, config.image_size) == (16, 4, [16, 16])
    assert config.image_token_id == IMAGE_TOKEN
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (PAD, BOS, EOS)


def test_fields_that_the_file_leaves_out_have_the_defaults_of_transformers():
    """As the Hub's first `llava-1.5-7b-hf`: its language model is told by four fields."""
    file = {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": 32064,
        },
        "vision_config": {
            "hidden_size": 1024,
            "image_size": 336,
            "intermediate_size": 4096,
            "model_type": "clip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
            "projection_dim": 768,
            "vocab_size": 32000,
        },
    }
    config = LlavaVisionLanguageConfig(**config_from_llava(file))
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (4096, 32)
    assert (config.text_config.vocab_size, config.text_config.rms_norm_eps) == (32064, 1e-5)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.num_image_tokens, config.projector_hidden_act) == (576, "gelu")
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (32001, 1, 2)


@pytest.mark.parametrize(
    ("vision", "strategy", "prefix", "tokens"),
    [("clip", "default", 1, 4), ("clip", "full", 1, 5), ("siglip", "default", 1, 3), ("siglip", "full", 0, 4)],
)
def test_default_cuts_the_first_token_whatever_it_is(vision, strategy, prefix, tokens):
    """SigLIP has no class token: there transformers' `default` leaves out the first patch."""
    stock = stock_model(vision, vision_feature_select_strategy=strategy)
    fields = config_from_llava(stock.config.to_dict())
    assert (fields["num_prefix_tokens"], fields["num_image_tokens"]) == (prefix, tokens)
    pictures = torch.zeros(1, 3, 16, 16)
    assert stock.get_image_features(pictures).pooler_output[0].shape[0] == tokens


@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_last_layer_is_meant_before_the_final_norm(vision):
    fields = config_from_llava(stock_model(vision, vision_feature_layer=-1).config.to_dict())
    assert fields["vision_feature_layer"] == 3


@pytest.mark.parametrize("of_whole", [True, False])
def test_tied_words_are_tied_whichever_section_says_so(of_whole):
    config = stock_model().config.to_dict()
    (config if of_whole else config["text_config"])["tie_word_embeddings"] = True
    fields = config_from_llava(config)
    assert LlavaVisionLanguageConfig(**fields).tie_word_embeddings


def test_config_given_is_left_as_it_is():
    config = stock_model().config.to_dict()
    before = copy.deepcopy(config)
    config_from_llava(config)
    assert config == before


def test_old_buffers_are_left_out(tmp_path):
    stock = stock_model()
    stock.save_pretrained(tmp_path)
    config = LlavaVisionLanguageConfig(**config_from_llava(read_config(tmp_path)))
    weights = read_weights(tmp_path)
    names = set(weights_from_llava(weights, config))
    weights["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    weights["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    assert set(weights_from_llava(weights, config)) == names


@pytest.mark.parametrize("name", ["image_newline", "model.image_newline", "multi_modal_projector.linear_3.weight"])
def test_tensor_of_no_part_is_refused_by_name(name):
    config = LlavaVisionLanguageConfig(**config_from_llava(stock_model().config.to_dict()))
    with pytest.raises(ValueError, match=f"got `{name}`"):
        weights_from_llava({name: torch.zeros(1)}, config)


@pytest.mark.parametrize("section", ["vision_config", "text_config"])
def test_stock_config_without_a_section_is_refused(section):
    config = stock_model().config.to_dict()
    del config[section]
    with pytest.raises(ValueError, match=f"a section `{section}`"):
        config_from_llava(config)


@pytest.mark.parametrize("layers", [[-2], [-2, 1]])
def test_features_of_several_layers_are_refused(layers):
    config = stock_model().config.to_dict() | {"vision_feature_layer": layers}
    with pytest.raises(ValueError, match=r"must be one layer, got the list \[-2.*several side by side"):
        config_from_llava(config)


def test_projector_without_biases_is_refused():
    config = stock_model().config.to_dict() | {"multimodal_projector_bias": False}
    with pytest.raises(ValueError, match="`multimodal_projector_bias` must be true"):
        config_from_llava(config)


# The original layout


@pytest.mark.parametrize("model_type", ["llava", "llava_llama", "llava_mistral"])
def test_layouts_are_told_apart(model_type):
    assert is_original_layout(original_config(model_type=model_type))
    assert not is_original_layout(stock_model().config.to_dict())
    assert not is_original_layout({"model_type": "llama"})


@pytest.mark.parametrize("text", ["llama", "mistral"])
def test_original_config_becomes_ours(text):
    config = LlavaVisionLanguageConfig(**config_from_original(original_config(text), vision_config("clip")))
    assert config.vision_config.to_dict() == vision_config("clip").to_dict()
    expected = text_config(text).to_dict()  # which counts the image token in its vocabulary already
    ours = config.text_config.to_dict()
    assert {name: ours[name] for name in expected if name != "_name_or_path"} == {
        name: value for name, value in expected.items() if name != "_name_or_path"
    }
    assert config.image_token_id == 39
    assert (config.num_linear_layers, config.projector_hidden_act) == (2, "gelu")
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.vision_hidden_size, config.num_image_tokens, config.image_size) == (16, 4, [16, 16])
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (PAD, BOS, EOS)


def test_original_config_of_an_early_folder_becomes_ours():
    """LLaVA-7b-v0's has no projector type, no features, no key-value heads, and -1 for no padding token."""
    early = original_config(pad_token_id=-1, rope_theta=500.0)
    for name in ("mm_projector_type", "mm_vision_select_feature", "mm_resampler_type", "num_key_value_heads"):
        del early[name]
    config = LlavaVisionLanguageConfig(**config_from_original(early, vision_config("clip")))
    assert (config.num_linear_layers, config.vision_feature_select_strategy) == (1, "default")
    assert config.text_config.num_key_value_heads == 4
    assert config.text_config.rope_parameters["rope_theta"] == 500.0
    assert config.pad_token_id is None


@pytest.mark.parametrize(("kind", "depth"), [("linear", 1), ("mlp1x_gelu", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_projectors_are_as_deep_as_named(kind, depth):
    fields = config_from_original(original_config(mm_projector_type=kind), vision_config("clip"))
    assert fields["num_linear_layers"] == depth


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mm_vision_select_feature": "cls_patch"}, (-2, "full", 5)),
        ({"mm_vision_select_layer": -1}, (3, "default", 4)),
        ({"mm_vision_select_layer": 1}, (1, "default", 4)),
    ],
)
def test_what_is_shown_of_a_picture_follows_the_original_config(settings, expected):
    fields = config_from_original(original_config(**settings), vision_config("clip"))
    names = ("vision_feature_layer", "vision_feature_select_strategy", "num_image_tokens")
    assert tuple(fields[name] for name in names) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mm_projector_type": "identity"}, "got `identity`"),
        ({"mm_projector_type": "mlp2x_relu"}, "got `mlp2x_relu`"),
        ({"mm_projector_type": "mlp0x_gelu"}, "got `mlp0x_gelu`"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "got `mm_patch_merge_type` 'spatial_unpad'"),
        ({"mm_resampler_type": "perceiver"}, "got `mm_resampler_type` 'perceiver'"),
        ({"s2": True}, "got `s2` True"),
        ({"mm_vision_select_feature": "cls"}, "got `cls`"),
        ({"model_type": "llava_mpt"}, "got `llava_mpt`"),
        ({"mm_hidden_size": 1024}, r"must be 1024 wide.*got one of 16.*vision='openai/clip-vit-tiny'"),
    ],
)
def test_original_folder_of_another_kind_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config_from_original(original_config(**settings), vision_config("clip"))


def original(projector="mlp2x_gelu", text="llama", **settings):
    """Weights in the original layout, the config made of theirs, and the vision encoder's weights."""
    stock = stock_model(text=text)
    file = original_config(text, mm_projector_type=projector, **settings)
    config = LlavaVisionLanguageConfig(**config_from_original(file, vision_config("clip")))
    return original_weights(stock, projector), config, vision_model(stock).state_dict(), stock


@pytest.mark.parametrize("text", ["llama", "mistral"])
@pytest.mark.parametrize("projector", ["mlp2x_gelu", "linear"])
def test_every_tensor_of_an_original_file_comes_under_our_name(projector, text):
    weights, config, vision, stock = original(projector, text)
    ours = weights_from_original(weights, config, vision)
    assert set(ours) == wanted_names(config)
    layers = stock.model.multi_modal_projector
    expected = {
        "vision_model.encoder.layers.2.mlp.fc1.bias": stock.model.vision_tower.encoder.layers[2].mlp.fc1.bias,
        "projector.linears.0.weight": layers.linear_1.weight,
        "language_model.model.layers.1.mlp.up_proj.weight": stock.model.language_model.layers[1].mlp.up_proj.weight,
        "language_model.model.norm.weight": stock.model.language_model.norm.weight,
    }
    if projector != "linear":
        expected["projector.linears.1.bias"] = layers.linear_2.bias
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name


def test_image_token_gets_a_row_more_the_mean_of_the_others():
    weights, config, vision, _ = original()
    weights = {name: tensor.half() for name, tensor in weights.items()}
    ours = weights_from_original(weights, config, vision)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = ours[f"language_model.{name}"]
        assert rows.shape[0] == weights[name].shape[0] + 1 == config.image_token_id + 1
        assert rows.dtype == torch.float16
        assert torch.equal(rows[:-1], weights[name])
        torch.testing.assert_close(rows[-1].double(), weights[name].double().mean(dim=0), atol=1e-3, rtol=0)


def test_projector_of_one_layer_in_a_sequence_is_found():
    weights, _, vision, _ = original("linear")
    for kind in ("weight", "bias"):
        weights[f"model.mm_projector.0.{kind}"] = weights.pop(f"model.mm_projector.{kind}")
    file = original_config(mm_projector_type="mlp1x_gelu")
    config = LlavaVisionLanguageConfig(**config_from_original(file, vision_config("clip")))
    ours = weights_from_original(weights, config, vision)
    assert torch.equal(ours["projector.linears.0.weight"], weights["model.mm_projector.0.weight"])


@pytest.mark.parametrize("prefix", ["vision_model.", ""])
def test_vision_encoder_in_the_folder_is_taken_before_the_one_given(prefix):
    """As saved where the encoder was trained along; the code's own transformers put `vision_model.` in front."""
    weights, config, vision, _ = original()
    for name, tensor in vision.items():
        weights[f"model.vision_tower.vision_tower.{prefix}{name}"] = tensor + 1
    weights[f"model.vision_tower.vision_tower.{prefix}embeddings.position_ids"] = torch.arange(5)[None]
    ours = weights_from_original(weights, config, vision)
    assert set(ours) == wanted_names(config)
    for name, tensor in vision.items():
        assert torch.equal(ours[f"vision_model.{name}"], tensor + 1)


def test_vision_encoder_in_the_folder_that_lacks_a_tensor_is_refused():
    weights, config, vision, _ = original()
    for name, tensor in vision.items():
        weights[f"model.vision_tower.vision_tower.vision_model.{name}"] = tensor
    del weights["model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"]
    with pytest.raises(
        ValueError, match=r"none named `model\.vision_tower\.vision_tower\.encoder\.layers\.0\.mlp\.fc1"
    ):
        weights_from_original(weights, config, vision)


def test_old_frequencies_are_left_out():
    weights, config, vision, _ = original()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    assert set(weights_from_original(weights, config, vision)) == wanted_names(config)


@pytest.mark.parametrize(
    "name",
    [
        "model.image_newline",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.mm_projector.4.weight",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight",
    ],
)
def test_tensor_without_a_place_is_refused_by_name(name):
    weights, config, vision, _ = original()
    weights[name] = torch.zeros(1)
    with pytest.raises(ValueError, match=f"must be in its table, got `{name}`"):
        weights_from_original(weights, config, vision)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.input_layernorm.weight",
        "model.mm_projector.2.bias",
    ],
)
def test_missing_tensor_is_refused_by_name(name):
    weights, config, vision, _ = original()
    del weights[name]
    with pytest.raises(ValueError, match=f"got none named `{name}`"):
        weights_from_original(weights, config, vision)


def test_vocabulary_of_another_size_than_the_configs_is_refused():
    weights, config, vision, _ = original()
    weights["lm_head.weight"] = weights["lm_head.weight"][:-3]
    with pytest.raises(ValueError, match=r"`lm_head\.weight` must have 39 rows .*, got 36"):
        weights_from_original(weights, config, vision)


def test_tied_output_layer_may_be_left_out():
    weights, config, vision, _ = original(tie_word_embeddings=True)
    assert config.tie_word_embeddings
    del weights["lm_head.weight"]
    ours = weights_from_original(weights, config, vision)
    assert set(ours) == wanted_names(config) - {"language_model.lm_head.weight"}


def test_differences_to_the_weights_of_llama_are_refused():
    """Two models of one origin: their final norms are around one, the difference is not."""
    weights, *_ = original()
    check_not_delta(weights)
    base = {name: tensor - 0.01 * torch.randn(tensor.shape) for name, tensor in weights.items()}
    delta = {name: tensor - base[name] for name, tensor in weights.items()}
    with pytest.raises(ValueError, match=r"differences to LLaMA's .*`delta` folder\. .*apply_delta.*v1\.5"):
        check_not_delta({name: tensor.half() for name, tensor in delta.items()})
