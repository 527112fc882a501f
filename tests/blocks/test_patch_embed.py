import pytest
import torch

from hf_vlm.blocks.patch_embed import ConvolutionalStemLayer, PatchEmbedding, as_pair


def test_pair_of_one_number_or_two() -> None:
    assert as_pair(7) == (7, 7)
    assert as_pair([3, 5]) == (3, 5)


@pytest.mark.parametrize("stride", [(4, 6), (2, 3)])
def test_patches_are_linear_maps_of_their_pixels_row_by_row(stride: tuple[int, int]) -> None:
    embed = PatchEmbedding(2, 5, patch_size=(4, 6), patch_stride=stride)
    pixel_values = torch.randn(3, 2, 12, 18)
    rows, columns = embed.grid_size(12, 18)
    expected = []
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride[0], column * stride[1]
            patch = pixel_values[:, :, top : top + 4, left : left + 6].flatten(1)
            expected.append(patch @ embed.projection.weight.flatten(1).T + embed.projection.bias)
    torch.testing.assert_close(embed(pixel_values), torch.stack(expected, dim=1), atol=1e-5, rtol=1e-5)


def test_stem_layer_normalises_each_position_by_itself() -> None:
    layer = ConvolutionalStemLayer(3, 8, stride=(2, 1))
    features = torch.randn(2, 3, 6, 7)
    convolved = layer.convolution(features)
    mean, variance = convolved.mean(dim=1, keepdim=True), convolved.var(dim=1, keepdim=True, unbiased=False)
    expected = torch.nn.functional.gelu((convolved - mean) / (variance + layer.norm.eps).sqrt())
    torch.testing.assert_close(layer(features)[0], expected, atol=1e-5, rtol=1e-5)


def test_patch_size_counts_pixels_of_the_picture_stem_included() -> None:
    embed = PatchEmbedding(1, 8, (16, 8), (16, 8), stem_channels=(4, 6), stem_strides=((2, 2), (2, 1)))
    assert embed.projection.kernel_size == embed.projection.stride == (4, 4)
    assert embed.grid_size(32, 64) == (2, 8)
    assert embed(torch.randn(1, 1, 32, 64)).shape == (1, 16, 8)


@pytest.mark.parametrize("width", range(1, 33))
def test_masked_picture_has_the_patches_that_it_has_alone(width: int) -> None:
    """Alone it is padded to the next whole stride only, in company to 32 pixels."""
    for size, stride in ((8, 8), (8, 4), (6, 2)):
        embed = PatchEmbedding(1, 4, (4, size), (4, stride))
        padded = torch.zeros(1, 4, 32, dtype=torch.int64)
        padded[:, :, :width] = 1
        alone_width = max(size, -(-(width - size) // stride) * stride + size)
        expected = embed.patch_mask(padded[:, :, : min(alone_width, 32)])
        got = embed.patch_mask(padded)
        assert expected.all()
        assert got.sum() == expected.sum() and got[0, : expected.shape[1]].all()


def test_padding_reaches_no_real_patch_through_the_stem() -> None:
    embed = PatchEmbedding(1, 8, (8, 4), (8, 4), stem_channels=(4, 4, 4), stem_strides=((2, 2), (2, 1), (1, 1)))
    pixel_values = torch.randn(1, 1, 8, 32)
    pixel_mask = torch.zeros(1, 8, 32, dtype=torch.int64)
    pixel_mask[:, :, :17] = 1
    together, alone = embed(pixel_values, pixel_mask), embed(pixel_values[..., :20], pixel_mask[..., :20])
    torch.testing.assert_close(together[:, :5], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("width", range(32, 41))
def test_stem_gives_as_many_patches_as_the_grid_says_at_any_width(width: int) -> None:
    embed = PatchEmbedding(1, 4, (16, 8), (16, 8), stem_channels=(3, 5), stem_strides=((2, 2), (2, 2)))
    picture = torch.randn(1, 1, 16, width)
    rows, columns = embed.grid_size(16, width)
    patches = embed(picture)
    assert patches.shape[1] == rows * columns == width // 8
    covered = picture[..., : 8 * columns]
    assert torch.equal(patches, embed(covered))
    mask = torch.ones(1, 16, width, dtype=torch.long)
    assert torch.equal(embed(picture, mask), patches)
    assert embed.patch_mask(mask).shape == (1, columns)
