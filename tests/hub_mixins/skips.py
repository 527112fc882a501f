"""Every test of transformers' mixins that does not run on our classes, and why.

Keys are shell patterns over `file::class::test`. Tests that skip themselves (no GPU, no flash kernels, no embeddings to
resize) are not listed.
"""

GENERATION = "transformers' tests of generation are not in its source distribution; tests/model_contract.py has ours"
ENCODER_STATES = (
    "the encoder may be any vision model of the Hub, and not all record states; ask the encoder for its own with "
    "`model.encoder.vision_model(pixel_values, output_attentions=True, output_hidden_states=True)`"
)
IMAGE_SETTINGS = (
    "the processor's keywords are settings of its image processor; a text becomes labels with one end token, which are "
    "never cut, so there are no settings of a tokenizer to merge"
)

ANY_VISION_MODEL = (
    "the vision encoder may be any of the Hub, and not all record states; ask it for its own with "
    "`model.vision_model(pixel_values, output_attentions=True, output_hidden_states=True)`"
)
RETURN_TENSORS = (
    "`return_tensors` is an argument of its own with the default `pt`: there are no other tensors in transformers 5"
)

SKIPS: dict[str, str] = {
    "test_trocr_mixins.py::*::test_generation_tester_mixin_inheritance": GENERATION,
    "test_trocr_mixins.py::LineReaderTest::test_attention_outputs": ENCODER_STATES,
    "test_trocr_mixins.py::LineReaderTest::test_hidden_states_output": ENCODER_STATES,
    "test_trocr_mixins.py::LineReaderTest::test_retain_grad_hidden_states_attentions": ENCODER_STATES,
    "test_trocr_mixins.py::LineReaderTest::test_model_base_model_prefix": (
        "the whole model is made of two parts, none of which is it without a head"
    ),
    "test_processing_mixins.py::*::test_*kwargs*_images": IMAGE_SETTINGS,
    "test_processing_mixins.py::*::test_flat_kwarg_applied_when_modality_dict_lacks_it": IMAGE_SETTINGS,
    "test_processing_mixins.py::*::test_processor_text_has_no_visual": IMAGE_SETTINGS,
    "test_processing_mixins.py::*::test_call_arguments_*": RETURN_TENSORS,
    "test_cnn_lstm_mixins.py::*::test_generation_tester_mixin_inheritance": GENERATION,
    "test_cnn_lstm_mixins.py::*::test_hidden_states_output": ENCODER_STATES,
    "test_cnn_lstm_mixins.py::*::test_retain_grad_hidden_states_attentions": ENCODER_STATES,
    "test_cnn_lstm_mixins.py::*::test_model_base_model_prefix": (
        "the whole model is made of three parts, none of which is it without a head"
    ),
    "test_cnn_lstm_mixins.py::*::test_*kwargs*_images": IMAGE_SETTINGS,
    "test_cnn_lstm_mixins.py::*::test_flat_kwarg_applied_when_modality_dict_lacks_it": IMAGE_SETTINGS,
    "test_cnn_lstm_mixins.py::*::test_processor_text_has_no_visual": IMAGE_SETTINGS,
    "test_cnn_lstm_mixins.py::*::test_call_arguments_*": RETURN_TENSORS,
    "test_tokenizer_mixins.py::DVAEModelTest::test_retain_grad_hidden_states_attentions": (
        "it wants a gradient of the first output, here the vectors of the likeliest words, which are chosen, not computed"
    ),
    "test_llava_mixins.py::*::test_generation_tester_mixin_inheritance": GENERATION,
    "test_llava_mixins.py::AssistantTest::test_get_image_features_attentions": ANY_VISION_MODEL,
    "test_llava_mixins.py::AssistantTest::test_get_image_features_hidden_states": ANY_VISION_MODEL,
    "test_llava_mixins.py::AssistantTest::test_multimodal_outputs_are_returned": ANY_VISION_MODEL,
    "test_llava_mixins.py::AssistantTest::test_model_base_model_prefix": (
        "the whole model is made of three parts, none of which is it without a head"
    ),
    "test_llava_mixins.py::AssistantProcessorTest::test_call_arguments_*": RETURN_TENSORS,
}
