"""The text decoder. Oracles: torch's own transformer decoder, transformers' sinusoidal table, literal positions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.models.trocr.modeling_trocr import TrOCRSinusoidalPositionalEmbedding

from hf_vlm.models.trocr.configuration_trocr import TrOCREncoderDecoderTextConfig
from hf_vlm.models.trocr.text_decoder import TrOCREncoderDecoderForCausalLM, sinusoidal_table
from tests.model_contract import GenerationContract, ModelContract
from tests.models.trocr.tiny_models import END, TEXT_DECODER, VOCAB_SIZE, randomise

FIELDS = {name: value for name, value in TEXT_DECODER.items() if name != "model_type"}


def tiny_decoder(**fields) -> TrOCREncoderDecoderForCausalLM:
    model = TrOCREncoderDecoderForCausalLM(TrOCREncoderDecoderTextConfig(**FIELDS | fields)).eval()
    randomise(model)
    return model


def picture_tokens(batch: int = 2, tokens: int = 6) -> torch.Tensor:
    return torch.randn(batch, tokens, 16, generator=torch.Generator().manual_seed(1))


class TestDecoderAlone(ModelContract, GenerationContract):
    """Without a picture it is a causal language model, served by `AutoModelForCausalLM`."""

    model_class = TrOCREncoderDecoderForCausalLM
    auto_class = AutoModelForCausalLM

    def config(self):
        return TrOCREncoderDecoderTextConfig(**FIELDS)

    def batch(self, model):
        ids = torch.randint(3, VOCAB_SIZE, (3, 9), generator=torch.Generator().manual_seed(2))
        ids[:, 0] = torch.tensor([3, 4, 5])  # three beginnings, so that three texts can be told apart
        ids[torch.arange(3), torch.tensor([8, 7, 6])] = END
        labels = ids.clone()
        labels[1, 8:], labels[2, 7:] = -100, -100
        return {"input_ids": ids, "labels": labels}

    def prompt(self, batch):
        return {"input_ids": batch["input_ids"][:, :1]}

    def learnt_ids(self, model, labels):
        return labels

    def test_gradient_reaches_every_trained_parameter(self):
        model = self.model().train()
        model(**self.batch(model)).loss.backward()
        left_out = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        assert left_out == {name for name, _ in model.named_parameters() if "cross_attention" in name}

    def test_gradient_checkpointing_changes_no_gradient(self):
        pytest.skip("the whole reader's matter: without a picture cross-attention has no gradient")


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@torch.no_grad()
def test_decoder_equals_torchs_with_the_same_weights(norm_position):
    model = tiny_decoder(norm_position=norm_position, cross_attention_size=24)
    text, picture = torch.randn(2, 5, 24), torch.randn(2, 6, 24)
    real = torch.arange(6) < torch.tensor([[6], [3]])
    hidden_states = model.model.embedding_norm(text + model.model.embed_positions.weight[:5])
    for layer in model.model.layers:
        oracle = nn.TransformerDecoderLayer(
            24, 3, 96, activation="gelu", batch_first=True, norm_first=norm_position == "pre"
        ).eval()
        for theirs, ours in (
            (oracle.self_attn, layer.self_attention),
            (oracle.multihead_attn, layer.cross_attention),
        ):
            projections = (ours.q_proj, ours.k_proj, ours.v_proj)
            theirs.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
            theirs.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
            theirs.out_proj.load_state_dict(ours.o_proj.state_dict())
        oracle.linear1.load_state_dict(layer.mlp.fc1.state_dict())
        oracle.linear2.load_state_dict(layer.mlp.fc2.state_dict())
        norms = (layer.self_attention_norm, layer.cross_attention_norm, layer.mlp_norm)
        for number, norm in enumerate(norms, start=1):
            getattr(oracle, f"norm{number}").load_state_dict(norm.state_dict())
        causal = nn.Transformer.generate_square_subsequent_mask(5)
        hidden_states = oracle(hidden_states, picture, tgt_mask=causal, memory_key_padding_mask=~real)
    if norm_position == "pre":
        hidden_states = F.layer_norm(
            hidden_states, (24,), model.model.final_norm.weight, model.model.final_norm.bias, eps=1e-5
        )
    got = model.model(inputs_embeds=text, encoder_hidden_states=picture, encoder_attention_mask=real)
    torch.testing.assert_close(got.last_hidden_state, hidden_states, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hidden_size", [24, 25])
def test_sinusoidal_table_equals_transformers(hidden_size):
    # Theirs begins after the padding row, whose vector is zero; ours with the position itself.
    theirs = TrOCRSinusoidalPositionalEmbedding.get_embedding(30, hidden_size, padding_idx=None)
    torch.testing.assert_close(sinusoidal_table(30, hidden_size), theirs)


@torch.no_grad()
def test_sinusoidal_positions_begin_where_the_config_says():
    first, third = (
        tiny_decoder(position_embedding="sinusoidal", first_position=start).model.embed_positions for start in (0, 2)
    )
    ids = torch.arange(4)[None]
    torch.testing.assert_close(third(ids), first(ids + 2))
    torch.testing.assert_close(first(ids)[0, 0], torch.cat([torch.zeros(12), torch.ones(12)]))


def test_sinusoidal_positions_are_computed_and_never_saved(tmp_path):
    model = tiny_decoder(position_embedding="sinusoidal")
    assert not any("positions" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    reloaded = TrOCREncoderDecoderForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(reloaded.model.embed_positions.table, model.model.embed_positions.table)


@torch.no_grad()
def test_scaled_embeddings_are_multiplied_by_the_root_of_the_width():
    plain, scaled = tiny_decoder(), tiny_decoder(scale_embedding=True)
    scaled.load_state_dict(plain.state_dict())
    ids = torch.randint(3, VOCAB_SIZE, (2, 5))
    embeds = plain.model.embed_tokens(ids) * 24**0.5
    assert torch.equal(scaled(input_ids=ids).logits, plain(inputs_embeds=embeds).logits)


@torch.no_grad()
def test_positions_count_on_from_the_cache():
    model, ids, picture = tiny_decoder(), torch.randint(3, VOCAB_SIZE, (2, 7)), picture_tokens()
    whole = model(input_ids=ids, encoder_hidden_states=picture).logits
    start = model(input_ids=ids[:, :4], encoder_hidden_states=picture, use_cache=True)
    rest = model(input_ids=ids[:, 4:], encoder_hidden_states=picture, cache=start.cache)
    torch.testing.assert_close(torch.cat([start.logits, rest.logits], dim=1), whole, atol=1e-5, rtol=1e-5)
    given = model(input_ids=ids, encoder_hidden_states=picture, position_ids=torch.arange(7)[None]).logits
    assert torch.equal(given, whole)


@torch.no_grad()
def test_padding_in_front_with_its_positions_changes_nothing():
    model, ids, picture = tiny_decoder(), torch.randint(3, VOCAB_SIZE, (2, 5)), picture_tokens()
    padded = F.pad(ids, (3, 0))
    padded_mask = F.pad(torch.ones(2, 5, dtype=torch.long), (3, 0))
    positions = (padded_mask.cumsum(-1) - 1).clamp(min=0)
    got = model(
        input_ids=padded, attention_mask=padded_mask, position_ids=positions, encoder_hidden_states=picture
    ).logits
    expected = model(input_ids=ids, encoder_hidden_states=picture).logits
    torch.testing.assert_close(got[:, 3:], expected, atol=1e-5, rtol=1e-5)


def test_loss_of_the_language_model_is_that_of_the_next_token():
    model, ids = tiny_decoder(), torch.randint(3, VOCAB_SIZE, (2, 7))
    outputs = model(input_ids=ids, labels=ids)
    expected = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(model(input_ids=ids, labels=ids, num_items_in_batch=24).loss, expected * 12 / 24)


@torch.no_grad()
def test_logits_to_keep_are_the_last():
    model, ids = tiny_decoder(), torch.randint(3, VOCAB_SIZE, (2, 7))
    every = model(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids, logits_to_keep=2).logits, every[:, -2:])


def test_input_must_be_ids_or_embeddings():
    model, ids = tiny_decoder(), torch.randint(3, VOCAB_SIZE, (2, 7))
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model(input_ids=ids, inputs_embeds=torch.randn(2, 7, 24))
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model()


@pytest.mark.parametrize("position_embedding", ["learned", "sinusoidal"])
def test_text_longer_than_the_positions_is_refused(position_embedding):
    model = tiny_decoder(position_embedding=position_embedding)
    model(input_ids=torch.full((1, 20), 5))
    with pytest.raises(ValueError, match="at most 20 tokens, got 21"):
        model(input_ids=torch.full((1, 21), 5))


def test_generation_past_the_last_position_is_refused():
    model = tiny_decoder(max_position_embeddings=6, eos_token_id=None)
    with pytest.raises(ValueError, match="at most 6 tokens, got 7"):
        model.generate(torch.tensor([[1, 4]]), max_new_tokens=20, do_sample=False)
