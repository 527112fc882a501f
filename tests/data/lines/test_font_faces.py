import string

import numpy as np
import pytest
from PIL import Image

from hf_vlm.data.lines import font_faces
from hf_vlm.data.lines.font_faces import find_faces, glyphs_of
from tests.data.line_files import write_font


def test_a_face_knows_what_it_can_write(tmp_path):
    (face,) = find_faces([write_font(tmp_path)], characters="a ;€é☃")
    assert face.characters == set(
        string.ascii_letters + string.digits + " ;"
    )  # Pillow's font has no euro sign, accents or snowmen
    assert face.family == "Aileron" and face.kind == "print"


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


def test_damaged_fonts_are_left_out_and_named(tmp_path, caplog):
    whole = write_font(tmp_path).read_bytes()
    (tmp_path / "cut.ttf").write_bytes(whole[:1000])
    (tmp_path / "empty.otf").write_bytes(b"")
    (tmp_path / "letter.pfb").write_bytes(b"Dear Sir,")
    assert [face.family for face in find_faces([tmp_path])] == ["Aileron"]
    (warning,) = caplog.records
    assert warning.getMessage().startswith("3 of 4 font files can't be read and are left out: ")
    assert all(name in warning.getMessage() for name in ("cut.ttf", "empty.otf", "letter.pfb"))


def test_folders_without_a_usable_font_are_named(tmp_path):
    with pytest.raises(ValueError, match=f"got no font file in {tmp_path}"):
        find_faces([tmp_path])
    (tmp_path / "empty.ttf").write_bytes(b"")
    with pytest.raises(ValueError, match="got 1 font files, 1 of them damaged"):
        find_faces([tmp_path])


def test_faces_of_capitals_are_told_from_others(tmp_path, monkeypatch):
    font = font_faces._open_font(write_font(tmp_path), 64)
    assert not font_faces._is_all_capitals(font)
    real = font_faces._draw
    # A hand that writes capitals for small letters draws each a little otherwise: leaned here.
    monkeypatch.setattr(
        font_faces, "_draw",
        lambda text, font: real(text, font) if text.isupper() else _leaned(real(text.upper(), font)),
    )  # fmt: skip
    assert font_faces._is_all_capitals(font)


def _leaned(glyph):
    ink = Image.fromarray(glyph.ink).rotate(12, expand=False, fillcolor=0)
    return glyph._replace(ink=np.asarray(ink))


def test_strokes_join_letters_at_foot_and_shoulder(tmp_path):
    (face,) = find_faces([write_font(tmp_path)])
    glyphs = glyphs_of(face, 40)
    for character in "amnu":
        (enter_column, enter_row), (leave_column, leave_row) = glyphs.joints(character)
        assert enter_column < leave_column <= glyphs[character].advance
        assert -glyphs.ascent / 2 <= enter_row <= 0 and -glyphs.ascent / 4 - 1 <= leave_row <= 0
    assert glyphs.joints(" ") == (None, None)
