"""The recurrent decoder: what it is shown of a picture, the LSTM, the attention over the map, and the state it carries.

Without attention the picture is the first word of the sequence:

    x(-1) = W mean(map),  x(t) = E word(t)            (batch, embedding_size)
    h(t), c(t) = LSTM(x(t), h(t-1), c(t-1))           (batch, hidden_size)
    logits(t) = L h(t)

With attention it is looked at anew for every word, from the state before:

    h(-1), c(-1) = tanh(W mean(map))
    e(t, i) = w . tanh(K map(i) + Q h(t-1)),  alpha(t) = softmax(e(t))      (batch, places)
    z(t) = sigmoid(g . h(t-1)) sum_i alpha(t, i) map(i)                     (batch, vision_hidden_size)
    h(t), c(t) = LSTM([E word(t), z(t)], h(t-1), c(t-1))
    logits(t) = L_o (E word(t) + L_h h(t) + L_z z(t))

Source: Vinyals et al. 2015, eq. 4 to 12, https://arxiv.org/abs/1411.4555; Xu et al. 2015, eq. 1 to 7 and section 4.2.1,
    https://arxiv.org/abs/1502.03044
"""

from dataclasses import dataclass

import torch
from torch import nn

from .configuration_cnn_lstm import CnnLstmConfig


@dataclass
class PictureReading:
    """What the decoder reads of pictures.

    Attributes:
        first_input: float (batch, embedding_size), the picture as a word; None with attention.
        hidden, cell: float (layers, batch, hidden_size), the state to start from; None without attention: zeros.
        features: float (batch, places, vision_hidden_size), the map; None without attention.
        keys: float (batch, places, attention_size), the map as it is compared with states; None without attention.
    """

    first_input: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    cell: torch.Tensor | None = None
    features: torch.Tensor | None = None
    keys: torch.Tensor | None = None

    def to(self, device: torch.device) -> "PictureReading":
        """The same on another device: accelerate asks for it where the decoder lies elsewhere than the encoder."""
        parts = (self.first_input, self.hidden, self.cell, self.features, self.keys)
        return PictureReading(*(None if part is None else part.to(device) for part in parts))


@dataclass
class LstmState:
    """What the decoder carries from word to word: the `cache` of `forward` and `generate`.

    A state is never written into: each call gives a new one, so an old one may be gone on from more than once. Only
    `reorder_cache` changes the state itself, as beam search wants it.

    Attributes:
        hidden, cell: float (layers, batch, hidden_size).
        num_tokens: tokens read so far.
        features, keys: of the picture, as in `PictureReading`; None without attention.
    """

    hidden: torch.Tensor
    cell: torch.Tensor
    num_tokens: int = 0
    features: torch.Tensor | None = None
    keys: torch.Tensor | None = None

    # What transformers asks of a cache.
    is_compileable = False
    is_croppable = False
    is_linear = (True,)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read so far."""
        return self.num_tokens

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Take row `beam_idx[i]` as row i; int64 (batch,)."""
        beam_idx = beam_idx.to(self.hidden.device)
        self.hidden, self.cell = self.hidden.index_select(1, beam_idx), self.cell.index_select(1, beam_idx)
        if self.features is not None and self.keys is not None:
            self.features, self.keys = self.features.index_select(0, beam_idx), self.keys.index_select(0, beam_idx)


@dataclass
class DecoderOutput:
    """What the decoder makes of words.

    Attributes:
        logits: float (batch, tokens, vocab_size).
        state: after the last of them.
        attentions: float (batch, tokens, places), where it looked for each; None without attention.
    """

    logits: torch.Tensor
    state: LstmState
    attentions: torch.Tensor | None = None


class CnnLstmProjector(nn.Module):
    """From the picture's tokens to what the decoder reads."""

    def __init__(self, config: CnnLstmConfig) -> None:
        super().__init__()
        width = config.vision_hidden_size
        assert width is not None and config.attention_size is not None
        self.num_layers = config.num_hidden_layers
        self.looks_again = config.attention == "additive"
        if self.looks_again:
            self.initial_hidden = nn.Linear(width, config.num_hidden_layers * config.hidden_size)
            self.initial_cell = nn.Linear(width, config.num_hidden_layers * config.hidden_size)
            self.keys = nn.Linear(width, config.attention_size)
        else:
            self.first_input = nn.Linear(width, config.embedding_size)

    def forward(self, features: torch.Tensor) -> PictureReading:
        """Float (batch, places, vision_hidden_size) -> what the decoder starts from."""
        mean = features.mean(dim=1)  # (batch, vision_hidden_size)
        if not self.looks_again:
            return PictureReading(first_input=self.first_input(mean))  # Vinyals eq. 10
        hidden, cell = (
            torch.tanh(layer(mean)).unflatten(1, (self.num_layers, -1)).transpose(0, 1).contiguous()
            for layer in (self.initial_hidden, self.initial_cell)
        )
        return PictureReading(hidden=hidden, cell=cell, features=features, keys=self.keys(features))


