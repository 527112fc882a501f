"""The decoder's arithmetic. Oracles: the papers' equations written as loops, and `torch.nn.LSTM` over whole sequences."""

import pytest
import torch

from hf_vlm.models.cnn_lstm.lstm_decoder import AdditiveAttention, LstmState
from hf_vlm.models.cnn_lstm.modeling_cnn_lstm import doubly_stochastic_loss
from tests.models.cnn_lstm.tiny_captioners import VOCAB_SIZE, caption_batch, tiny_captioner

TOKENS = torch.tensor([[1, 5, 9, 4, 2], [1, 7, 7, 11, 29]])


def features(places: int = 6) -> torch.Tensor:
    """The maps of two pictures, float (2, places, 10)."""
    return torch.randn(2, places, 10, generator=torch.Generator().manual_seed(1))


def lstm_step(x, hidden, cell, lstm, layer=0):
    """One step of one layer for one example, all vectors; gates in the order input, forget, cell, output."""
    weights = {name: getattr(lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    sums = weights["weight_ih"] @ x + weights["bias_ih"] + weights["weight_hh"] @ hidden + weights["bias_hh"]
    size = len(hidden)
    take, forget, new, give = (sums[index * size : (index + 1) * size] for index in range(4))
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(take) * torch.tanh(new)
    return torch.sigmoid(give) * torch.tanh(cell), cell


@torch.no_grad()
def test_without_attention_logits_follow_the_equations_of_show_and_tell():
    model, maps = tiny_captioner(), features()
    decoder = model.decoder
    logits = model(image_features=maps, decoder_input_ids=TOKENS).logits
    for row in range(2):
        picture = model.projector.first_input.weight @ maps[row].mean(dim=0) + model.projector.first_input.bias
        hidden = cell = torch.zeros(16)
        hidden, cell = lstm_step(picture, hidden, cell, decoder.lstm)
        for place, token in enumerate(TOKENS[row]):
            hidden, cell = lstm_step(decoder.embedding.weight[token], hidden, cell, decoder.lstm)
            wanted = decoder.output.weight @ hidden + decoder.output.bias
            torch.testing.assert_close(logits[row, place], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2])
@torch.no_grad()
def test_without_attention_steps_equal_torchs_lstm_over_picture_start_and_words(num_layers):
    model, maps = tiny_captioner(num_hidden_layers=num_layers), features()
    lstm = torch.nn.LSTM(16, 16, num_layers=num_layers, batch_first=True)
    lstm.load_state_dict(model.decoder.lstm.state_dict())
    picture = model.projector.first_input(maps.mean(dim=1))
    outputs, _ = lstm(torch.cat((picture[:, None], model.decoder.embedding.weight[TOKENS]), dim=1))
    wanted = model.decoder.output(outputs[:, 1:])  # what follows the picture is no word
    torch.testing.assert_close(model(image_features=maps, decoder_input_ids=TOKENS).logits, wanted)
    cache, steps = None, []
    for place in range(TOKENS.shape[1]):
        picture_input = {"image_features": maps} if cache is None else {}
        output = model(**picture_input, decoder_input_ids=TOKENS[:, place : place + 1], cache=cache, use_cache=True)
        cache = output.cache
        steps.append(output.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), wanted)
    assert cache.get_seq_length() == TOKENS.shape[1]


