import pickle
from dataclasses import replace

import numpy as np
import pytest
from torch.utils.data import DataLoader, Subset

from hf_vlm.data.lines.font_faces import Glyph, find_faces, glyphs_of
from hf_vlm.data.lines.line_looks import Look, _crop, noise_of, print_ink
from hf_vlm.data.lines.line_texts import SHIPPED_SENTENCES
from hf_vlm.data.lines.ocr_lines import _DRAWING_HEIGHTS, LineRenderer
from tests.data.line_files import SENTENCES, write_font


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return find_faces([write_font(tmp_path_factory.mktemp("fonts"))])


def same(left, right):
    return left["text"] == right["text"] and np.array_equal(np.asarray(left["image"]), np.asarray(right["image"]))


def test_a_line_is_a_function_of_seed_and_index(faces):
    one, two, other = (LineRenderer(SENTENCES, faces, seed=seed) for seed in (5, 5, 6))
    forward, backward = [one[index] for index in range(20)], [two[index] for index in reversed(range(20))][::-1]
    assert all(same(left, right) for left, right in zip(forward, backward, strict=True))
    assert not any(same(forward[index], other[index]) for index in range(20))
    assert len({line["image"].tobytes() for line in forward}) == 20


def test_forked_workers_draw_the_same_lines(faces):
    renderer = LineRenderer(SENTENCES, faces, seed=5)
    loader = DataLoader(
        Subset(renderer, range(12)), batch_size=3, num_workers=2, collate_fn=list, multiprocessing_context="fork"
    )
    drawn = [line for batch in loader for line in batch]
    assert all(same(line, renderer[index]) for index, line in enumerate(drawn))


@pytest.mark.slow  # a spawned process imports torch anew
def test_spawned_workers_draw_the_same_lines(faces):
    renderer = LineRenderer(SENTENCES, faces, seed=5)
    loader = DataLoader(
        Subset(renderer, range(8)), batch_size=4, num_workers=1, collate_fn=list, multiprocessing_context="spawn"
    )
    drawn = [line for batch in loader for line in batch]
    assert all(same(line, renderer[index]) for index, line in enumerate(drawn))


def test_a_copy_through_pickle_draws_the_same(faces):
    renderer = LineRenderer(SENTENCES, faces, seed=5)
    assert same(pickle.loads(pickle.dumps(renderer))[3], renderer[3])


@pytest.mark.parametrize("kind", ["print", "typewriter", "fax", "photocopy", "receipt", "pen"])
def test_lines_of_every_kind_show_ink_on_paper_within_the_height(faces, kind):
    # One face stands for all kinds here; what differs is how it is set, printed and scanned.
    as_kind = [replace(face, kind="print" if kind in ("fax", "photocopy") else kind) for face in faces]
    renderer = LineRenderer(SENTENCES, as_kind, kinds={kind: 1.0}, height=32)
    for index in range(40):
        line = renderer[index]
        image = line["image"]
        assert line["kind"] == kind and line["face"] == "Aileron"
        assert image.mode == "L" and 8 <= image.height <= 32 and image.width >= 8
        grey = np.asarray(image, dtype=np.float32)
        assert np.percentile(grey, 99) - grey.min() > 20  # something can be seen


def test_characters_that_no_face_has_are_neither_drawn_nor_claimed(faces):
    renderer = LineRenderer(["Müßig äöü €5"], faces)
    for index in range(100):
        assert set(renderer[index]["text"]) <= faces[0].characters


def test_only_characters_of_the_alphabet_are_drawn(faces):
    renderer = LineRenderer(SENTENCES, faces, alphabet="abcdefghijklmnopqrstuvwxyz ")
    for index in range(100):
        assert set(renderer[index]["text"]) <= set("abcdefghijklmnopqrstuvwxyz ")


def test_length_can_be_asked_for(faces):
    renderer = LineRenderer(SENTENCES, faces, max_characters=50)
    for asked in (1, 10, 50, 500):
        lengths = [len(renderer.render(index, num_characters=asked)["text"]) for index in range(50)]
        assert max(lengths) <= min(asked, 50)
        assert np.mean(lengths) >= 0.7 * min(asked, 50)


@pytest.mark.parametrize("asked", [4.0, 12.0])
def test_shape_can_be_asked_for(faces, asked):
    renderer = LineRenderer(SENTENCES * 3, faces)
    images = [renderer.render(index, aspect=asked)["image"] for index in range(80)]
    aspects = np.array([image.width / image.height for image in images])
    assert np.median(aspects) == pytest.approx(asked, rel=0.2)
    assert np.mean(np.abs(aspects - asked) < 0.45 * asked) > 0.9


