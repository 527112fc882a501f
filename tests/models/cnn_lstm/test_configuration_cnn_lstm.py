"""Settings of the captioner: what they default to, and what they refuse."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModel

from hf_vlm.models.cnn_lstm.configuration_cnn_lstm import CnnLstmConfig
from tests.models.cnn_lstm.tiny_captioners import tiny_config


def test_default_encoder_is_a_small_resnet():
    config = CnnLstmConfig()
    assert config.vision_config.model_type == "resnet"
    encoder = AutoModel.from_config(config.vision_config)
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 100_000


def test_decoder_defaults_are_those_of_the_papers_and_the_tutorial():
    config = CnnLstmConfig()
    assert (config.attention, config.embedding_size, config.hidden_size, config.num_hidden_layers) == (
        "none",
        256,
        512,
        1,
    )
    assert (config.attention_size, config.attention_regularization, config.tie_word_embeddings) == (512, 1.0, False)
    special = (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.decoder_start_token_id)
    assert special == (0, 1, 2, 1)


def test_config_comes_back_from_its_file(tmp_path):
    config = tiny_config("additive", label_smoothing=0.1, train_batch_norm=True)
    config.save_pretrained(tmp_path)
    reloaded = AutoConfig.from_pretrained(tmp_path)
    assert type(reloaded) is CnnLstmConfig
    assert (reloaded.attention, reloaded.attention_size, reloaded.label_smoothing) == ("additive", 16, 0.1)
    assert reloaded.train_batch_norm and list(reloaded.vision_config.hidden_sizes) == [6, 8, 10]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, "`hidden_size` must be above 0, got 0"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` must be above 0"),
        ({"attention_size": -1}, "`attention_size` must be above 0"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, r"`label_smoothing` must be in \[0, 1\)"),
        ({"attention_regularization": -1}, "`attention_regularization` must be 0 or more"),
        ({"tie_word_embeddings": True}, "`tie_word_embeddings` must be False"),
        ({"attention": "multiplicative"}, "attention"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises((StrictDataclassClassValidationError, StrictDataclassFieldValidationError), match=message):
        CnnLstmConfig(**settings)
