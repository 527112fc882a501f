"""TrOCR: read the text in a picture with a vision encoder and a text decoder joined by cross-attention.

    pixel_values (batch, channels, height, width)
      -> vision encoder (any of the Hub) -> picture tokens (batch, picture_tokens, vision_hidden_size), and their mask
      -> text decoder (ours, or any of the Hub that cross-attends), which reads all picture tokens at every text token
      -> logits (batch, tokens, vocab_size) -> text

The paper has no numbered equations: its encoder is any of the Hub, its decoder text_decoder.py, its loss (section "Task
Pipeline") blocks/token_loss.py.

Where it differs from transformers' `VisionEncoderDecoderModel`: the loss honours `num_items_in_batch`, so accumulated
batches train like one big batch; a padding mask lets lines of different widths share a batch; encoder-only text models
(RoBERTa, XLM-R, BERT, MiniLM) become the decoder by tables that account for every tensor; our decoder runs on sdpa and flash
kernels and with a static cache.

Source: Li et al. 2023, https://arxiv.org/abs/2109.10282
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.generation.stopping_criteria import EosTokenCriteria
from transformers.modeling_outputs import ModelOutput, Seq2SeqLMOutput
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from ...blocks.token_loss import IGNORE_INDEX, ctc_loss, shift_right, token_cross_entropy
from ...parts.pretrained_model import HubModel
from ...parts.vision_features import describe_vision_model, show_every_patch, vision_features
from .assembly import TrOCRParts, load_parts
from .configuration_trocr import TrOCREncoderDecoderConfig
from .greedy import covers, decode_greedily
from .joint_decoding import decode_jointly
from .recognition import RecognizedText, recognize
from .weights_trocr import config_from_vision_encoder_decoder, weights_from_vision_encoder_decoder


@dataclass
class TrOCREncoderDecoderEncoderOutput(ModelOutput):
    """Picture tokens as the decoder reads them.

    Args:
        last_hidden_state: float (batch, picture tokens, width that the decoder's cross-attention takes).
        attention_mask: bool (batch, picture tokens), True for real tokens; None where all are.
    """

    last_hidden_state: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None


class TrOCREncoderDecoderPreTrainedModel(HubModel):
    """The features that transformers asks about; every part brings its own initialisation."""

    config: TrOCREncoderDecoderConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities: tuple[str, ...] = ("image", "text")
    supports_gradient_checkpointing = True
    resizable = ("image_size", "window_size")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class TrOCREncoderDecoderVisionEncoder(TrOCREncoderDecoderPreTrainedModel):
    """A vision model of the Hub, its output brought to tokens of the width that the decoder reads."""

    input_modalities = ("image",)

    def __init__(self, config: TrOCREncoderDecoderConfig) -> None:
        super().__init__(config)
        self.vision_model = AutoModel.from_config(show_every_patch(config.vision_config))
        wanted = cross_attention_size(config)
        fits = wanted == config.vision_hidden_size
        self.projection = nn.Identity() if fits else nn.Linear(config.vision_hidden_size or wanted, wanted)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: object,
    ) -> TrOCREncoderDecoderEncoderOutput:
        """Picture tokens, prefix tokens included, as in the paper's code.

        Args:
            pixel_values: float (batch, channels, height, width).
            pixel_mask: int64 (batch, height, width), 0 for padding right of and below the picture.
            interpolate_pos_encoding: resample the encoder's positions to this picture size.
        """
        visible = vision_features(
            self.vision_model, pixel_values, pixel_mask, interpolate_pos_encoding=interpolate_pos_encoding
        )
        return self.project(visible.features, visible.mask)

    def project(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> TrOCREncoderDecoderEncoderOutput:
        """The vision model's tokens, float (batch, tokens, vision_hidden_size), and their mask, as the decoder reads them.

        Raises:
            ValueError: if they are of another width.
        """
        width = self.config.vision_hidden_size
        if features.ndim != 3 or features.shape[2] != width:
            raise ValueError(
                f"`image_features` must be (batch, tokens, {width}), got {tuple(features.shape)}. Make them with "
                "`vision_features` of this model."
            )
        return TrOCREncoderDecoderEncoderOutput(last_hidden_state=self.projection(features), attention_mask=mask)


def cross_attention_size(config: TrOCREncoderDecoderConfig) -> int:
    """Width of the picture tokens that the decoder's cross-attention takes."""
    text_config: Any = config.text_config
    for name in ("cross_attention_size", "cross_attention_hidden_size"):  # ours, and transformers' own TrOCR decoder
        if getattr(text_config, name, None) is not None:
            return getattr(text_config, name)
    return text_config.hidden_size


class TrOCREncoderDecoderForConditionalGeneration(TrOCREncoderDecoderPreTrainedModel, GenerationMixin):
    """The whole reader: `forward` for training, `generate` for token ids, `recognize` for text with confidence."""

    part_paths = {
        "vision": "encoder.vision_model",
        "projector": "encoder.projection",
        "decoder": "decoder",
        "ctc_head": "ctc_head",
    }
    _can_compile_fullgraph = True

    def __init__(self, config: TrOCREncoderDecoderConfig) -> None:
        if not config.ctc_decoding_weight:  # a CTC head serves training alone
            self.may_be_new = (*self.may_be_new, "ctc_head")
        if config.vision_hidden_size is None:
            config.vision_hidden_size = describe_vision_model(config.vision_config).hidden_size
        super().__init__(config)
        self.encoder = TrOCREncoderDecoderVisionEncoder(config)
        self.decoder = AutoModelForCausalLM.from_config(config.text_config)
        if config.ctc_loss_weight:
            self.ctc_head = nn.Linear(cross_attention_size(config), self.decoder.config.vocab_size)
        self._can_compile_fullgraph = self.decoder._can_compile_fullgraph
        if self.generation_config.max_new_tokens is None and self.generation_config.max_length is None:
            positions = getattr(config.text_config, "max_position_embeddings", None)
            self.generation_config.max_new_tokens = positions - 1 if positions else None
        self.post_init()

    # Loading

    @classmethod
    def foreign_config(cls, config: dict) -> PreTrainedConfig | None:
        """Our config for a `vision-encoder-decoder` folder, such as microsoft/trocr-*."""
        if config.get("model_type") != "vision-encoder-decoder":
            return None
        return TrOCREncoderDecoderConfig(**config_from_vision_encoder_decoder(config))

    @classmethod
    def foreign_weights(cls, config: PreTrainedConfig, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a `vision-encoder-decoder` folder under our names."""
        return weights_from_vision_encoder_decoder(weights, config)

    @classmethod
    def from_pretrained_parts(
        cls, vision: str | PreTrainedModel, text: str | PreTrainedModel, **settings: Any
    ) -> "TrOCREncoderDecoderForConditionalGeneration":
        """Join a pretrained vision encoder and a pretrained text model into a reader.

        Encoder-only text models (RoBERTa, XLM-R, BERT, MiniLM) are copied into our decoder by the tables of
        `parts/decoder_weights.py`; any other must be able to cross-attend and is kept as it is. Cross-attention that the
        text model doesn't have starts from random weights. `model.weight_report` tells where each tensor came from and is
        saved with the model.

        Args:
            vision: Hub name, folder or loaded model.
            text: Hub name, folder or loaded model.
            settings: as for `load_parts`: `processor`, `image_size`, `num_decoder_layers`, `keep_text_model`,
                `max_new_tokens`, `num_beams`, and fields of `TrOCREncoderDecoderConfig`.

        Raises:
            ValueError: before any weight is loaded, if the text model can't cross-attend or the processor's vocabulary
                doesn't fit it; while loading, if the vision encoder's weights are incomplete.
        """
        parts: TrOCRParts = load_parts(vision, text, **settings)
        model = cls(parts.config)
        parts.place(model.encoder.vision_model, model.decoder)
        model.generation_config.update(**parts.generation)
        model.weight_report = parts.report(model)
        return model.eval()

    # Parts that transformers asks for

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The picture encoder; with `modality="image"` the vision model alone, `"text"` the decoder."""
        parts = {None: self.encoder, "image": self.encoder.vision_model, "text": self.decoder}
        return parts[modality]

    def get_decoder(self) -> nn.Module:
        """The text decoder."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's word embedding."""
        return self.decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's word embedding."""
        self.decoder.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's output projection."""
        return self.decoder.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the decoder's output projection."""
        self.decoder.set_output_embeddings(new_embeddings)

    def resize(
        self,
        image_size: int | tuple[int, int] | None = None,
        window_size: int | tuple[int, int] | None = None,
    ) -> None:
        """Change the encoder's own sizes for good, its position tables resampled.

        Args:
            image_size: pixels, one number or (height, width).
            window_size: of a Swin encoder: patches, one number or (rows, columns).

        Raises:
            ValueError: if the vision encoder can't change such a size; for pictures, pass `interpolate_pos_encoding=True`
                at run time instead.
        """
        wanted = {"image_size": image_size, "window_size": window_size}
        sizes = {name: size for name, size in wanted.items() if size is not None}
        vision_model = self.encoder.vision_model
        for name in sizes:
            if name not in getattr(vision_model, "resizable", ()):
                raise ValueError(
                    f"The vision encoder must be able to change its `{name}`, got `{type(vision_model).__name__}`. Use our "
                    "`VisionTransformerModel` or `SwinTransformerModel`, or for other pictures pass "
                    "`interpolate_pos_encoding=True` to `forward` or `generate`."
                )
        if sizes:
            vision_model.resize(**sizes)
            self.config.vision_config = vision_model.config

    # Training and generation

    def vision_features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """The vision model's tokens, float (batch, tokens, vision_hidden_size), before they are projected: what `forward`
        and `generate` take as `image_features` in place of `pixel_values`, so that a frozen vision model runs once a
        picture and not once an epoch.

        Args:
            pixel_values: float (batch, channels, height, width), without padding.
            interpolate_pos_encoding: resample the encoder's positions to this picture size.
        """
        return vision_features(
            self.encoder.vision_model, pixel_values, interpolate_pos_encoding=interpolate_pos_encoding
        ).features

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
        pixel_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        decoder_inputs_embeds: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        image_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Seq2SeqLMOutput:
        """Predict each token of the text from the picture and the tokens before it.

        Args:
            pixel_values: float (batch, channels, height, width).
            pixel_mask: int64 (batch, height, width), 0 for padding right of and below the picture; None for no padding.
            labels: int64 (batch, tokens), not shifted, end token included; `IGNORE_INDEX` carries no loss.
            decoder_input_ids: int64 (batch, tokens); by default `labels` shifted right behind the start token. Where a prompt
                stands in front, the processor makes both, aligned: `labels[t]` is what follows `decoder_input_ids[t]`.
            decoder_attention_mask: int64 (batch, past and present tokens), 0 for padding.
            decoder_inputs_embeds: float (batch, tokens, hidden_size), instead of `decoder_input_ids`.
            encoder_outputs: what `get_encoder()` gave for these pictures, to not run it again.
            cache: keys and values of earlier tokens and of the picture.
            interpolate_pos_encoding: resample the encoder's positions to this picture size.
            num_items_in_batch: labels with loss in the whole optimiser step; the loss is their sum over it.
            image_features: float (batch, picture tokens, vision_hidden_size), as `vision_features` gives them, in place of
                `pixel_values`.

        Returns: `logits`, float (batch, tokens, vocab_size); with `labels` also `loss`, nats a token; the encoder's
            `encoder_last_hidden_state`; on demand attentions and hidden states of the decoder.

        Raises:
            ValueError: if there is not one source of the picture, or nothing for the decoder to read.
        """
        if encoder_outputs is None:
            if image_features is not None:
                encoder_outputs = self._from_features(image_features, pixel_values, pixel_mask)
            elif pixel_values is None:
                raise ValueError(
                    "`pixel_values`, `image_features` or `encoder_outputs` must be given, got none. Pass the picture."
                )
            else:
                encoder_outputs = self.encoder(
                    pixel_values, pixel_mask, interpolate_pos_encoding=interpolate_pos_encoding
                )
        elif not isinstance(encoder_outputs, ModelOutput):
            encoder_outputs = TrOCREncoderDecoderEncoderOutput(*encoder_outputs)
        if decoder_input_ids is None and decoder_inputs_embeds is None:
            if labels is None:
                raise ValueError(
                    "The decoder needs `labels` (training), `decoder_input_ids` or `decoder_inputs_embeds`, got none. "
                    "To read a picture call `generate` or `recognize`."
                )
            decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)

        outputs = self.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=getattr(encoder_outputs, "attention_mask", None),
            inputs_embeds=decoder_inputs_embeds,
            cache=cache,
            use_cache=use_cache if labels is None else False,
            return_dict=True,
            **kwargs,
        )
        loss = None
        if labels is not None:
            loss = token_cross_entropy(
                outputs.logits,
                labels,
                num_items_in_batch=num_items_in_batch,
                label_smoothing=self.config.label_smoothing if self.training else 0.0,
            )
            if self.training and self.config.ctc_loss_weight:
                spelled = self._ctc_loss(encoder_outputs, labels, num_items_in_batch)
                loss = loss + self.config.ctc_loss_weight * spelled
        return Seq2SeqLMOutput(
            loss=loss,
            logits=outputs.logits,
            cache=outputs.cache,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
        )

    def _ctc_loss(
        self, encoder_outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """How well the picture tokens alone spell the labels, end token apart; the padding token stands for blank."""
        end = self.config.eos_token_id
        end_ids = torch.tensor(end if isinstance(end, list) else [end], device=labels.device)
        return ctc_loss(
            self.ctc_head(encoder_outputs.last_hidden_state),
            labels.masked_fill(torch.isin(labels, end_ids), IGNORE_INDEX),
            getattr(encoder_outputs, "attention_mask", None),
            blank_token_id=self.config.pad_token_id or 0,
            num_items_in_batch=num_items_in_batch,
        )

    def _from_features(
        self, image_features: torch.Tensor, pixel_values: torch.Tensor | None, pixel_mask: torch.Tensor | None
    ) -> TrOCREncoderDecoderEncoderOutput:
        """Encoder output for tokens that `vision_features` gave; they stand for a whole picture, and nothing beside it."""
        for name, given in (("pixel_values", pixel_values), ("pixel_mask", pixel_mask)):
            if given is not None:
                raise ValueError(f"`image_features` come in place of the picture, got `{name}` too. Leave one out.")
        return self.encoder.project(image_features)

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        image_features: torch.Tensor | None = None,
        **settings: Any,
    ) -> Any:
        """As `GenerationMixin.generate`; the picture comes as `pixel_values` or as `image_features`.

        A prompt, `decoder_input_ids` of more than the start token, counts in the decoder's positions: what may follow is
        as much shorter.

        Raises:
            ValueError: if the picture came twice.
        """
        if image_features is not None:
            picture = settings.pop("pixel_values", inputs)
            settings["encoder_outputs"] = self._from_features(image_features, picture, settings.pop("pixel_mask", None))
            inputs = None
        return super().generate(inputs, *args, **settings)

    def _prepare_generated_length(self, generation_config: Any, *, input_ids_length: int, **others: Any) -> Any:
        """The length limit of generation; with a prompt at most what the decoder has positions for."""
        prepared = super()._prepare_generated_length(generation_config, input_ids_length=input_ids_length, **others)
        positions = getattr(self.config.text_config, "max_position_embeddings", None)
        if input_ids_length > 1 and positions:
            prepared.max_length = min(prepared.max_length, positions + 1)  # the last token is written, and not read
        return prepared

    def prepare_inputs_for_generation(self, input_ids: torch.LongTensor, **kwargs: Any) -> dict[str, Any]:
        """Inputs of one decoding step: the picture's tokens are there already, so its pixels and mask are dropped."""
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)
        for name in ("pixel_values", "pixel_mask", "interpolate_pos_encoding"):
            inputs.pop(name, None)
        return inputs

    def _sample(self, input_ids: torch.Tensor, **inputs: Any) -> Any:
        """What `generate` calls for greedy decoding and sampling: ours where it gives the same, else transformers'."""
        # A subclass may have changed what our loop passes by.
        if not (type(self) is TrOCREncoderDecoderForConditionalGeneration and covers(self, input_ids, **inputs)):
            return super()._sample(input_ids, **inputs)
        has_end = any(isinstance(rule, EosTokenCriteria) for rule in inputs["stopping_criteria"])
        if self.config.ctc_decoding_weight and has_end and not inputs["logits_processor"]:
            names = ("stopping_criteria", "generation_config", "encoder_outputs")
            return decode_jointly(self, input_ids, **{name: inputs[name] for name in names})
        return decode_greedily(self, input_ids, **inputs)

    def recognize(
        self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None, **settings: Any
    ) -> list[RecognizedText]:
        """Read pictures: text, a score, and a confidence a word; see `recognition.recognize` for the settings."""
        return recognize(self, pixel_values, pixel_mask, **settings)
