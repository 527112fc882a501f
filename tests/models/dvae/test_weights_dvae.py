import pytest
import torch

from hf_vlm.models.dvae.configuration_dvae import DVAEConfig
from hf_vlm.models.dvae.weights_dvae import config_from_released, weights_from_released
from tests.models.dvae.released_dalle import kernel_shapes, random_tensors


def test_settings_of_tensors_of_the_published_size_are_the_preset():
    encoder, decoder = (
        {
            f"blocks.{name}.{kind}": torch.empty((out, given, side, side) if kind == "w" else out, device="meta")
            for name, (out, given, side) in shapes.items()
            for kind in "wb"
        }
        for shapes in kernel_shapes(width=256, num_words=8192, word_width=128)
    )
    config = config_from_released(encoder, decoder)
    assert config.to_dict() == DVAEConfig.preset("dall-e").to_dict()
    assert sum(tensor.numel() for tensor in weights_from_released(config, encoder, decoder).values()) == 97_616_006


def test_each_tensor_gets_the_name_of_its_place():
    encoder, decoder = random_tensors()
    weights = weights_from_released(config_from_released(encoder, decoder), encoder, decoder)
    places = {
        "encoder.input_layer.weight": encoder["blocks.input.w"],
        "encoder.groups.1.0.shortcut.bias": encoder["blocks.group_2.block_1.id_path.b"],
        "encoder.groups.3.1.convolutions.2.weight": encoder["blocks.group_4.block_2.res_path.conv_3.w"],
        "decoder.groups.0.0.shortcut.weight": decoder["blocks.group_1.block_1.id_path.w"],
        "decoder.groups.2.1.convolutions.0.bias": decoder["blocks.group_3.block_2.res_path.conv_1.b"],
        "decoder.output_layer.bias": decoder["blocks.output.conv.b"],
    }
    assert len(weights) == len(encoder) + len(decoder)
    for name, tensor in places.items():
        assert torch.equal(weights[name], tensor), name


def test_faulty_tensors_are_each_named():
    encoder, decoder = random_tensors()
    config = config_from_released(encoder, decoder)
    del encoder["blocks.group_3.block_2.res_path.conv_4.b"]
    decoder["blocks.output.conv.w"] = decoder["blocks.output.conv.w"][:3]
    decoder["blocks.group_5.block_1.id_path.w"] = torch.ones(1)
    with pytest.raises(ValueError, match="Take both files of one release") as error:
        weights_from_released(config, encoder, decoder)
    assert "no encoder's `blocks.group_3.block_2.res_path.conv_4.b`" in str(error.value)
    assert "decoder's `blocks.output.conv.w` as (3, 8, 1, 1) instead of (6, 8, 1, 1)" in str(error.value)
    assert "decoder's `blocks.group_5.block_1.id_path.w`, which has no place" in str(error.value)


def test_encoder_and_decoder_of_different_sizes_are_refused():
    encoder, decoder = random_tensors(num_words=32)[0], random_tensors(num_words=40)[1]
    with pytest.raises(
        ValueError, match=r"decoder's `blocks\.input\.w` as \(12, 40, 1, 1\) instead of \(12, 32, 1, 1\)"
    ):
        weights_from_released(config_from_released(encoder, decoder), encoder, decoder)


@pytest.mark.parametrize("name", ["blocks.input.w", "blocks.output.conv.w"])
def test_missing_kernel_that_tells_a_width_is_named(name):
    encoder, decoder = random_tensors()
    del encoder[name]
    with pytest.raises(ValueError, match=rf"encoder .* kernel `{name}` of 4 sides, got none among"):
        config_from_released(encoder, decoder)
    encoder[name] = torch.ones(3)
    with pytest.raises(ValueError, match=r"got one of shape \(3,\)"):
        config_from_released(encoder, decoder)
