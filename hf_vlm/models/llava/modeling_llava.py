"""LLaVA: a causal language model that reads pictures as words, through a projector.

    pixel_values (pictures, channels, height, width)
      -> vision encoder (any of the Hub), at one of its layers -> (pictures, image tokens, vision_hidden_size)
      -> projector -> (pictures, image tokens, hidden_size)
    input_ids (batch, tokens), with `num_image_tokens` image tokens a picture -> embeddings (batch, tokens, hidden_size)
      -> the pictures' in the image tokens' places
      -> causal language model (any of the Hub) -> logits (batch, tokens, vocab_size)

Where the equations are; a comment on each line names its own:

    Liu eq. 1    features to words                               blocks/projector.py `Projector.forward`
    Liu eq. 3    the answer's words, each from those before      `LlavaVisionLanguageForConditionalGeneration.forward`

Where it differs from transformers' `LlavaForConditionalGeneration`: any vision encoder and any causal language model, also
those that scale their embeddings, keep no attention cache or build their own masks; precomputed vision features
(`image_features`); text-only batches keep the projector in the graph; the logits of a long batch need not sit in memory
(`loss_chunk_size`).

Source: Liu et al. 2023a, https://arxiv.org/abs/2304.08485; Liu et al. 2023b (LLaVA-1.5), https://arxiv.org/abs/2310.03744
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from ...blocks.projector import Projector
from ...blocks.token_loss import IGNORE_INDEX, chunked_token_cross_entropy, inside_call, token_cross_entropy
from ...parts.language_model import (
    accepted_arguments,
    block_mask,
    reads_padding,
    separate_head,
)
from ...parts.vision_features import (
    configured_image_size,
    describe_vision_model,
    num_selected_tokens,
    select_tokens,
    show_every_patch,
    vision_features,
)
from .assembly import LlavaParts, load_parts
from .below_output_layer import BelowOutputLayer
from .configuration_llava import LlavaVisionLanguageConfig
from .generation_llava import PictureGenerationMixin
from .pretrained_llava import LlavaVisionLanguagePreTrainedModel


@dataclass
class LlavaVisionLanguageOutput(ModelOutput):
    """What `forward` gives.

    Args:
        loss: nats a token with loss; None without labels.
        logits: float (batch, tokens kept, vocab_size); None where `loss_chunk_size` saves them.
        cache: keys and values so far.
        hidden_states, attentions: of the language model, where asked for.
        image_features: float (pictures, image tokens, hidden_size), the projector's output; None without pictures.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    cache: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_features: torch.Tensor | None = None


