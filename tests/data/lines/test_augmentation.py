import collections

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as F

from hf_vlm.data.lines import augmentation
from hf_vlm.data.lines.augmentation import (
    AUGMENTATIONS,
    DA2_CHANGES,
    RAND_AUGMENT,
    augment_da2,
    augment_line,
    augment_randomly,
    augmentation_name,
)

OPERATIONS = [(group, name) for group, operations in RAND_AUGMENT.items() for name in operations]
# Those that move pixels; all others leave each stroke where it was.
MOVING = {"warp", "geometry"}


def barred_line(width=300, height=40):
    """Ten thick strokes on light paper, from edge to edge as tight crops have them."""
    grey = np.full((height, width), 220, dtype=np.uint8)
    for stroke in range(10):
        left = 1 + stroke * 32
        grey[10:30, left : left + 6] = 30
    return Image.fromarray(grey)


def test_the_same_state_gives_the_same_picture():
    one, two = (augment_line(barred_line(), np.random.default_rng(3)) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert augment_line(barred_line(), np.random.default_rng(4)).tobytes() != one.tobytes()


def test_the_given_picture_is_left_as_it_was():
    image = barred_line()
    before = image.tobytes()
    augment_line(image, np.random.default_rng(0))
    assert image.tobytes() == before


def test_changes_are_mild():
    for index in range(200):
        image = augment_line(barred_line(), np.random.default_rng(index))
        assert image.mode == "L" and image.height == 40 and 0.87 * 300 <= image.width <= 1.15 * 300
        grey = np.asarray(image, dtype=np.float32)
        dark = grey[18:22].mean(axis=0) < (grey.min() + np.percentile(grey, 90)) / 2
        strokes = np.count_nonzero(dark[1:] & ~dark[:-1]) + dark[0]
        assert strokes == 10  # every stroke is still there and apart from its neighbours


def test_any_size_and_mode_goes_through():
    for size in ((1, 1), (1, 60), (2000, 8)):
        assert augment_line(Image.new("RGBA", size, "white"), np.random.default_rng(0)).mode == "L"


def printed_line(width=300, height=40):
    """Black letters' strokes on white, with paper all round."""
    image = Image.new("L", (width + 40, height), 255)
    image.paste(barred_line(width, height).point(lambda grey: 0 if grey < 100 else 255), (20, 0))
    return image


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(AUGMENTATIONS)),
    size=st.tuples(st.integers(1, 200), st.integers(1, 60)),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]),
    seed=st.integers(0, 2**32),
)
def test_any_picture_goes_through_and_the_state_decides_all(name, size, mode, seed):
    image = Image.effect_noise(size, 80).convert(mode)
    before = image.tobytes()
    torch.manual_seed(seed % 7)  # torch's own generator has no say
    one, two = (AUGMENTATIONS[name](image, np.random.default_rng(seed)) for _ in range(2))
    assert one.mode in ("L", "RGB") and one.mode == two.mode and one.size == two.size
    assert one.tobytes() == two.tobytes() and min(one.size) >= 1
    assert image.tobytes() == before


def test_da2_makes_each_of_its_seven_changes_as_often(monkeypatch):
    counts = collections.Counter()
    for name in DA2_CHANGES:
        monkeypatch.setitem(DA2_CHANGES, name, lambda image, rng, name=name: counts.update([name]))
    line = printed_line()
    for index in range(7000):
        augment_da2(line, np.random.default_rng(index))
    assert list(sorted(counts)) == ["blur", "downscale", "keep", "max_filter", "min_filter", "rotate", "underline"]
    assert all(count == pytest.approx(1000, abs=120) for count in counts.values())


def changed_by(name, image=None, seed=0):
    return np.asarray(DA2_CHANGES[name](image or printed_line(), np.random.default_rng(seed)))


def test_da2_underlines_at_the_lowest_ink_from_first_to_last_column():
    before, after = np.asarray(printed_line()), changed_by("underline")
    rows, columns = np.nonzero(before != after)
    assert set(rows) == {27, 28, 29}  # the strokes' feet are in row 29
    assert (after[27:30, 21:315] == 0).all() and 21 <= columns.min() and columns.max() <= 314
    low = Image.fromarray(np.roll(before, 10, axis=0))
    assert (changed_by("underline", low)[37:, 21:315] == 0).all()
    pale = Image.fromarray(np.where(before < 128, 80, 255).astype(np.uint8))  # no ink as dark as that
    assert np.array_equal(changed_by("underline", pale), np.asarray(pale))


def test_da2_blurs_by_different_amounts():
    edges = {int(np.abs(np.diff(changed_by("blur", seed=seed).astype(int))).max()) for seed in range(20)}
    assert len(edges) > 5 and min(edges) < 170 < max(edges)  # sigma from 0.1 to 2.0