class AdditiveAttention(nn.Module):
    """Where to look next: a softmax over places, from how each compares with the state, and how much of it to let in.

    Source: Xu et al. 2015, eq. 4, 5, 13 and section 4.2.1, https://arxiv.org/abs/1502.03044; the comparison is that of
        Bahdanau et al. 2015, https://arxiv.org/abs/1409.0473
    """

    def __init__(self, hidden_size: int, attention_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, attention_size, bias=False)  # the keys have one
        self.score = nn.Linear(attention_size, 1, bias=False)  # softmax takes no notice of one
        self.gate = nn.Linear(hidden_size, 1)

    def forward(
        self, hidden: torch.Tensor, features: torch.Tensor, keys: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is seen from a state, and the weights of the places.

        Args:
            hidden: float (batch, hidden_size), of the top layer.
            features: float (batch, places, vision_hidden_size).
            keys: float (batch, places, attention_size).

        Returns: float (batch, vision_hidden_size), gated, and float (batch, places), which sum to 1.
        """
        scores = self.score(torch.tanh(keys + self.query(hidden)[:, None]))[..., 0]  # (batch, places); Xu eq. 4
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(features.dtype)  # Xu eq. 5
        seen = torch.einsum("bp,bpd->bd", weights, features)  # Xu eq. 13
        return torch.sigmoid(self.gate(hidden)) * seen, weights


class CnnLstmDecoder(nn.Module):
    """Words in, scores of the next word out."""

    def __init__(self, config: CnnLstmConfig) -> None:
        super().__init__()
        width = config.vision_hidden_size
        assert width is not None and config.attention_size is not None
        self.num_layers, self.hidden_size = config.num_hidden_layers, config.hidden_size
        self.looks_again = config.attention == "additive"
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.lstm = nn.LSTM(
            config.embedding_size + (width if self.looks_again else 0),
            config.hidden_size,
            num_layers=config.num_hidden_layers,
            dropout=config.dropout if config.num_hidden_layers > 1 else 0.0,
            batch_first=True,
        )
        self.dropout = nn.Dropout(config.dropout)
        if self.looks_again:
            self.attention = AdditiveAttention(config.hidden_size, config.attention_size)
            self.from_hidden = nn.Linear(config.hidden_size, config.embedding_size)
            self.from_picture = nn.Linear(
                width, config.embedding_size, bias=False
            )  # added to the former, which has one
        self.output = nn.Linear(config.embedding_size if self.looks_again else config.hidden_size, config.vocab_size)

    def forward(
        self, token_ids: torch.Tensor, reading: PictureReading | None = None, state: LstmState | None = None
    ) -> DecoderOutput:
        """Read words, one after the other.

        Args:
            token_ids: int64 (batch, tokens), 1 or more.
            reading: of the pictures, where the text begins.
            state: where it goes on; then `reading` is not looked at.
        """
        self._take_weights()
        if self.lstm.weight_ih_l0.is_cuda:
            self._gather_weights()
        words = self.dropout(self.embedding(token_ids))  # (batch, tokens, embedding_size); Vinyals eq. 11
        if state is None:
            assert reading is not None
            state = self._first_state(reading, words)
        num_tokens = state.num_tokens + token_ids.shape[1]
        if not self.looks_again:
            output, (hidden, cell) = self.lstm(words, (state.hidden, state.cell))  # Vinyals eq. 4 to 8
            logits = self.output(self.dropout(output))  # Vinyals eq. 12, before the softmax
            return DecoderOutput(logits, LstmState(hidden, cell, num_tokens))

        assert state.features is not None and state.keys is not None
        hidden, cell = state.hidden, state.cell
        outputs, views, attentions = [], [], []
        for word in words.unbind(dim=1):
            view, weights = self.attention(hidden[-1], state.features, state.keys)
            # Xu eq. 1 to 3
            output, (hidden, cell) = self.lstm(torch.cat((word, view), dim=-1)[:, None], (hidden, cell))
            outputs.append(output)
            views.append(view)
            attentions.append(weights)
        said = words + self.from_hidden(self.dropout(torch.cat(outputs, dim=1)))
        said = said + self.from_picture(torch.stack(views, dim=1))  # Xu eq. 7, with the line above and the last layer
        return DecoderOutput(
            self.output(self.dropout(said)),
            LstmState(hidden, cell, num_tokens, state.features, state.keys),
            torch.stack(attentions, dim=1),
        )

    def _first_state(self, reading: PictureReading, words: torch.Tensor) -> LstmState:
        """The state before the first word: after the picture was read as a word, or as the projector sets it."""
        if reading.hidden is not None and reading.cell is not None:
            return LstmState(reading.hidden, reading.cell, features=reading.features, keys=reading.keys)
        assert reading.first_input is not None
        zeros = words.new_zeros(self.num_layers, len(words), self.hidden_size)
        picture = self.dropout(reading.first_input)[:, None]
        return LstmState(*self.lstm(picture, (zeros, zeros))[1])

    def _take_weights(self) -> None:
        """Let the LSTM compute with the weights that it has now: where they are split over processes, whole ones stand in."""
        current = [getattr(self.lstm, name) for name in self.lstm._flat_weights_names]
        if any(kept is not weight for kept, weight in zip(self.lstm._flat_weights, current, strict=True)):
            self.lstm._flat_weights = current

    def _gather_weights(self) -> None:
        """Put the LSTM's weights beside each other in memory, as cuDNN wants them, where loading scattered them."""
        weights = list(self.lstm.parameters())
        if len({weight.untyped_storage().data_ptr() for weight in weights}) > 1:
            self.lstm.flatten_parameters()
