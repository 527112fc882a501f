"""The CNN + LSTM captioner: say what a picture shows with a vision encoder and a recurrent decoder.

    pixel_values (batch, channels, height, width)
      -> vision encoder (any of the Hub) -> its map, without prefix tokens (batch, places, vision_hidden_size)
      -> projector: the mean of the map as the first word (Show and Tell), or the first state and the map's keys (Show,
         Attend and Tell)
      -> LSTM, word by word -> logits (batch, tokens, vocab_size) -> text

Where the equations are; a comment on each line names its own:

    Vinyals eq. 10          the picture as a word           lstm_decoder.py `CnnLstmProjector.forward`
    Vinyals eq. 4 to 12     the LSTM, and its logits        lstm_decoder.py `CnnLstmDecoder.forward`
    Vinyals eq. 13          the loss                        `CnnLstmForConditionalGeneration.forward`
    Xu eq. 4 to 13          where to look                   lstm_decoder.py `AdditiveAttention.forward`
    Xu eq. 1 to 7           the LSTM, and its logits        lstm_decoder.py `CnnLstmDecoder.forward`
    Xu eq. 14               looking everywhere once         `doubly_stochastic_loss`

Where it differs from the usual implementations: the loss honours `num_items_in_batch`, so accumulated batches train like
one large batch; batch normalisation in the encoder keeps its stored statistics, and there is none behind the projection of
the picture (the PyTorch tutorial of yunjey has one with momentum 0.01), so a batch's other pictures change nothing; beam
search and sampling are transformers' own, on a state of fixed size; the encoder need not be a CNN.

Source: Vinyals et al. 2015, https://arxiv.org/abs/1411.4555; Xu et al. 2015, https://arxiv.org/abs/1502.03044
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import ModelOutput
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from ...blocks.token_loss import IGNORE_INDEX, shift_right, token_cross_entropy
from ...parts.pretrained_model import HubModel
from ...parts.vision_features import describe_vision_model, select_tokens, show_every_patch, vision_features
from .assembly import CnnLstmParts, load_parts
from .configuration_cnn_lstm import CnnLstmConfig
from .lstm_decoder import CnnLstmDecoder, CnnLstmProjector, LstmState


@dataclass
class CnnLstmEncoderOutput(ModelOutput):
    """The map of a picture.

    Args:
        last_hidden_state: float (batch, places, vision_hidden_size), row by row.
    """

    last_hidden_state: torch.Tensor | None = None


@dataclass
class CnnLstmOutput(ModelOutput):
    """What the captioner gives for pictures and words.

    Args:
        loss: nats a token; in training with attention the weighted `attention_loss` is in it.
        token_loss: the cross-entropy alone.
        attention_loss: with attention, how unevenly a caption's words look at the places of the map; not weighted.
        logits: float (batch, tokens, vocab_size).
        cache: the state behind the last token, to go on from.
        cross_attentions: one float (batch, 1, tokens, places), where the decoder looked for each token.
        encoder_last_hidden_state: float (batch, places, vision_hidden_size).
    """

    loss: torch.Tensor | None = None
    token_loss: torch.Tensor | None = None
    attention_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: LstmState | None = None
    decoder_hidden_states: tuple[torch.Tensor, ...] | None = None  # these two are there for `generate`, and stay empty
    decoder_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None
    encoder_last_hidden_state: torch.Tensor | None = None


class CnnLstmPreTrainedModel(HubModel):
    """The features that transformers asks about; the vision encoder brings its own initialisation."""

    config: CnnLstmConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities: tuple[str, ...] = ("image", "text")
    resizable: tuple[str, ...] = ()
    # Of a vision encoder that has attention.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class CnnLstmVisionEncoder(CnnLstmPreTrainedModel):
    """A vision model of the Hub as a map of its patches.

    In training it is no more changeable than it must be, whatever `train()` is told:

    - with no parameter that requires a gradient it stays in evaluation mode, so that its features are those that
      `vision_features` gives once and for all: no dropout, no statistics;
    - otherwise its batch normalisation alone stays in evaluation mode, unless `train_batch_norm` is set: scales and shifts
      are trained, the stored means and variances are used and left as they are.

    Looked at anew at every `train()` and every training `forward`, so freezing counts at once; unfreezing counts from the
    next `train()`, which the Trainer calls at every step.
    """

    input_modalities = ("image",)

    def __init__(self, config: CnnLstmConfig) -> None:
        settle_sizes(config)
        super().__init__(config)
        self.vision_model = AutoModel.from_config(show_every_patch(config.vision_config))
        self.supports_gradient_checkpointing = self.vision_model.supports_gradient_checkpointing
        self.post_init()

    def train(self, mode: bool = True) -> "CnnLstmVisionEncoder":
        """As `Module.train`, but for what stays in evaluation mode."""
        super().train(mode)
        self._keep_fixed()
        return self

    def _keep_fixed(self) -> None:
        if not self.training:
            return
        if not any(parameter.requires_grad for parameter in self.vision_model.parameters()):
            if self.vision_model.training:
                self.vision_model.eval()
        elif not self.config.train_batch_norm:
            for module in self.vision_model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                    module.eval()

    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False, **kwargs: object
    ) -> CnnLstmEncoderOutput:
        """The patches of pictures, prefix tokens left out.

        Args:
            pixel_values: float (batch, channels, height, width).
            interpolate_pos_encoding: resample the encoder's positions to this picture size, where it has any.
        """
        self._keep_fixed()
        seen = vision_features(self.vision_model, pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
        return CnnLstmEncoderOutput(
            last_hidden_state=select_tokens(seen.features, self.config.num_prefix_tokens or 0, "default")
        )


def settle_sizes(config: CnnLstmConfig) -> None:
    """Ask the vision encoder for what the config leaves open."""
    if config.vision_hidden_size is None or config.num_prefix_tokens is None:
        seen = describe_vision_model(config.vision_config)
        config.vision_hidden_size, config.num_prefix_tokens = seen.hidden_size, seen.num_prefix_tokens


class CnnLstmForConditionalGeneration(CnnLstmPreTrainedModel, GenerationMixin):
    """The whole captioner: `forward` for training, `generate` for captions, `attention_over_words` for where it looked."""

    part_paths = {"vision": "encoder.vision_model", "projector": "projector", "decoder": "decoder"}
    _is_stateful = True  # a state can't be taken back word by word, as assisted decoding wants
    _no_split_modules = ["CnnLstmDecoder"]

    def __init__(self, config: CnnLstmConfig) -> None:
        settle_sizes(config)
        super().__init__(config)
        self.encoder = CnnLstmVisionEncoder(config)
        self.projector = CnnLstmProjector(config)
        self.decoder = CnnLstmDecoder(config)
        self.supports_gradient_checkpointing = self.encoder.supports_gradient_checkpointing
        if self.generation_config.max_new_tokens is None and self.generation_config.max_length is None:
            self.generation_config.max_new_tokens = 20
        self.post_init()

    # Loading

    @classmethod
    def from_pretrained_parts(
        cls,
        vision: str | os.PathLike | PreTrainedModel,
        text: str | os.PathLike | PreTrainedTokenizerBase,
        **settings: Any,
    ) -> "CnnLstmForConditionalGeneration":
        """Put a new recurrent decoder for a tokenizer's words on a pretrained vision encoder.

        `model.weight_report` tells where each tensor came from and is saved with the model.

        Args:
            vision: Hub name, folder or loaded model.
            text: a tokenizer, or Hub name or folder of one.
            settings: as for `load_parts`: `max_new_tokens`, `num_beams`, and fields of `CnnLstmConfig`.

        Raises:
            ValueError: if a setting is unknown, the tokenizer has no token to end a caption with, or the vision encoder's
                weights are incomplete.
        """
        parts: CnnLstmParts = load_parts(vision, text, **settings)
        model = cls(parts.config)
        parts.place(model.encoder.vision_model)
        model.generation_config.update(**parts.generation)
        model.weight_report = parts.report(model)
        return model.eval()

    # Parts that transformers asks for

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The picture encoder; with `modality="image"` the vision model alone, `"text"` the decoder."""
        parts = {None: self.encoder, "image": self.encoder.vision_model, "text": self.decoder}
        return parts[modality]

    def get_decoder(self) -> nn.Module:
        """The recurrent decoder."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        """The table of words that are read."""
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the table of words that are read."""
        self.decoder.embedding = value

    def get_output_embeddings(self) -> nn.Module:
        """The output projection."""
        return self.decoder.output

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the output projection."""
        self.decoder.output = new_embeddings

    # Pictures

    def vision_features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """The encoder's map, float (batch, places, vision_hidden_size): what `forward` and `generate` take as
        `image_features` in place of `pixel_values`, so that a frozen encoder runs once a picture and not once an epoch.

        Args:
            pixel_values: float (batch, channels, height, width).
            interpolate_pos_encoding: resample the encoder's positions to this picture size, where it has any.
        """
        return self.encoder(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding).last_hidden_state

    @torch.no_grad()
    def attention_over_words(self, pixel_values: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        """Where the decoder looks for each word of captions that are given, in one pass.

        Args:
            pixel_values: float (batch, channels, height, width).
            token_ids: int64 (batch, tokens), captions without the start token: `generate(...)[:, 1:]`, or labels.

        Returns: float (batch, tokens, rows, columns): the weights, which sum to 1 over the grid, with which the picture was
            looked at to write that word. Behind a caption's end they mean nothing.

        Raises:
            ValueError: if the model has no attention, or the captions begin with the start token.
        """
        if self.config.attention != "additive":
            raise ValueError(
                f"Where the decoder looks is known with `attention='additive'`, got '{self.config.attention}'. Train such "
                "a captioner."
            )
        start = self.config.decoder_start_token_id
        if start not in (None, self.config.eos_token_id) and bool((token_ids[:, 0] == start).any()):
            raise ValueError(
                "`token_ids` must be captions without the start token, got some that begin with it. Pass "
                "`generate(...)[:, 1:]`."
            )
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        grid = describe_vision_model(self.config.vision_config, size).grid
        read = self.prepare_decoder_input_ids_from_labels(token_ids)
        (weights,) = self(
            pixel_values, decoder_input_ids=read, output_attentions=True, use_cache=False
        ).cross_attentions
        return weights[:, 0].unflatten(-1, grid)

    # Training and generation

    def prepare_decoder_input_ids_from_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """What the decoder reads to predict `labels`, int64 (batch, tokens): the one shift to the right there is.

        Raises:
            ValueError: if the config has no start or padding token.
        """
        start, pad = self.config.decoder_start_token_id, self.config.pad_token_id
        if start is None or pad is None:
            raise ValueError(
                f"Training needs `decoder_start_token_id` and `pad_token_id`, got {start} and {pad}. Set both on the "
                "model's config."
            )
        return shift_right(labels, start_token_id=start, pad_token_id=pad)

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # as transformers' own models take it
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        cache: LstmState | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> CnnLstmOutput:
        """Predict each word of the caption from the picture and the words before it.

        Args:
            pixel_values: float (batch, channels, height, width).
            image_features: float (batch, places, vision_hidden_size), as `vision_features` gives them, in its place.
            labels: int64 (batch, tokens), not shifted, end token included; `IGNORE_INDEX` carries no loss.
            decoder_input_ids: int64 (batch, tokens); by default `labels` shifted right behind the start token. Padding goes
                to the right, where nothing before it is changed.
            encoder_outputs: what `get_encoder()` gave for these pictures, to not run it again.
            cache: the state behind earlier tokens, the picture included.
            use_cache: whether to give the state back; by default the config's word, and not with `labels`.
            output_attentions: whether to give `cross_attentions`, where there is attention.
            interpolate_pos_encoding: resample the encoder's positions to this picture size, where it has any.
            num_items_in_batch: labels with loss in the whole optimiser step; both terms of the loss are sums over it.

        Returns: see `CnnLstmOutput`. In training the loss is that of Xu et al. summed over captions, divided by the number
            of their words: of each caption the nats of its words and `attention_regularization` x `attention_loss`, the sum
            over places i of (1 - sum over its words t of alpha(t, i))^2. In evaluation mode it is the nats alone, without
            label smoothing.

        Raises:
            ValueError: if there is not one source of the picture, or nothing for the decoder to read.

        Source: Xu et al. 2015, eq. 14, https://arxiv.org/abs/1502.03044
        """
        features = reading = None
        if cache is None:  # else the picture is in the state
            features = self._features(pixel_values, image_features, encoder_outputs, interpolate_pos_encoding)
            reading = self.projector(features)
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError(
                    "The decoder needs `labels` (training) or `decoder_input_ids`, got neither. To describe a picture call "
                    "`generate`."
                )
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
        outputs = self.decoder(decoder_input_ids, reading, cache)

        loss = token_loss = attention_loss = None
        if labels is not None:
            loss = token_loss = token_cross_entropy(  # Vinyals eq. 13
                outputs.logits,
                labels,
                num_items_in_batch=num_items_in_batch,
                label_smoothing=self.config.label_smoothing if self.training else 0.0,
            )
            if outputs.attentions is not None:
                attention_loss = doubly_stochastic_loss(outputs.attentions, labels, num_items_in_batch)
                if self.training:
                    loss = token_loss + self.config.attention_regularization * attention_loss
        if use_cache is None:
            use_cache = self.config.use_cache and labels is None
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        looked = outputs.attentions is not None and output_attentions
        return CnnLstmOutput(
            loss=loss,
            token_loss=token_loss,
            attention_loss=attention_loss,
            logits=outputs.logits,
            cache=outputs.state if use_cache else None,
            cross_attentions=(outputs.attentions[:, None],) if looked else None,
            encoder_last_hidden_state=features,
        )

    def _features(
        self,
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
        encoder_outputs: Any,
        interpolate_pos_encoding: bool,
    ) -> torch.Tensor:
        """The map, from whichever of its sources came."""
        if encoder_outputs is not None:
            return encoder_outputs.last_hidden_state if isinstance(encoder_outputs, ModelOutput) else encoder_outputs[0]
        if (pixel_values is None) == (image_features is None):
            raise ValueError(
                f"One of `pixel_values`, `image_features` and `encoder_outputs` must be given, got "
                f"{'none' if pixel_values is None else 'both of the former'}. Pass the picture once."
            )
        if image_features is None:
            return self.encoder(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding).last_hidden_state
        if image_features.ndim != 3 or image_features.shape[2] != self.config.vision_hidden_size:
            raise ValueError(
                f"`image_features` must be (batch, places, {self.config.vision_hidden_size}), got "
                f"{tuple(image_features.shape)}. Make them with `vision_features` of this model."
            )
        return image_features

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        image_features: torch.Tensor | None = None,
        **settings: Any,
    ) -> Any:
        """As `GenerationMixin.generate`; pictures come as `pixel_values` or as `image_features`.

        Raises:
            ValueError: if both came.
        """
        if image_features is not None:
            features = self._features(settings.pop("pixel_values", inputs), image_features, None, False)
            settings["encoder_outputs"], inputs = CnnLstmEncoderOutput(last_hidden_state=features), None
        return super().generate(inputs, *args, **settings)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No: transformers would make keys and values, where this decoder carries a state."""
        return False

    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, **kwargs: Any) -> dict[str, Any]:
        """Inputs of one decoding step: the picture's map is there already, so its pixels are dropped."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        for name in ("pixel_values", "interpolate_pos_encoding"):
            inputs.pop(name, None)
        return inputs


def doubly_stochastic_loss(
    attentions: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """How far a caption's words, taken together, are from looking once at every place.

    Args:
        attentions: float (batch, tokens, places), which sum to 1 over places.
        labels: int64 (batch, tokens); where they are `IGNORE_INDEX` there is no word, and no look.
        num_items_in_batch: what the sum over captions is divided by, as in `token_cross_entropy`; by default the number of
            labels.

    Returns: a float32 scalar: the sum over captions and places i of (1 - sum over words t of alpha(t, i))^2, divided. A
        caption without a word counts 0.

    Source: Xu et al. 2015, eq. 14, https://arxiv.org/abs/1502.03044
    """
    is_word = labels.ne(IGNORE_INDEX).to(attentions.device)
    looks = (attentions.float() * is_word[..., None]).sum(dim=1)  # (batch, places)
    of_captions = (1 - looks).square().sum(dim=1) * is_word.any(dim=1)  # Xu eq. 14, its second term
    count = is_word.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=looks.device)
    return of_captions.sum() / count.clamp(min=1)
