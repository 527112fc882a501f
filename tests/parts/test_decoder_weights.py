"""Text encoders made decoders: the oracle is transformers' own encoder run under a causal mask."""

import pytest
import torch
import transformers

from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderTextConfig
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM
from hf_vlm.parts.checkpoint_files import read_config, read_weights
from hf_vlm.parts.decoder_weights import MappedDecoder, map_text_config, map_text_weights

FAMILIES = {
    "bert": ("BertModel", "BertForPreTraining"),
    "roberta": ("RobertaModel", "RobertaForMaskedLM"),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    "camembert": ("CamembertModel", "CamembertForMaskedLM"),
}


def make_source(model_type: str, with_head: bool = False, **settings) -> transformers.PreTrainedModel:
    """A tiny source in which every tensor matters: norms and biases are random too."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=40,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=56,
        max_position_embeddings=20,
        type_vocab_size=2,
        layer_norm_eps=1e-3,
        is_decoder=True,
        **settings,
    )
    source = getattr(transformers, FAMILIES[model_type][with_head])(config).eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_(std=0.3)
    return source


def save_and_map(source: transformers.PreTrainedModel, folder, **settings) -> MappedDecoder:
    source.save_pretrained(folder)
    return map_text_weights(read_config(folder), read_weights(folder), **settings)


def make_decoder(mapped: MappedDecoder) -> TrOCREncoderDecoderForCausalLM:
    decoder = TrOCREncoderDecoderForCausalLM(TrOCREncoderDecoderTextConfig(**mapped.config_fields)).eval()
    missing, unexpected = decoder.load_state_dict(mapped.weights, strict=False)
    assert not unexpected
    assert all("cross_attention" in name or name == "lm_head.weight" for name in missing)
    return decoder


def token_ids(num_tokens: int = 17) -> torch.Tensor:
    """Ids without special ones: RoBERTa gives the padding token no position of its own."""
    return torch.randint(5, 40, (2, num_tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_decoder_without_picture_equals_source_under_a_causal_mask(model_type, tmp_path):
    source = make_source(model_type)
    decoder = make_decoder(save_and_map(source, tmp_path))
    wanted = source(input_ids=token_ids(), use_cache=False, output_hidden_states=True)
    got = decoder.model(input_ids=token_ids(), output_hidden_states=True)
    assert len(got.hidden_states) == len(wanted.hidden_states) == 5
    for ours, theirs in zip(got.hidden_states, wanted.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_last_layers_are_kept_when_fewer_are_asked_for(model_type, tmp_path):
    source = make_source(model_type)
    decoder = make_decoder(save_and_map(source, tmp_path, num_layers=2))
    source.encoder.layer = source.encoder.layer[2:]
    wanted = source(input_ids=token_ids(), use_cache=False).last_hidden_state
    torch.testing.assert_close(decoder.model(input_ids=token_ids()).last_hidden_state, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_file_with_a_head_gives_the_same_weights(model_type, tmp_path):
    whole = make_source(model_type, with_head=True)
    body = whole.base_model
    with_head = save_and_map(whole, tmp_path / "whole")
    without = save_and_map(body, tmp_path / "body")
    assert with_head.weights.keys() == without.weights.keys()
    for name, tensor in without.weights.items():
        assert torch.equal(with_head.weights[name], tensor), name


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("num_layers", [None, 1])
def test_every_source_tensor_is_copied_folded_or_dropped_once(model_type, num_layers, tmp_path):
    whole = make_source(model_type, with_head=True)
    mapped = save_and_map(whole, tmp_path, num_layers=num_layers)
    groups = [*mapped.copied, *mapped.folded, *mapped.dropped]
    assert sorted(groups) == sorted(read_weights(tmp_path))
    assert sorted(mapped.copied.values()) == sorted(mapped.weights)
    assert all(reason for reason in (mapped.folded | mapped.dropped).values())
    # 16 tensors a layer, and words, positions, the norm's two
    assert len(mapped.copied) == 16 * (num_layers or 4) + 4


def test_only_cross_attention_and_tied_output_are_left_to_the_decoder(tmp_path):
    mapped = save_and_map(make_source("roberta"), tmp_path)
    decoder = TrOCREncoderDecoderForCausalLM(TrOCREncoderDecoderTextConfig(**mapped.config_fields))
    left = set(decoder.state_dict()) - set(mapped.weights)
    assert left == {name for name in decoder.state_dict() if ".cross_attention" in name} | {"lm_head.weight"}
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight


def test_roberta_positions_begin_after_the_padding_id(tmp_path):
    source = make_source("roberta", pad_token_id=3)
    mapped = save_and_map(source, tmp_path)
    segment = source.embeddings.token_type_embeddings.weight[0]
    wanted = source.embeddings.position_embeddings.weight[4:] + segment
    assert mapped.config_fields["max_position_embeddings"] == 16
    torch.testing.assert_close(mapped.weights["model.embed_positions.weight"], wanted.detach())


def test_names_of_old_files_are_understood(tmp_path):
    source = make_source("bert")
    mapped = save_and_map(source, tmp_path)
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in read_weights(tmp_path).items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(20)[None]
    again = map_text_weights(read_config(tmp_path), old)
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in mapped.weights.items())
    assert sorted([*again.copied, *again.folded, *again.dropped]) == sorted(old)


def test_config_object_and_file_give_the_same_fields(tmp_path):
    source = make_source("xlm-roberta")
    source.save_pretrained(tmp_path)
    assert map_text_config(source.config) == map_text_config(read_config(tmp_path))


def test_half_precision_source_stays_half_precision(tmp_path):
    mapped = save_and_map(make_source("bert").half(), tmp_path)
    assert {tensor.dtype for tensor in mapped.weights.values()} == {torch.float16}


def test_model_of_another_family_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"bert, camembert, roberta, xlm-roberta.*got 'llama'.*projector model"):
        map_text_config({"model_type": "llama"})


def test_relative_positions_are_refused():
    with pytest.raises(ValueError, match='got "relative_key"'):
        map_text_config({"model_type": "bert", "position_embedding_type": "relative_key"})


@pytest.mark.parametrize("num_layers", [0, 5])
def test_layers_that_the_source_lacks_are_refused(num_layers):
    config = make_source("bert").config
    with pytest.raises(ValueError, match=rf"from 1 to the text encoder's 4, got {num_layers}"):
        map_text_config(config, num_layers=num_layers)


def test_unknown_tensor_is_refused_by_name(tmp_path):
    source = make_source("bert")
    weights = source.state_dict() | {"encoder.layer.3.adapter.down.weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match=r"got `encoder\.layer\.3\.adapter\.down\.weight`"):
        map_text_weights(source.config, weights)


def test_missing_tensor_is_refused_by_name():
    source = make_source("roberta")
    weights = source.state_dict()
    del weights["encoder.layer.2.output.dense.bias"]
    with pytest.raises(ValueError, match=r"must have `encoder\.layer\.2\.output\.dense\.bias` \(and 0 more"):
        map_text_weights(source.config, weights)


@pytest.mark.parametrize(("setting", "value"), [("vocab_size", 41), ("max_position_embeddings", 21)])
def test_config_that_disagrees_with_weights_is_refused(setting, value):
    source = make_source("roberta")
    config = source.config.to_dict() | {setting: value}
    with pytest.raises(ValueError, match=rf"`{setting}` = {value} rows, got {value - 1}"):
        map_text_weights(config, source.state_dict())
