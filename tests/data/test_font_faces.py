import string

import numpy as np
import pytest

from hf_vlm.data.font_faces import find_faces, glyphs_of
from tests.data.line_files import write_font


def test_a_face_knows_what_it_can_write(tmp_path):
    (face,) = find_faces([write_font(tmp_path)], characters="a ;€é☃")
    assert face.characters == set(
        string.ascii_letters + string.digits + " ;"
    )  # Pillow's font has no euro sign, accents or snowmen
    assert face.family == "Aileron" and face.kind == "book"


def test_folders_are_searched_in_depth_and_copies_counted_once(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_font(tmp_path / name)
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    assert len(find_faces([tmp_path, tmp_path / "gone"])) == 1


def test_excluded_names_are_left_out(tmp_path):
    write_font(tmp_path)
    with pytest.raises(ValueError, match="must hold a font with Latin letters"):
        find_faces([tmp_path], exclude=["AILE"])


def test_glyphs_have_the_height_asked_for_and_are_kept(tmp_path):
    (face,) = find_faces([write_font(tmp_path)])
    glyphs = glyphs_of(face, 40)
    assert glyphs is glyphs_of(face, 40)
    top = min(glyphs[character].top for character in "bdhkl")
    foot = max(glyphs[character].top + glyphs[character].ink.shape[0] for character in "gpqy")
    assert foot - top == pytest.approx(40, abs=2)
    assert -top == pytest.approx(glyphs.ascent, abs=1)
    assert glyphs["m"].ink.dtype == np.uint8 and glyphs["m"].advance > glyphs["i"].advance