def test_da2_thickens_thins_scales_and_turns():
    ink = np.count_nonzero(np.asarray(printed_line()) < 128)
    assert np.count_nonzero(changed_by("min_filter") < 128) == 10 * 22 * 8
    assert np.count_nonzero(changed_by("max_filter") < 128) == 10 * 18 * 4
    assert changed_by("downscale").shape == (16, 136)
    assert changed_by("downscale", printed_line().resize((680, 80))).shape == (26, 226)
    assert changed_by("downscale", printed_line().resize((100, 12))).shape == (12, 100)
    assert set(np.unique(changed_by("downscale"))) == {0, 255}  # of the nearest pixel: no greys between
    heights = {changed_by("rotate", seed=seed).shape[0] for seed in range(200)}
    # A line of 340 x 40 px turned by ten degrees is 40 cos 10 + 340 sin 10 = 98 px high.
    assert min(heights) < 44 and 90 < max(heights) <= 101
    turned = changed_by("rotate", seed=3)
    assert turned[0, 0] == 255 and np.count_nonzero(turned < 128) == pytest.approx(ink, rel=0.1)
    assert np.array_equal(changed_by("keep"), np.asarray(printed_line()))


@pytest.mark.parametrize(
    "picture", [barred_line(), printed_line(), barred_line().convert("RGB")], ids=["grey", "bw", "rgb"]
)
@pytest.mark.parametrize("magnitude", [0, 1, 2])
@pytest.mark.parametrize(("group", "name"), OPERATIONS)
def test_an_operation_leaves_the_line_legible(group, name, magnitude, picture):
    pixels = F.pil_to_tensor(picture)
    for seed in range(3):
        changed = RAND_AUGMENT[group][name](pixels, magnitude, np.random.default_rng(seed))
        assert changed.dtype == torch.uint8 and changed.shape[0] == pixels.shape[0]
        rows, columns = changed.shape[1:]
        if group not in MOVING:
            assert changed.shape == pixels.shape
        else:
            assert 40 <= rows <= 80 and pixels.shape[2] <= columns <= 1.2 * pixels.shape[2]
        if name == "solarize":
            continue  # may well erase it: see the next test but one
        assert strokes_are_told_apart(changed.float().mean(0).numpy(), group in MOVING)


def strokes_are_told_apart(grey, has_moved):
    """Whether ten strokes can still be told from the gaps between them, or, where they moved, as much ink is there."""
    if has_moved:
        return np.abs(grey - np.median(grey)).sum() > 0.35 * 10 * 20 * 6 * 190
    offset = 20 if grey.shape[1] == 340 else 0
    inside = [grey[12:28, offset + 2 + stroke * 32 : offset + 6 + stroke * 32].mean() for stroke in range(10)]
    between = [grey[12:28, offset + 14 + stroke * 32 : offset + 26 + stroke * 32].mean() for stroke in range(9)]
    return np.mean(np.abs(np.array(inside[:9]) - between)) > 25


@pytest.mark.parametrize(("group", "name"), OPERATIONS)
def test_an_operation_changes_a_coloured_picture(group, name):
    noise = np.random.default_rng(0).integers(40, 200, (3, 32, 120), dtype=np.uint8)
    pixels = F.gaussian_blur(torch.from_numpy(noise), [5, 5])
    changed = RAND_AUGMENT[group][name](pixels, 2, np.random.default_rng(1))
    assert changed.shape != pixels.shape or (changed != pixels).float().mean() > 0.01


def test_randaugment_keeps_half_and_takes_three_groups_of_magnitude_0_to_2(monkeypatch):
    calls = []
    for group, operations in RAND_AUGMENT.items():
        for name in operations:
            monkeypatch.setitem(
                operations, name,
                lambda pixels, magnitude, rng, group=group, name=name: calls.append((group, name, magnitude)) or pixels,
            )  # fmt: skip
    used, intact = collections.Counter(), 0
    line = printed_line()
    for index in range(4000):
        calls.clear()
        augment_randomly(line, np.random.default_rng(index))
        intact += not calls
        assert not calls or len({group for group, _, _ in calls}) == len(calls) == 3
        used.update(calls)
    assert intact == pytest.approx(2000, abs=150)
    assert {magnitude for _, _, magnitude in used} == {0, 1, 2}
    assert {(group, name) for group, name, _ in used} == set(OPERATIONS)
    groups = collections.Counter()
    for (group, _, _), count in used.items():
        groups[group] += count
    assert all(count == pytest.approx(750, abs=120) for count in groups.values())


def test_randaugment_passes_over_what_would_erase_the_ink(monkeypatch):
    white = RAND_AUGMENT["process"]["solarize"](F.pil_to_tensor(printed_line()), 0, np.random.default_rng(0))
    assert (white == white[0, 0, 0]).all()  # black and white solarised: all black
    monkeypatch.setattr(
        augmentation, "RAND_AUGMENT", {str(n): {"s": RAND_AUGMENT["process"]["solarize"]} for n in range(3)}
    )
    for index in range(20):
        assert augment_randomly(printed_line(), np.random.default_rng(index)).tobytes() == printed_line().tobytes()


def test_names_are_checked_and_old_recipes_mean_mild():
    assert [augmentation_name(choice) for choice in (True, False, None, "da2")] == ["mild", None, None, "da2"]
    with pytest.raises(
        ValueError, match="must be true, false or one of mild, da2, randaugment, got 'RandAug'. Did you mean `randaug"
    ):
        augmentation_name("RandAug")
    with pytest.raises(ValueError, match="got 'x'. Correct the name"):
        augmentation_name("x")
