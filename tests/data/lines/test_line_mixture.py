import numpy as np
import pytest
from PIL import Image

from hf_vlm.data.lines.font_faces import find_faces
from hf_vlm.data.lines.line_mixture import LineMixture
from hf_vlm.data.lines.ocr_lines import LineRenderer
from tests.data.line_files import SENTENCES, write_font


class Rows(list):
    """Rows of widths 1 to 20 times their height, in no order of width, named after themselves."""

    def __init__(self, name, count=100):
        super().__init__(
            {"image": Image.new("L", (int(10 * (1 + 19 * i / max(count - 1, 1))), 10)), "text": f"{name}{i}"}
            for i in np.random.default_rng(0).permutation(count)
        )


@pytest.fixture(scope="module")
def renderer(tmp_path_factory):
    return LineRenderer(SENTENCES * 3, find_faces([write_font(tmp_path_factory.mktemp("fonts"))]), height=24)


def texts(mixture, indices):
    return [mixture[index]["text"] for index in indices]


def same(left, right):
    return left["text"] == right["text"] and left["image"].tobytes() == right["image"].tobytes()


def test_an_item_is_a_function_of_seed_and_index(renderer):
    def mixture(seed):
        return LineMixture([(Rows("a"), 1.0, True)], renderer, seed=seed, length=200, group_size=8)

    one, two = mixture(1), mixture(1)
    picked = [150, 3, 77, 4]
    assert all(same(one[index], two[index]) for index in [*picked, *reversed(picked)])
    assert texts(one, range(40)) != texts(mixture(2), range(40))


def test_sources_are_taken_by_weight(renderer):
    mixture = LineMixture(
        [(Rows("a"), 3.0, False), (Rows("b"), 1.0, False), (Rows("c"), 0.0, False)],
        renderer,
        renderer_weight=0.0,
        length=2000,
    )
    names = [text[0] for text in texts(mixture, range(2000))]
    assert names.count("a") == pytest.approx(1500, abs=100)
    assert names.count("b") == pytest.approx(500, abs=100)


def test_rows_are_drawn_evenly_whatever_their_width():
    mixture = LineMixture([(Rows("a"), 1.0, False)], length=6000, group_size=4)
    counts = np.unique(texts(mixture, range(6000)), return_counts=True)[1]
    assert len(counts) == 100  # each row is met
    assert counts.max() < 3 * counts.mean()


def test_a_group_has_lines_of_like_shape(renderer):
    mixture = LineMixture([(Rows("a"), 1.0, True)], renderer, length=640, group_size=16)
    spreads, wholes = [], []
    for group in range(20):
        images = [mixture[group * 16 + index]["image"] for index in range(16)]
        aspects = np.array([image.width / image.height for image in images])
        spreads.append(1 - aspects.mean() / aspects.max())  # the share of a batch that is padding
        wholes.append(aspects.mean())
    assert np.mean(spreads) < 0.35
    assert max(wholes) > 2 * min(wholes)


def test_the_first_items_are_short():
    mixture = LineMixture([(Rows("a"), 1.0, False)], length=20_000, group_size=16, short_first=4000)
    widths = [
        np.mean([mixture[i]["image"].width for i in range(start, start + 800)]) for start in (0, 1600, 3200, 8000)
    ]
    assert widths == sorted(widths)
    assert widths[0] < 0.5 * widths[-1]


def test_only_sources_that_ask_for_it_are_augmented():
    row = {"image": Image.effect_noise((60, 20), 60), "text": "x"}
    plain, changed = (LineMixture([([row], 1.0, augment)], length=4) for augment in (False, True))
    assert plain[0]["image"].tobytes() == row["image"].tobytes()
    assert changed[0]["image"].tobytes() != row["image"].tobytes()


def test_augmentations_go_by_name_and_reach_drawn_lines_only_when_asked(renderer):
    row = {"image": Image.effect_noise((60, 20), 60), "text": "x"}
    by_name = {name: LineMixture([([row], 1.0, name)], length=20) for name in ("mild", "da2", "randaugment")}
    true = LineMixture([([row], 1.0, True)], length=20)
    assert all(same(true[index], by_name["mild"][index]) for index in range(20))
    for name in ("da2", "randaugment"):
        changed = [by_name[name][index]["image"].tobytes() != row["image"].tobytes() for index in range(20)]
        assert 5 <= sum(changed) < 20
    plain, da2 = (LineMixture(renderer=renderer, renderer_augment=name, length=30) for name in (False, "da2"))
    assert texts(plain, range(30)) == texts(da2, range(30))
    assert 15 <= sum(not same(plain[index], da2[index]) for index in range(30)) < 30
    with pytest.raises(ValueError, match="got 'da'. Did you mean `da2`?"):
        LineMixture([([row], 1.0, "da")], length=4)


def test_iteration_ends_at_the_length():
    mixture = LineMixture([(Rows("a"), 1.0, False)], length=7)
    assert len(mixture) == len(list(mixture)) == 7
    with pytest.raises(IndexError, match=r"must be in \[0, 7\), got 7"):
        mixture[7]


def test_nothing_to_take_from_is_refused(renderer):
    with pytest.raises(ValueError, match="must have a weight above 0"):
        LineMixture(length=5)
    with pytest.raises(ValueError, match="must be 0 or more, got -1"):
        LineMixture([(Rows("a"), -1.0, False)], length=5)
    with pytest.raises(ValueError, match="got none in source 1"):
        LineMixture([(Rows("a"), 1.0, False), ([], 1.0, False)], length=5)
    with pytest.raises(ValueError, match="`group_size` must be 1 or more"):
        LineMixture([(Rows("a"), 1.0, False)], length=5, group_size=0)