def test_accents_of_capitals_are_not_cut_off(faces):
    # Pillow's font has no accents: one is made up, a bar that stands clear above the letters with nothing below it.
    face = replace(faces[0], characters=faces[0].characters | {"Ü"})
    for height in _DRAWING_HEIGHTS:
        glyphs = glyphs_of(face, height)
        bar = np.full((height // 6, height // 2), 255, dtype=np.uint8)
        glyphs["Ü"] = Glyph(bar, 0, -glyphs.ascent - height // 4, height * 0.6)
    renderer = LineRenderer(["ÜÜÜÜ"], [face], kinds={"print": 1.0}, alphabet="Ü")
    for index in range(150):
        grey = np.asarray(renderer[index]["image"], dtype=np.float32)
        assert np.median(grey[grey.shape[0] // 2 :]) - grey.min() > 30  # darker than the paper somewhere


def test_no_usable_face_and_unknown_kinds_are_refused(tmp_path, faces):
    with pytest.raises(ValueError, match="must hold a font with Latin letters"):
        LineRenderer(SENTENCES, [tmp_path])
    with pytest.raises(ValueError, match="`kinds` must be of print, .*, pen, got pent. Did you mean `pen`"):
        LineRenderer(SENTENCES, faces, kinds={"pent": 1.0})
    with pytest.raises(ValueError, match="got print faces only"):
        LineRenderer(SENTENCES, faces, kinds={"pen": 1.0})


def test_texts_of_letters_that_no_face_has_are_refused(faces):
    with pytest.raises(ValueError, match="`faces` must have the characters of the texts, such as 'о'"):
        LineRenderer(["Мороз и солнце, ооо"], faces, alphabet="Морзислнце, ")


def test_without_a_file_the_shipped_sentences_are_drawn(faces):
    prose = " ".join(SHIPPED_SENTENCES.read_text(encoding="utf-8").split())
    lines = [LineRenderer(faces=faces).render(index, num_characters=30)["text"] for index in range(20)]
    assert sum(line in prose for line in lines) > 5


def band(look, columns=600):
    """How strokes 3 px wide come out of print_ink: grey levels, float (40, columns)."""
    ink = np.zeros((40, columns), dtype=np.uint8)
    for left in range(10, columns, 20):
        ink[8:32, left : left + 3] = 255
    return np.asarray(print_ink(ink, look, noise_of(0), np.random.default_rng(0)), dtype=np.float32)


def test_a_fax_is_of_two_levels_and_loses_whole_rows():
    look = Look(paper=255, ink=0, fax_rows=16, fax_columns=33, toner=0.4)
    grey = band(look)
    assert np.mean((grey < 5) | (grey > 250)) > 0.7  # the rest is the edges that scaling up made
    lossy = band(replace(look, dropouts=0.3))
    row_changes = np.abs(lossy - grey)[10:30].mean(axis=1)
    assert row_changes.max() > 20 and np.count_nonzero(row_changes == 0) >= 2


def test_more_generations_of_a_copy_are_harder_and_toner_decides_the_weight():
    def ink_share(**settings):
        return np.mean(band(Look(paper=255, ink=0, **settings)) < 128)

    plain = ink_share()
    assert ink_share(generations=4, toner=0.3) > 1.15 * plain  # thickened
    assert ink_share(generations=4, toner=0.6) < 0.85 * plain  # broken
    one, four = (band(Look(paper=255, ink=0, blur=1.5, generations=count, toner=0.4)) for count in (1, 4))
    assert np.mean((four > 60) & (four < 195)) < np.mean((one > 60) & (one < 195))


def test_the_black_edge_of_a_copy_covers_no_letter():
    plain, edged = band(Look(paper=255, ink=0)), band(Look(paper=255, ink=0, edge=0.5))
    added = edged.shape[1] - plain.shape[1]
    assert added >= 20
    kept = [edged[:, added:], edged[:, :-added]]
    assert any(np.array_equal(part, plain) for part in kept)
    assert (np.concatenate([edged[:, :12], edged[:, -12:]], axis=1).mean(axis=0) < 5).sum() >= 8


def test_noise_goes_on_beyond_its_bank():
    bank = np.arange(12.0).reshape(3, 4)
    piece = _crop(bank, 5, 9, np.random.default_rng(0))
    assert np.array_equal(piece, np.tile(bank, (2, 3))[:5, :9])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kinds": {"print": -1.0}}, "`kinds` must have weights of 0 or more, got -1.0 for `print`"),
        ({"kinds": {"print": 1.0, "pen": float("nan")}}, "`kinds` must have weights of 0 or more, got nan for `pen`"),
        ({"kinds": {}}, "`kinds` must have a weight above 0, got {}"),
        ({"kinds": {"print": 0}}, "`kinds` must have a weight above 0, got {'print': 0}"),
        ({"max_characters": 0}, "`max_characters` must be 1 or more, got 0"),
    ],
)
def test_setting_that_can_not_be_meant_is_refused(faces, settings, message):
    with pytest.raises(ValueError, match=message):
        LineRenderer(SENTENCES, faces, **settings)


def test_faces_may_be_one_path(tmp_path):
    file = write_font(tmp_path)
    for given in (file, str(file), str(tmp_path)):
        assert [face.family for face in LineRenderer(SENTENCES, given).faces] == ["Aileron"]
