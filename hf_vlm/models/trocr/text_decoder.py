"""The text half of TrOCR: a transformer decoder that reads picture tokens by cross-attention.

Data flow, for a text of `tokens` tokens and a picture of `picture_tokens` tokens:

    input_ids (batch, tokens) -> word + position embedding (batch, tokens, hidden_size)
      -> layers of causal self-attention, cross-attention to (batch, picture_tokens, cross_attention_size), MLP
      -> lm_head, tied to the word embedding: logits (batch, tokens, vocab_size)

With `norm_position="post"` this is the decoder of the paper and, cross-attention apart, RoBERTa's and BERT's encoder made
causal, so that their weights fit. Where it differs from the home implementation: every attention goes through
transformers' attention interface (sdpa, flash), position tables carry no unused rows, the picture's keys and values are
projected once a picture, and the cache may be static, so that decoding compiles.

Source: Li et al. 2023, https://arxiv.org/abs/2109.10282
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions, CausalLMOutputWithCrossAttentions
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from ...blocks.attention import CrossAttention, SelfAttention
from ...blocks.token_loss import IGNORE_INDEX, token_cross_entropy
from ...blocks.transformer import MLP
from ...parts.pretrained_model import HubModel
from .configuration_trocr import TrOCREncoderDecoderTextConfig


def sinusoidal_table(num_rows: int, hidden_size: int) -> torch.Tensor:
    """Fixed position vectors as fairseq lays them out: all sines, then all cosines.

    Returns: float32 (num_rows, hidden_size), row p for position p.

    Source: Vaswani et al. 2017, section 3.5, with tensor2tensor's spacing of the frequencies over half - 1 steps.
    """
    half = hidden_size // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device="cpu") * -(math.log(10000.0) / (half - 1)))
    angles = torch.arange(num_rows, dtype=torch.float32, device="cpu")[:, None] * frequencies  # (num_rows, half)
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return nn.functional.pad(table, (0, hidden_size - 2 * half))


class SinusoidalPositions(nn.Module):
    """A table of fixed position vectors, computed, never saved."""

    def __init__(self, num_positions: int, hidden_size: int, first_position: int) -> None:
        super().__init__()
        self.num_positions, self.hidden_size, self.first_position = num_positions, hidden_size, first_position
        self.table: torch.Tensor
        self.register_buffer("table", self.computed(), persistent=False)

    def computed(self) -> torch.Tensor:
        """The table, float32 (num_positions, hidden_size)."""
        return sinusoidal_table(self.first_position + self.num_positions, self.hidden_size)[self.first_position :]

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Position vectors, float (batch, tokens, hidden_size), for int64 (batch, tokens) position ids."""
        return nn.functional.embedding(position_ids, self.table)


class TrOCREncoderDecoderTextLayer(GradientCheckpointingLayer):
    """One layer: causal self-attention, cross-attention to the picture, MLP, each with its residual and norm."""

    def __init__(self, config: TrOCREncoderDecoderTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.norm_first = config.norm_position == "pre"
        self.self_attention = SelfAttention(
            config,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            dropout=config.attention_dropout,
            is_causal=True,
            layer_idx=layer_idx,
        )
        self.self_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = CrossAttention(
            config,
            hidden_size=config.hidden_size,
            key_value_size=config.cross_attention_size or config.hidden_size,
            num_heads=config.num_attention_heads,
            dropout=config.attention_dropout,
            layer_idx=layer_idx,
        )
        self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size or 4 * config.hidden_size, config.hidden_act)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """Carry float (batch, tokens, hidden_size) one layer on; without picture tokens cross-attention is left out."""

        def self_attention(x: torch.Tensor) -> torch.Tensor:
            return self.self_attention(x, attention_mask, cache, **kwargs)[0]

        def cross_attention(x: torch.Tensor) -> torch.Tensor:
            return self.cross_attention(x, encoder_hidden_states, encoder_attention_mask, cache, **kwargs)[0]

        hidden_states = self._residual(hidden_states, self_attention, self.self_attention_norm)
        if encoder_hidden_states is not None:
            hidden_states = self._residual(hidden_states, cross_attention, self.cross_attention_norm)
        return self._residual(hidden_states, self.mlp, self.mlp_norm)

    def _residual(
        self, hidden_states: torch.Tensor, sublayer: Callable[[torch.Tensor], torch.Tensor], norm: nn.LayerNorm
    ) -> torch.Tensor:
        """`x + f(norm(x))` (pre-norm) or `norm(x + f(x))` (post-norm)."""
        added = sublayer(norm(hidden_states) if self.norm_first else hidden_states)
        if self.training:  # in decoding, a call that does nothing costs as much as a norm
            added = self.dropout(added)
        hidden_states = hidden_states + added
        return hidden_states if self.norm_first else norm(hidden_states)


class TrOCREncoderDecoderTextPreTrainedModel(HubModel):
    """Initialisation and the features that transformers asks about."""

    config: TrOCREncoderDecoderTextConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TrOCREncoderDecoderTextLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": TrOCREncoderDecoderTextLayer,
        "attentions": OutputRecorder(SelfAttention, index=1, layer_name="self_attention"),
        "cross_attentions": OutputRecorder(CrossAttention, index=1, layer_name="cross_attention"),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SinusoidalPositions):
            init.copy_(module.table, module.computed())


