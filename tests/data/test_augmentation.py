import numpy as np
from PIL import Image

from hf_vlm.data.augmentation import augment_line


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
