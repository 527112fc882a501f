"""Configuration of the CNN + LSTM captioner: a picture encoder, and how a recurrent decoder reads it."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...parts.hub_config import HubConfig

# A network to try things with; pretrained ones come by `from_pretrained_parts`.
_SMALL_RESNET = {"embedding_size": 16, "hidden_sizes": (16, 24, 32, 48), "depths": (1, 1, 1, 1), "layer_type": "basic"}


@strict
class CnnLstmConfig(HubConfig):
    """Configuration of a whole captioner: any vision encoder of the Hub, and an LSTM that writes about its map.

    Args:
        vision_config: of the picture encoder; a dict needs its `model_type`. By default a small ResNet.
        vision_hidden_size: width of the encoder's tokens; None asks the encoder once, when the model is first made.
        num_prefix_tokens: tokens in front of its patches, which the decoder is not shown; None asks likewise.
        train_batch_norm: whether batch normalisation in the encoder follows the pictures of each batch in training. False
            keeps the stored statistics: few pictures fit a batch, and accumulated batches then equal one large batch. True
            is for an encoder that starts from random weights, and whole batches of 32 pictures or more.
        attention: "none" shows the decoder the mean of the map as its first word (Show and Tell), "additive" lets it look
            anew for every word (Show, Attend and Tell).
        embedding_size: width of a word.
        hidden_size: width of the LSTM's state.
        num_hidden_layers: LSTM layers, one on the other.
        attention_size: width in which the state and each place of the map are compared; None means `hidden_size`.
        attention_regularization: what the doubly stochastic term weighs, 0 or more; 1 is the paper's.
        dropout: of words, between layers and before the output, in [0, 1); Show and Tell's code drops 0.3, Show, Attend
            and Tell's 0.5.
        label_smoothing: share of the target spread over the vocabulary, in [0, 1); 0 is the papers' setting. Not to be
            combined with the Trainer's `label_smoothing_factor`.
        initializer_range: standard deviation of new weights but the LSTM's; near Show and Tell's code, uniform in +-0.08.
        decoder_start_token_id: first token that the decoder reads.

    Source: Vinyals et al. 2015, https://arxiv.org/abs/1411.4555; Xu et al. 2015, https://arxiv.org/abs/1502.03044
    """

    model_type = "hf_vlm_cnn_lstm"
    keys_to_ignore_at_inference = [
        "cache",
        "token_loss",
        "attention_loss",
        "cross_attentions",
        "encoder_last_hidden_state",
    ]
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet", init_kwargs=_SMALL_RESNET)
    }

    vision_config: dict | PreTrainedConfig | None = None
    vision_hidden_size: int | None = None
    num_prefix_tokens: int | None = None
    train_batch_norm: bool = False
    vocab_size: int = 128
    attention: Literal["none", "additive"] = "none"
    embedding_size: int = 256
    hidden_size: int = 512
    num_hidden_layers: int = 1
    attention_size: int | None = None
    attention_regularization: float | int = 1.0
    dropout: float | int = 0.3
    label_smoothing: float | int = 0.0
    initializer_range: float = 0.05
    is_encoder_decoder: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.attention_size is None:
            self.attention_size = self.hidden_size
        if self.decoder_start_token_id is None:
            self.decoder_start_token_id = self.bos_token_id

    def validate_sizes(self) -> None:
        """Widths and counts are above 0."""
        for name in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "attention_size"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"`{name}` must be above 0, got {size}. Correct it.")

    def validate_shares(self) -> None:
        """Shares are below all of it."""
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}. Correct it.")

    def validate_attention_regularization(self) -> None:
        """A penalty, never a reward."""
        if self.attention_regularization < 0:
            raise ValueError(
                f"`attention_regularization` must be 0 or more, got {self.attention_regularization}. The paper uses 1."
            )

    def validate_untied(self) -> None:
        """Words are read and written in different widths."""
        if self.tie_word_embeddings:
            raise ValueError(
                "`tie_word_embeddings` must be False, got True: words are read and written by tables of their own. "
                "Leave it out."
            )