class TrOCREncoderDecoderTextModel(TrOCREncoderDecoderTextPreTrainedModel):
    """Embeddings and layers, without the output projection."""

    def __init__(self, config: TrOCREncoderDecoderTextConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.embed_scale = math.sqrt(config.hidden_size) if config.scale_embedding else 1.0
        self.embed_positions: nn.Module
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.embed_positions = SinusoidalPositions(
                config.max_position_embeddings, config.hidden_size, config.first_position
            )
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.embedding_norm = norm if config.embedding_norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            [TrOCREncoderDecoderTextLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.final_norm = norm if config.norm_position == "pre" else nn.Identity()
        self.post_init()

    def place(self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """What the first layer reads: float (batch, tokens, hidden_size) word vectors, told where in the text they stand."""
        placed = inputs_embeds + self.embed_positions(position_ids).to(inputs_embeds)
        return self.dropout(self.embedding_norm(placed))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Turn a text so far, and a picture, into one vector a token.

        Args:
            input_ids: int64 (batch, tokens).
            attention_mask: int64 (batch, past and present tokens), 0 for padding.
            position_ids: int64 (batch, tokens); by default they count on from the cache.
            encoder_hidden_states: float (batch, picture tokens, cross_attention_size), or None for text alone.
            encoder_attention_mask: int64 or bool (batch, picture tokens), 0 for padding.
            inputs_embeds: float (batch, tokens, hidden_size), instead of `input_ids`; not scaled again.

        Raises:
            ValueError: if both or neither of `input_ids` and `inputs_embeds` came, or more tokens than there are
                positions.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of `input_ids` and `inputs_embeds` must be given, got both or neither.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids) * self.embed_scale  # (batch, tokens, hidden_size)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
            if encoder_hidden_states is not None:
                cache = EncoderDecoderCache(cache, DynamicCache(config=self.config))
        num_seen = cache.get_seq_length() if cache is not None else 0
        # A static cache counts in a tensor, which is not looked into: that would break a compiled step.
        if isinstance(num_seen, int) and num_seen + inputs_embeds.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"A text must have at most {self.config.max_position_embeddings} tokens, got "
                f"{num_seen + inputs_embeds.shape[1]}. Shorten it, ask `generate` for fewer `max_new_tokens`, or build the "
                "decoder with larger `max_position_embeddings`."
            )
        if position_ids is None:
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None] + num_seen

        self_attention_cache = cache
        if isinstance(cache, EncoderDecoderCache):
            self_attention_cache = cache.self_attention_cache
        causal_mask = create_causal_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, cache=self_attention_cache
        )
        if encoder_hidden_states is not None and encoder_attention_mask is not None:
            encoder_attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )

        hidden_states = self.place(inputs_embeds, position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                causal_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                cache=cache,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=self.final_norm(hidden_states), cache=cache)


class TrOCREncoderDecoderForCausalLM(TrOCREncoderDecoderTextPreTrainedModel, GenerationMixin):
    """The text decoder with its output projection; a causal language model where no picture is given."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: TrOCREncoderDecoderTextConfig) -> None:
        super().__init__(config)
        self.model = TrOCREncoderDecoderTextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # as transformers' own models take it
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithCrossAttentions:
        """Logits of the next token after each token.

        Args:
            labels: int64 (batch, tokens), the inputs themselves: the shift to the next token happens here, as in every
                causal language model of transformers. `IGNORE_INDEX` carries no loss.
            shift_labels: int64 (batch, tokens), the next token of each, instead of `labels`: what the Trainer hands over
                when a text is split among devices.
            logits_to_keep: logits of the last so many tokens only; 0 for all.
            others: as for `TrOCREncoderDecoderTextModel.forward`.

        Returns: `logits`, float (batch, tokens, vocab_size), and with `labels` the mean `loss` in nats a token.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])  # (batch, tokens, vocab_size)
        loss = None
        if shift_labels is None and labels is not None:
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
        if shift_labels is not None:
            loss = token_cross_entropy(logits, shift_labels, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def next_logits(
        self,
        token_ids: torch.Tensor,
        position_ids: torch.Tensor,
        cache: EncoderDecoderCache,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One step of decoding: `forward` for a single token a text, without what only other calls need.

        Args:
            token_ids: int64 (batch, 1), the newest token of each text.
            position_ids: int64 (1, 1), its place.
            cache: keys and values of the earlier tokens, which this call adds to.
            encoder_hidden_states: float (batch, picture tokens, cross_attention_size); read at the first step only.
            encoder_attention_mask: float (batch, 1, 1, picture tokens), added to the scores; None for no padding.
            text_mask: the same for the places of a static cache, float (1, 1, 1, places); None for a cache that grows.

        Returns: float32 (batch, vocab_size).
        """
        hidden_states = self.model.place(self.model.embed_tokens(token_ids) * self.model.embed_scale, position_ids)
        for layer in self.model.layers:
            hidden_states = layer(hidden_states, text_mask, encoder_hidden_states, encoder_attention_mask, cache=cache)
        return self.lm_head(self.model.final_norm(hidden_states))[:, -1].float()
