"""Configuration of the TrOCR architecture: a picture encoder, a text decoder, and how one reads the other."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...parts.hub_config import HubConfig


@strict
class TrOCREncoderDecoderTextConfig(HubConfig):
    """Configuration of our text decoder, wide enough for the decoders of the paper, RoBERTa, BERT and MiniLM.

    Args:
        norm_position: "post" normalises after each residual sum (RoBERTa, BERT, the paper's decoders), "pre" before each
            sub-layer (easier to train from scratch).
        position_embedding: "learned", or "sinusoidal" as in fairseq (`trocr-large`).
        first_position: row of the sinusoidal table that the first token gets; fairseq starts at `pad_token_id + 1`.
        embedding_norm: whether a LayerNorm follows the sum of word and position embeddings.
        scale_embedding: whether word embeddings are multiplied by sqrt(hidden_size).
        cross_attention_size: width of the picture's tokens; None means `hidden_size`.
        max_position_embeddings: the longest text, in tokens, the start token included.

    Source: Li et al. 2023, https://arxiv.org/abs/2109.10282
    """

    model_type = "hf_vlm_trocr_text"
    keys_to_ignore_at_inference = ["cache"]

    vocab_size: int = 128
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    max_position_embeddings: int = 128
    norm_position: Literal["post", "pre"] = "post"
    layer_norm_eps: float = 1e-5
    position_embedding: Literal["learned", "sinusoidal"] = "learned"
    first_position: int = 0
    embedding_norm: bool = True
    scale_embedding: bool = False
    cross_attention_size: int | None = None
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs: object) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.cross_attention_size is None:
            self.cross_attention_size = self.hidden_size
        super().__post_init__(**kwargs)

    def validate_heads(self) -> None:
        """Every head needs the same share of the width."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_attention_heads`, got {self.hidden_size} and "
                f"{self.num_attention_heads}. Change one of them."
            )


@strict
class TrOCREncoderDecoderConfig(HubConfig):
    """Configuration of a whole TrOCR model: any vision encoder of the Hub, and our text decoder or any that cross-attends.

    Args:
        vision_config: of the picture encoder; a dict needs its `model_type`.
        text_config: of the text decoder; a dict needs its `model_type`.
        vision_hidden_size: width of the encoder's tokens; None asks the encoder once, when the config is first made.
        label_smoothing: share of the target spread over the vocabulary, in [0, 1); 0 is the paper's setting. Not to be
            combined with the Trainer's `label_smoothing_factor`.
        ctc_loss_weight: how much a second, training-only loss weighs, for which the encoder's tokens must spell the text by
            themselves (connectionist temporal classification); 0 is the paper's setting. Trained from scratch on little data,
            a reader learns its letters and where to look far sooner with it. Wants one row of picture tokens in reading
            order, more of them than a text has tokens. Source: Watanabe et al. 2017, eq. 10,
            https://doi.org/10.1109/JSTSP.2017.2763455 (theirs is a weighted mean, ours a sum)
        ctc_decoding_weight: how much that head's opinion counts in greedy reading beside the decoder's, in [0, 1); 0 asks the
            decoder alone. Wants a head trained by `ctc_loss_weight`; see `joint_decoding.py`. Beam search, sampling and
            logits processors ask the decoder alone.
        decoder_start_token_id: first token that the decoder reads.

    Source: Li et al. 2023, https://arxiv.org/abs/2109.10282
    """

    model_type = "hf_vlm_trocr"
    keys_to_ignore_at_inference = ["cache"]
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="hf_vlm_vit"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="hf_vlm_trocr_text"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    vision_hidden_size: int | None = None
    label_smoothing: float | int = 0.0
    is_encoder_decoder: bool = True
    ctc_loss_weight: float | int = 0.0
    ctc_decoding_weight: float | int = 0.0
    decoder_start_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        text = self.text_config
        # BART's config gives the encoder's numbers under these names; here they tell a cache of the decoder its shape.
        for name, of_decoder in (
            ("num_hidden_layers", "decoder_layers"),
            ("num_attention_heads", "decoder_attention_heads"),
        ):
            if hasattr(text, of_decoder):
                setattr(text, name, getattr(text, of_decoder))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(self, name) is None:
                setattr(self, name, getattr(text, name, None))
        if self.decoder_start_token_id is None:
            start = getattr(text, "decoder_start_token_id", None)
            self.decoder_start_token_id = start if start is not None else self.bos_token_id
        self.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))

    def validate_label_smoothing(self) -> None:
        """A share of the target, below all of it."""
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"`label_smoothing` must be in [0, 1), got {self.label_smoothing}. The paper uses 0.")

    def validate_ctc(self) -> None:
        """A share of the score, given by a head that there is."""
        if not 0 <= self.ctc_decoding_weight < 1:
            raise ValueError(
                f"`ctc_decoding_weight` must be in [0, 1), got {self.ctc_decoding_weight}. 0.5 asks both alike."
            )
        if self.ctc_decoding_weight and not self.ctc_loss_weight:
            raise ValueError(
                f"`ctc_decoding_weight`={self.ctc_decoding_weight} wants a CTC head, got `ctc_loss_weight`=0, which makes "
                "none. Train with it, or set both to 0."
            )
