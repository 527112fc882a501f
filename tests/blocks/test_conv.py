import pytest
import torch
from torch import nn

from hf_vlm.blocks.conv import (
    ConvDecoder,
    ConvEncoder,
    DownStage,
    ResidualConvBlock,
    UpStage,
    grid_size,
    init_convolution,
)

WIDTHS, BLOCKS = (6, 10, 8), (0, 2, 1)


def shapes_through(model: nn.Module, stage_type: type[nn.Module], inputs: torch.Tensor) -> list[tuple[int, ...]]:
    """Of the inputs of each stage, and of the last one's output."""
    seen: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, stage_type):
            module.register_forward_hook(lambda _, args, output: seen.extend([args[0].shape, output.shape]))
    model(inputs)
    assert seen[1:-1:2] == seen[2::2]  # each stage reads what the one before gave
    return [tuple(shape[1:]) for shape in [*seen[::2], seen[-1]]]


def num_residual_blocks(model: nn.Module) -> list[int]:
    return [sum(isinstance(module, ResidualConvBlock) for module in stage.modules()) for stage in model.stages]


def test_encoder_halves_each_stage_and_the_decoder_is_its_mirror_image() -> None:
    encoder = ConvEncoder(3, WIDTHS, BLOCKS, None, 5, "relu")
    decoder = ConvDecoder(5, WIDTHS, BLOCKS, None, 3, "relu")
    down = shapes_through(encoder, DownStage, torch.randn(2, 3, 24, 40))
    up = shapes_through(decoder, UpStage, torch.randn(2, 5, 3, 5))
    assert down == [(3, 24, 40), (6, 12, 20), (10, 6, 10), (8, 3, 5)]
    assert up == down[::-1]
    assert num_residual_blocks(encoder) == list(BLOCKS)
    assert num_residual_blocks(decoder) == list(BLOCKS)[::-1]
    assert encoder(torch.randn(2, 3, 24, 40)).shape == (2, 5, 3, 5)


def test_decoder_gives_as_many_maps_as_asked() -> None:
    assert ConvDecoder(5, WIDTHS, BLOCKS, 4, 6, "relu")(torch.randn(1, 5, 2, 3)).shape == (1, 6, 16, 24)


def test_no_stages_are_a_linear_map_of_each_pixel() -> None:
    encoder, decoder = ConvEncoder(3, (), (), None, 4, "relu"), ConvDecoder(4, (), (), None, 3, "relu")
    pictures = torch.randn(2, 3, 5, 7)
    weight, bias = encoder.output_layer.weight[:, :, 0, 0], encoder.output_layer.bias
    torch.testing.assert_close(encoder(pictures), torch.einsum("bchw,oc->bohw", pictures, weight) + bias[:, None, None])
    weight, bias = decoder.input_layer.weight[:, :, 0, 0], decoder.input_layer.bias
    latents = torch.randn(2, 4, 5, 7)
    torch.testing.assert_close(decoder(latents), torch.einsum("bchw,oc->bohw", latents, weight) + bias[:, None, None])


@pytest.mark.parametrize("inner_channels", [1, 6])
def test_residual_block_adds_to_its_input(inner_channels: int) -> None:
    block = ResidualConvBlock(4, inner_channels, "relu")
    assert block.spatial.out_channels == inner_channels
    features = torch.randn(2, 4, 5, 6)
    inner = nn.functional.conv2d(features.clamp(min=0), block.spatial.weight, block.spatial.bias, padding=1)
    added = torch.einsum("bihw,oi->bohw", inner.clamp(min=0), block.pointwise.weight[:, :, 0, 0])
    torch.testing.assert_close(block(features), features + added + block.pointwise.bias[:, None, None])


def test_inner_channels_are_the_width_of_the_stage_by_default() -> None:
    for inner_channels, wanted in ((None, 8), (3, 3)):
        for stage in (DownStage(4, 8, 1, inner_channels, "relu"), UpStage(8, 4, 1, inner_channels, "relu")):
            assert stage.blocks[0].spatial.out_channels == wanted


@pytest.mark.parametrize("side", [2, 4])
def test_encoder_and_decoder_see_a_neighbourhood_only(side: int) -> None:
    """A pixel changes the codes around it, and none far away: no axis is mixed up."""
    encoder = ConvEncoder(1, (4,), (1,), None, 2, "gelu")
    pictures = torch.zeros(1, 1, 32, 48)
    before = encoder(pictures)
    pictures[0, 0, 2 * side, 30] = 1.0
    changed = (encoder(pictures) != before).any(1)[0].nonzero()
    assert changed.amin(0).tolist() == [side - 2, 13] and changed.amax(0).tolist() == [side + 1, 16]


@pytest.mark.parametrize("gain", [1.0, 2.0])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(16, 64, 4, stride=2),
        nn.Conv2d(16, 64, 3),
        nn.Conv2d(32, 64, 1),
        nn.ConvTranspose2d(16, 64, 4, stride=2),
        nn.ConvTranspose2d(16, 64, 2, stride=2),
    ],
    ids=["strided", "3x3", "1x1", "transposed", "transposed_without_overlap"],
)
def test_initial_weights_keep_the_variance(layer: nn.Conv2d | nn.ConvTranspose2d, gain: float) -> None:
    nn.init.constant_(layer.bias, 7.0)
    init_convolution(layer, gain)
    outputs = layer(torch.randn(4, 16 if layer.in_channels == 16 else 32, 40, 40))[..., 4:-4, 4:-4]  # no borders
    assert outputs.var().item() == pytest.approx(gain**2, rel=0.08)
    assert not layer.bias.any()


def test_grid_is_the_picture_divided() -> None:
    assert grid_size(24, 40, 8) == (3, 5)
    assert grid_size(8, 8, 8) == (1, 1)
    assert grid_size(5, 7, 1) == (5, 7)


@pytest.mark.parametrize(
    ("height", "width", "near"),
    [(20, 40, "16 x 40"), (24, 39, "24 x 40"), (3, 8, "8 x 8"), (0, 8, "8 x 8"), (8, 0, "8 x 8"), (-8, 8, "8 x 8")],
)
def test_picture_that_makes_no_whole_grid_raises(height: int, width: int, near: str) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 8 pixels are wanted, got {height} x {width}\. .* to {near},"):
        grid_size(height, width, 8)