class LlavaVisionLanguageForConditionalGeneration(LlavaVisionLanguagePreTrainedModel, PictureGenerationMixin):
    """The whole assistant: `forward` for training, `generate` for answers.

    Attributes:
        loss_chunk_size: with labels, tokens whose logits exist at a time; the loss is the same, `logits` are then None. None
            makes all logits at once and gives them back.
        packs_by_mask: whether samples packed in a row are kept apart by a mask of blocks rather than by their positions
            alone (see `parts/language_model.py`).
    """

    def __init__(self, config: LlavaVisionLanguageConfig) -> None:
        settle_sizes(config)
        super().__init__(config)
        self.vision_model = AutoModel.from_config(show_every_patch(config.vision_config))
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.projector = Projector(
            config.vision_hidden_size or 0,
            text_hidden_size(self.language_model),
            config.num_linear_layers,
            config.projector_hidden_act,
        )
        self.loss_chunk_size: int | None = None
        self.packs_by_mask = False
        self._text_arguments = accepted_arguments(self.language_model)
        self._head: Any = None
        self._reads_padding: bool | None = None
        for name in ("_can_compile_fullgraph", "_is_stateful"):
            setattr(self, name, getattr(self.language_model, name, getattr(self, name)))
        self.generation_config.suppress_tokens = [config.image_token_id]  # a picture can't be said
        self.post_init()

    @classmethod
    def from_pretrained_parts(
        cls, vision: str | PreTrainedModel, text: str | PreTrainedModel, **settings: Any
    ) -> "LlavaVisionLanguageForConditionalGeneration":
        """Join a pretrained vision encoder and a pretrained causal language model into an assistant that sees.

        The projector between them starts from random weights. `model.weight_report` tells where each tensor came from and is
        saved with the model.

        Args:
            vision: Hub name, folder or loaded model.
            text: Hub name, folder or loaded model.
            settings: as for `load_parts`: `processor`, `image_size`, `max_new_tokens`, and fields of
                `LlavaVisionLanguageConfig`, such as `num_linear_layers`.

        Raises:
            ValueError: before any weight is loaded, if a part can't do what it must, or the processor doesn't fit; while
                loading, if a part's weights are incomplete.
        """
        parts: LlavaParts = load_parts(vision, text, **settings)
        model = cls(parts.config)
        parts.place(model)
        model.generation_config.update(**parts.generation)
        model.weight_report = parts.report(model)
        return model.eval()

    # Parts that transformers asks for

    @property
    def base_model(self) -> Any:
        """The model below its output layer, which trl's trainers call to make logits of a few tokens at a time themselves.

        Called as `forward` is, without labels, it gives `last_hidden_state`, float (batch, tokens, hidden_size). What it is
        asked for, or given, otherwise is this model's; it is no module itself.
        """
        return BelowOutputLayer(self)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """The vision encoder; with `modality="text"` the language model."""
        return self.language_model if modality == "text" else self.vision_model

    def get_decoder(self) -> nn.Module:
        """The language model's body."""
        return self.language_model.get_decoder()

    def get_input_embeddings(self) -> nn.Module:
        """The language model's word embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's word embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's output layer."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the language model's output layer."""
        self.language_model.set_output_embeddings(new_embeddings)

    def train(self, mode: bool = True) -> "LlavaVisionLanguageForConditionalGeneration":
        """As `nn.Module.train`; a vision encoder that is frozen as a whole stays in evaluation mode.

        Its dropout and its batch normalisation's averages would otherwise change what it sees.
        """
        super().train(mode)
        if mode and not _learns(self.vision_model):
            self.vision_model.eval()
        return self

    # Pictures among words

    def vision_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the projector reads of pictures; may be computed once and kept where the vision encoder doesn't train.

        Args:
            pixel_values: float (pictures, channels, height, width).

        Returns: float (pictures, image tokens, vision_hidden_size).
        """
        config = self.config
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        # Activation checkpointing makes the encoder's first layer ask for gradients, frozen or not.
        learns = _learns(self.vision_model) or pixel_values.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            seen = vision_features(
                self.vision_model,
                pixel_values.to(self.vision_model.dtype),
                interpolate_pos_encoding=size != configured_image_size(config.vision_config),
                layer=config.vision_feature_layer,
            )
        return select_tokens(seen.features, config.num_prefix_tokens or 0, config.vision_feature_select_strategy)

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Pictures as words.

        Args:
            pixel_values: float (pictures, channels, height, width).

        Returns: `last_hidden_state`, float (pictures, image tokens, vision_hidden_size), what the projector reads;
            `pooler_output`, a list of float (image tokens, hidden_size), one a picture, what the language model reads.
        """
        features = self.vision_features(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=features, pooler_output=list(self.projector(features.to(self.projector_dtype)))
        )

    @property
    def projector_dtype(self) -> torch.dtype:
        """Of the projector's weights, whichever wrapper an adapter has put around it."""
        first: Any = self.projector.linears[0]
        return first.weight.dtype

    def _embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Words and pictures as float (batch, tokens, hidden_size), and the pictures' alone."""
        inputs_embeds = self.get_input_embeddings()(input_ids)
        is_image = input_ids.eq(self.config.image_token_id).to(inputs_embeds.device)
        # In decoding one word comes at a time, and never the image token: there is nothing to look for.
        is_prompt = input_ids.shape[1] > 1
        unseen = None
        if pixel_values is not None:
            image_features = self.vision_features(pixel_values)
        elif (is_prompt and is_split(self.vision_model)) or (self.training and _learns(self.vision_model)):
            # Each process must call every part as often as the others.
            unseen = self.vision_features(self._black_picture())
        if image_features is None:
            if is_prompt and not torch.compiler.is_compiling() and bool(is_image.any()):
                raise ValueError(
                    f"`pixel_values` must come with every picture of `input_ids`, got none for {int(is_image.sum())} image "
                    "tokens. Pass what the processor made of text and pictures together."
                )
            if self.training:  # every process of a parallel run must use every part in every step
                if unseen is None:
                    unseen = torch.zeros(1, 1, self.config.vision_hidden_size or 0, device=inputs_embeds.device)
                unseen = self.projector(unseen.to(self.projector_dtype))
                inputs_embeds = inputs_embeds + 0 * unseen.sum().to(inputs_embeds.dtype)
            return inputs_embeds, None
        words = self.projector(image_features.to(self.projector_dtype)).to(inputs_embeds)
        num_places = words.shape[0] * words.shape[1]
        if not torch.compiler.is_compiling() and int(is_image.sum()) != num_places:
            raise ValueError(
                f"`input_ids` must hold {self.config.num_image_tokens} image tokens a picture, got {int(is_image.sum())} for "
                f"{len(words)} pictures of {words.shape[1]} tokens. Put one `<image>` in the text per picture, and let the "
                "processor of this model expand it."
            )
        return inputs_embeds.masked_scatter(is_image[..., None], words), words

    def _black_picture(self) -> torch.Tensor:
        height, width = self.config.image_size or configured_image_size(self.config.vision_config)
        channels = getattr(self.config.vision_config, "num_channels", 3)
        return torch.zeros(1, channels, height, width, device=self.device)

    # Training and generation

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")  # as transformers' own models take it
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> LlavaVisionLanguageOutput:
        """Predict each token from the tokens and pictures before it.

        Args:
            input_ids: int64 (batch, tokens), a picture's place held by `num_image_tokens` image tokens.
            pixel_values: float (pictures, channels, height, width): all of the batch, in the order of their places.
            attention_mask: int64 (batch, past and present tokens), 0 for padding; or what `create_masks_for_generate` made.
            position_ids: int64 (batch, tokens). Without an `attention_mask`, positions that start again at 0 mean several
                samples packed in a row, which don't see each other.
            cache: keys and values of earlier tokens.
            inputs_embeds: float (batch, tokens, hidden_size), instead of `input_ids`.
            image_features: float (pictures, image tokens, vision_hidden_size), what `vision_features` gave for the
                pictures, instead of `pixel_values`.
            labels: int64 (batch, tokens), aligned with `input_ids`, not shifted; `IGNORE_INDEX` carries no loss.
            shift_labels: int64 (batch, tokens), the next token of each, instead of `labels`: what the Trainer hands over
                where a sequence is shared between processes.
            logits_to_keep: how many logits from the end, or indices along the tokens; 0 for all.
            num_items_in_batch: labels with loss in the whole optimiser step; the loss is their sum over it.

        Raises:
            ValueError: if pictures and their places disagree in number, or there is nothing to read.
        """
        arguments, words = self._language_inputs(
            input_ids, pixel_values, image_features, inputs_embeds, attention_mask, position_ids, cache
        )
        if labels is not None and shift_labels is None:
            shift_labels = next_tokens(labels)
        if shift_labels is not None:
            use_cache = False  # with one, samples packed in a row would see each other
        arguments.update(use_cache=use_cache, return_dict=True, **kwargs)
        if shift_labels is not None and self.loss_chunk_size:
            self.prepare_chunked_loss()
            if self._head:
                outputs = self.language_model.base_model(**arguments)
                return LlavaVisionLanguageOutput(
                    loss=self._chunked_loss(outputs.last_hidden_state, shift_labels, num_items_in_batch),
                    image_features=words,
                )
        if "logits_to_keep" in self._text_arguments:
            arguments["logits_to_keep"] = logits_to_keep
        outputs = self.language_model(**arguments)
        logits = outputs.logits
        if "logits_to_keep" not in self._text_arguments and not (
            isinstance(logits_to_keep, int) and logits_to_keep == 0
        ):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = logits[:, kept]
        loss = None
        if shift_labels is not None:
            loss = token_cross_entropy(  # Liu eq. 3
                logits,
                shift_labels,
                num_items_in_batch=num_items_in_batch,
                label_smoothing=self.config.label_smoothing if self.training else 0.0,
            )
        return LlavaVisionLanguageOutput(
            loss=loss,
            logits=logits,
            cache=getattr(outputs, "cache", None),
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None),
            image_features=words,
        )

    def _language_inputs(
        self,
        input_ids: torch.Tensor | None,
        pixel_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> tuple[dict[str, Any], torch.Tensor | None]:
        """What the language model is called with, and the projector's output, as `_embed` gives it."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "Either `input_ids` or `inputs_embeds` must be given, got "
                f"{'neither' if input_ids is None else 'both'}. Pass `input_ids` where there are pictures."
            )
        words = None
        if input_ids is not None:
            inputs_embeds, words = self._embed(input_ids, pixel_values, image_features)
        elif pixel_values is not None or image_features is not None:
            raise ValueError("Pictures are placed by `input_ids`, got `inputs_embeds`. Pass the ids.")
        assert inputs_embeds is not None
        return self._text_inputs(inputs_embeds, attention_mask, position_ids, cache), words

    def _text_inputs(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> dict[str, Any]:
        """What the language model is called with."""
        takes_positions = "position_ids" in self._text_arguments
        if isinstance(attention_mask, torch.Tensor) and attention_mask.shape == inputs_embeds.shape[:2]:  # no past
            if not torch.compiler.is_compiling() and bool((attention_mask[:, 0] == 0).any()):
                self._refuse_padding_that_is_read()
            if position_ids is None and takes_positions:
                position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            inputs_embeds = inputs_embeds * attention_mask[..., None].to(inputs_embeds)  # recurrences read padding
        if attention_mask is None and position_ids is not None and cache is None and self.packs_by_mask:
            attention_mask = block_mask(position_ids, self.language_model)
        arguments: dict[str, Any] = {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "cache": cache,
        }
        if takes_positions:
            arguments["position_ids"] = position_ids
        return arguments

    def _refuse_padding_that_is_read(self) -> None:
        if self._reads_padding is None:
            self._reads_padding = reads_padding(self.language_model)
        if self._reads_padding:
            raise ValueError(
                f"Padding in front must not be read, got `{self.language_model.config.model_type}`, which reads it though it is "
                "masked. Give prompts one at a time, or of equal length."
            )

    def _chunked_loss(
        self, hidden_states: torch.Tensor, next_labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        output_layer: Any = self.get_output_embeddings()

        def loss_of(hidden_states: torch.Tensor) -> torch.Tensor:
            return chunked_token_cross_entropy(
                hidden_states,
                next_labels.flatten().to(hidden_states.device),
                self._head,
                [parameter for parameter in output_layer.parameters() if parameter.requires_grad],
                chunk_size=self.loss_chunk_size or 1024,
                num_items_in_batch=num_items_in_batch,
                label_smoothing=self.config.label_smoothing if self.training else 0.0,
            )

        return inside_call(output_layer, loss_of, hidden_states.flatten(0, 1))

    def prepare_chunked_loss(self) -> None:
        """Find out how the language model makes logits of its output, once; best before its weights are split over processes."""
        if self._head is None:
            self._head = separate_head(self.language_model) or False


def is_split(module: nn.Module) -> bool:
    """Whether a module's weights lie spread over processes, by FSDP2 or ZeRO-3, and come together when it is called."""
    return any(isinstance(parameter, DTensor) or hasattr(parameter, "ds_id") for parameter in module.parameters())


def _learns(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """What each token has to predict, int64 (batch, tokens): the label after it; nothing after the last."""
    return torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORE_INDEX)], dim=1)


def text_hidden_size(language_model: Any) -> int:
    """Width of the embeddings that a language model reads, which OPT's need not have in common with its layers."""
    return language_model.get_input_embeddings().weight.shape[-1]


def settle_sizes(config: LlavaVisionLanguageConfig) -> None:
    """Ask the vision encoder for what the config leaves open: width, prefix and number of a picture's tokens."""
    if None not in (config.vision_hidden_size, config.num_prefix_tokens, config.num_image_tokens):
        return
    size = None if config.image_size is None else (config.image_size[0], config.image_size[1])
    seen = describe_vision_model(config.vision_config, size, config.vision_feature_layer)
    config.vision_hidden_size = seen.hidden_size
    config.num_prefix_tokens = seen.num_prefix_tokens
    config.num_image_tokens = num_selected_tokens(seen, config.vision_feature_select_strategy)
    config.image_size = list(seen.image_size)