@torch.no_grad()
def test_with_attention_logits_and_weights_follow_the_equations_of_show_attend_and_tell():
    model, maps = tiny_captioner("additive"), features()
    projector, decoder, attention = model.projector, model.decoder, model.decoder.attention
    outputs = model(image_features=maps, decoder_input_ids=TOKENS, output_attentions=True)
    (weights,) = outputs.cross_attentions
    assert weights.shape == (2, 1, 5, 6)
    for row in range(2):
        mean = maps[row].mean(dim=0)
        hidden = torch.tanh(projector.initial_hidden.weight @ mean + projector.initial_hidden.bias)
        cell = torch.tanh(projector.initial_cell.weight @ mean + projector.initial_cell.bias)
        for place, token in enumerate(TOKENS[row]):
            scores = []
            for annotation in maps[row]:
                key = projector.keys.weight @ annotation + projector.keys.bias
                scores.append(attention.score.weight[0] @ torch.tanh(key + attention.query.weight @ hidden))
            exponentials = [torch.exp(score) for score in scores]
            alpha = [value / sum(exponentials) for value in exponentials]
            context = sum(share * annotation for share, annotation in zip(alpha, maps[row], strict=True))
            beta = torch.sigmoid(attention.gate.weight[0] @ hidden + attention.gate.bias[0])
            word = decoder.embedding.weight[token]
            hidden, cell = lstm_step(torch.cat((word, beta * context)), hidden, cell, decoder.lstm)
            said = word + decoder.from_hidden.weight @ hidden + decoder.from_hidden.bias
            said = said + decoder.from_picture.weight @ (beta * context)
            wanted = decoder.output.weight @ said + decoder.output.bias
            torch.testing.assert_close(weights[row, 0, place], torch.stack(alpha), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(outputs.logits[row, place], wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_with_attention_the_top_layer_looks_and_each_layer_starts_from_the_picture():
    model, maps = tiny_captioner("additive", num_hidden_layers=2), features()
    decoder, attention = model.decoder, model.decoder.attention
    logits = model(image_features=maps, decoder_input_ids=TOKENS[:, :2]).logits
    mean = maps[0].mean(dim=0)
    hidden = list(torch.tanh(model.projector.initial_hidden(mean)).split(16))
    cell = list(torch.tanh(model.projector.initial_cell(mean)).split(16))
    keys = model.projector.keys(maps[0])
    for token in TOKENS[0, :2]:
        alpha = (torch.tanh(keys + attention.query.weight @ hidden[1]) @ attention.score.weight[0]).softmax(dim=0)
        view = torch.sigmoid(attention.gate(hidden[1])) * (alpha @ maps[0])
        word = decoder.embedding.weight[token]
        hidden[0], cell[0] = lstm_step(torch.cat((word, view)), hidden[0], cell[0], decoder.lstm, layer=0)
        hidden[1], cell[1] = lstm_step(hidden[0], hidden[1], cell[1], decoder.lstm, layer=1)
    wanted = decoder.output(word + decoder.from_hidden(hidden[1]) + decoder.from_picture(view))
    torch.testing.assert_close(logits[0, 1], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["none", "additive"])
@torch.no_grad()
def test_steps_from_a_state_equal_the_whole_sequence(attention):
    model, maps = tiny_captioner(attention, num_hidden_layers=2), features()
    whole = model(image_features=maps, decoder_input_ids=TOKENS, output_attentions=True, use_cache=True)
    first = model(image_features=maps, decoder_input_ids=TOKENS[:, :2], output_attentions=True, use_cache=True)
    seen = first.cache.hidden.clone()
    second = model(decoder_input_ids=TOKENS[:, 2:], cache=first.cache, output_attentions=True, use_cache=True)
    torch.testing.assert_close(torch.cat((first.logits, second.logits), dim=1), whole.logits)
    torch.testing.assert_close(second.cache.hidden, whole.cache.hidden)
    assert torch.equal(first.cache.hidden, seen)  # a state is gone on from, never written into
    if attention == "additive":
        joined = torch.cat((first.cross_attentions[0], second.cross_attentions[0]), dim=2)
        torch.testing.assert_close(joined, whole.cross_attentions[0])
    else:
        assert whole.cross_attentions is None


@torch.no_grad()
def test_reordered_state_writes_what_the_other_row_would():
    model, maps = tiny_captioner("additive"), features()
    cache = model(image_features=maps, decoder_input_ids=TOKENS[:, :2], use_cache=True).cache
    wanted = model(decoder_input_ids=TOKENS[:1, 2:3].repeat(2, 1), cache=cache).logits
    cache.reorder_cache(torch.tensor([1, 0, 0]))
    swapped = model(decoder_input_ids=TOKENS[:1, 2:3].repeat(3, 1), cache=cache).logits
    torch.testing.assert_close(swapped, wanted[[1, 0, 0]])
    assert (wanted[0] - wanted[1]).abs().max() > 1e-2


@torch.no_grad()
def test_weights_are_shares_and_the_gate_scales_the_view():
    attention = AdditiveAttention(16, 16)
    hidden, maps, keys = torch.randn(4, 16), torch.randn(4, 7, 10), torch.randn(4, 7, 16)
    view, weights = attention(hidden, maps, keys)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    attention.gate.weight.zero_()
    attention.gate.bias.fill_(30.0)  # all of it
    open_view, _ = attention(hidden, maps, keys)
    torch.testing.assert_close(open_view, (weights[..., None] * maps).sum(dim=1))
    assert (view.abs() < open_view.abs()).all()


@torch.no_grad()
def test_a_word_is_predicted_without_seeing_it_or_what_follows():
    for attention in ("none", "additive"):
        model, batch = tiny_captioner(attention), caption_batch(1)
        before = model(**batch).logits[0]
        changed = batch["labels"].clone()
        changed[0, 3] = (changed[0, 3] + 1) % VOCAB_SIZE
        after = model(**batch | {"labels": changed}).logits[0]
        torch.testing.assert_close(before[:4], after[:4])
        assert (before[4:] - after[4:]).abs().amax(dim=-1).min() > 1e-5


@pytest.mark.parametrize(
    ("attention", "shapes"),
    [
        ("none", [(2, 5, 16), (2, 16), (2, 5, 16)]),  # words, the picture as one, the LSTM's outputs
        ("additive", [(2, 5, 16), (2, 5, 16), (2, 5, 16)]),  # words, the LSTM's outputs, what is made of all
    ],
)
def test_dropout_lies_before_and_behind_the_lstm(attention, shapes):
    model, dropped = tiny_captioner(attention), []
    whole = model(image_features=features(), decoder_input_ids=TOKENS).logits
    for call in range(3):

        def drop_one(module, inputs, output, call=call):
            dropped.append(tuple(output.shape))
            return torch.zeros_like(output) if len(dropped) == call + 1 else output

        dropped.clear()
        hook = model.decoder.dropout.register_forward_hook(drop_one)
        assert not torch.equal(model(image_features=features(), decoder_input_ids=TOKENS).logits, whole)
        assert dropped == shapes
        hook.remove()
    between = tiny_captioner(attention, num_hidden_layers=2, dropout=0.25).decoder.lstm.dropout
    assert (between, model.decoder.lstm.dropout) == (0.25, 0.0)


def test_regulariser_is_the_sum_over_places_of_what_is_missing_to_one_look():
    attentions = torch.tensor(
        [[[0.5, 0.5, 0.0], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]], [[1.0, 0.0, 0.0], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]]]
    )
    labels = torch.tensor([[7, 8, 2], [2, -100, -100]])  # the second caption is one look long
    # (1 - .8)^2 + (1 - .8)^2 + (1 - 1.4)^2 = .24, and (1 - 1)^2 + 1 + 1 = 2
    assert doubly_stochastic_loss(attentions, labels).item() == pytest.approx(2.24 / 4)
    assert doubly_stochastic_loss(attentions, labels, 8).item() == pytest.approx(0.28)
    assert doubly_stochastic_loss(attentions, labels, torch.tensor(8)).item() == pytest.approx(0.28)
    assert doubly_stochastic_loss(attentions, torch.full((2, 3), -100)).item() == 0


def test_state_tells_transformers_what_it_asks():
    state = LstmState(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), 4)
    assert state.get_seq_length() == 4 and not state.is_compileable and not state.is_croppable
