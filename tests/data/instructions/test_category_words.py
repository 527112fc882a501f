"""Words of categories: plurals, what may be meant, and what is surely meant."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_vlm.data.instructions import category_words
from hf_vlm.data.instructions.category_words import (
    COCO_CATEGORIES,
    categories_in,
    category_words_in,
    mentions,
    own_words,
    plural,
)


@pytest.mark.parametrize(
    ("one", "several"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("couch", "couches"),
        ("box", "boxes"),
        ("cherry", "cherries"),
        ("toy", "toys"),
        ("knife", "knives"),
        ("person", "people"),
        ("fireman", "firemen"),
        ("woman", "women"),
        ("human", "humans"),
        ("child", "children"),
        ("mouse", "mice"),
        ("computer mouse", "computer mice"),
        ("sheep", "sheep"),
        ("skis", "skis"),
        ("broccoli", "broccoli"),
        ("wine glass", "wine glasses"),
        ("baseball glove", "baseball gloves"),
        ("pair of scissors", "pairs of scissors"),
        ("piece of cake", "pieces of cake"),
        ("potato", "potatoes"),
        ("tv", "tvs"),
        ("hot dog", "hot dogs"),
    ],
)
def test_plural_is_the_word_people_use(one, several):
    assert plural(one) == several


def test_categories_are_cocos_eighty():
    assert len(COCO_CATEGORIES) == 80
    assert {"person", "stop sign", "hair drier", "tv", "skis"} < set(COCO_CATEGORIES)


@pytest.mark.parametrize("category", COCO_CATEGORIES)
def test_category_is_mentioned_by_its_name_and_plural_in_any_case(category):
    assert mentions(f"Here is a {category.upper()}.", category)
    assert mentions(f"Here are {plural(category)}, I see.", category)
    assert not mentions("Nothing.", category)


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("Two ladies talk.", "person"),
        ("A sofa.", "couch"),
        ("A glass of beer", "wine glass"),
        ("An animal sleeps", "dog"),
        ("a firetruck", "truck"),
        ("Vehicles wait", "car"),
        ("kittens", "cat"),
        ("a red swivel chairs", "swivel chair"),
        ("a chair", "swivel chair"),
        ("a wine\nglass", "wine glass"),
    ],
)
def test_text_may_speak_of_a_category_by_other_words(text, category):
    assert mentions(text, category)


@pytest.mark.parametrize(
    ("text", "category"), [("a scar", "car"), ("carpet", "car"), ("catalog", "cat"), ("the bust", "bus")]
)
def test_part_of_a_word_is_no_mention(text, category):
    assert not mentions(text, category)


@pytest.mark.parametrize(
    ("text", "categories"),
    [
        ("A man eats a hot dog.", {"person", "hot dog"}),
        ("A teddy bear on a chair", {"teddy bear", "chair"}),
        ("Two dogs and a puppy.", {"dog"}),
        ("People wait at the train station.", {"person"}),
        ("An orange bus", {"bus"}),
        ("Oranges in a bowl", {"orange", "bowl"}),
        ("They bear a load; a glass, an animal, a table.", set()),
        ("He rides a mountain bike past a stop sign.", {"bicycle", "stop sign"}),
        ("A baby elephant", {"elephant"}),
        ("Two baby bears and a baby", {"bear", "person"}),
        ("A baseball bat and three baseballs", {"baseball bat", "sports ball"}),
        ("A baseball field.", set()),
        ("Bears and a bear", {"bear"}),
        ("a pepperoni pizza in a pizza box", {"pizza"}),
        ("manhole, mandate, germane", set()),
        ("", set()),
    ],
)
def test_categories_are_those_that_words_surely_mean(text, categories):
    assert categories_in(text) == categories


def test_mentions_have_their_places():
    (dog, sofa) = category_words_in("Two Dogs on a SOFA")
    assert dog == (frozenset({"dog"}), "dogs", 4, 8)
    assert sofa == (frozenset({"couch"}), "sofa", 14, 18)


def test_own_words_are_names_and_synonyms_but_no_kinds():
    own = own_words()
    assert own["bikes"] == own["bicycle"] == "bicycle"
    assert own["people"] == "person" and "women" not in own
    assert own["tvs"] == "tv" and "orange" not in own


_WORDS = [*category_words._sure_names(), *category_words._OTHER_THINGS, "a", "the", "ran", "dogs,", "-"]


@given(st.lists(st.sampled_from(_WORDS), max_size=8))
def test_words_are_found_as_one_pattern_of_all_of_them_finds_them(words):
    text = " ".join(words).lower()
    forms = set(category_words._sure_names()) | category_words._forms(category_words._OTHER_THINGS)
    pattern = re.compile(rf"(?<!\w)(?:{category_words._alternatives(forms)})(?!\w)")
    found = [match.span() for match in category_words._sure_matches(text)]
    assert found == [match.span() for match in pattern.finditer(text)]
