import numpy as np
import torch
from PIL import Image

from hf_vlm.training.scores.tokenizer_pictures import CodeUsage, paired_grid, picture_grid


def squares(*levels, size=32):
    return [Image.new("RGB", (size, size), (level,) * 3) for level in levels]


def test_grid_shows_each_picture_in_its_place_enlarged():
    sheet = np.asarray(picture_grid(squares(0, 50, 100, 150, 200), columns=2))
    assert sheet.shape == (3 * 66 + 2, 2 * 66 + 2, 3)
    centres = [sheet[34 + 66 * row, 34 + 66 * column, 0] for row in range(3) for column in range(2)]
    assert centres == [0, 50, 100, 150, 200, 255]  # the last place is empty: white


def test_large_pictures_are_not_enlarged():
    assert picture_grid(squares(0, size=100), columns=1).size == (104, 104)


def test_rows_stand_under_their_names():
    sheet = paired_grid([squares(10, 20), squares(30, 40)], ["originals", "reconstructions"])
    levels = np.asarray(sheet)
    first, second = 16 + 34, 16 + 68 + 16 + 34
    assert [levels[first, 34, 0], levels[first, 100, 0], levels[second, 34, 0], levels[second, 100, 0]] == [
        10,
        20,
        30,
        40,
    ]
    assert levels[:16].min() < 100  # there is a name


def test_usage_is_kept_on_disk_and_forgets_what_a_stopped_run_had_ahead(tmp_path):
    usage = CodeUsage(tmp_path)
    usage.add(10, torch.tensor([3.0, 0.0, 1.0]))
    usage.add(20, torch.tensor([2.0, 1.0, 1.0]))
    with (tmp_path / "code_usage.csv").open("a") as file:
        file.write("30,1,")  # cut off
    resumed = CodeUsage(tmp_path)
    assert resumed.counts == {10: [3, 0, 1], 20: [2, 1, 1]}
    resumed.add(15, torch.tensor([1.0, 1.0, 2.0]))
    assert CodeUsage(tmp_path).counts == {10: [3, 0, 1], 15: [1, 1, 2]}


def test_usage_is_drawn_dark_where_codes_are_used_and_white_where_never(tmp_path):
    usage = CodeUsage(tmp_path)
    usage.add(1, torch.tensor([8.0, 0.0, 0.0, 0.0]))
    usage.add(2, torch.tensor([2.0, 2.0, 2.0, 2.0]))
    levels = np.asarray(usage.draw())[..., 0]
    first, second = 4 + 6, 4 + 18  # the middles of the two columns
    assert levels[24 + 32, first] < levels[24 + 32, second] < 255
    assert levels[24 + 200, first] == 255 and levels[24 + 200, second] < 255
