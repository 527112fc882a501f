import numpy as np
import pytest
from PIL import Image

from hf_vlm.data.lines.sample_sheet import sample_sheet


def line(level, width=100, height=20, mode="L", **more):
    return {"image": Image.new("L", (width, height), level).convert(mode), "text": "what it says", **more}


def test_every_line_is_shown_whole_under_a_caption():
    sheet = sample_sheet([line(1, kind="fax", face="Courier"), line(2, height=30), line(3, width=900)], width=200)
    grey = np.asarray(sheet)
    assert sheet.mode == "L" and sheet.width == 2 * 200 + 8
    assert np.count_nonzero(grey == 1) >= 100 * 20 and np.count_nonzero(grey == 2) >= 100 * 30
    assert np.count_nonzero(grey == 3) >= 192 * 20  # cut off at the column's edge
    top = np.argwhere(grey == 1)[:, 0].min()
    assert (grey[8:top, 8:200] < 100).any()  # a caption above


def test_coloured_lines_stay_coloured_and_no_line_is_refused():
    assert sample_sheet([line(9), line(9, mode="RGB")]).mode == "RGB"
    with pytest.raises(ValueError, match="must hold lines to show, got none"):
        sample_sheet([])
