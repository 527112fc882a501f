"""Languages are told by their script and their commonest words."""

import pytest

from hf_vlm.data.instructions.text_language import LANGUAGES, is_language

# The first article of the Universal Declaration of Human Rights, in public hands.
TEXTS = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with reason and "
    "conscience and should act "
    "towards one another in a spirit of brotherhood.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
    "begabt und sollen einander "
    "im Geist der Brüderlichkeit begegnen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et "
    "de conscience et doivent "
    "agir les uns envers les autres dans un esprit de fraternité.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón "
    "y conciencia, deben "
    "comportarse fraternalmente los unos con los otros.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di ragione e "
    "di coscienza e devono agire "
    "gli uni verso gli altri in spirito di fratellanza.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "ja": "すべての人間は、生れながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ar": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق.",
}


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("written", TEXTS)
def test_text_is_of_its_own_language_alone(language, written):
    assert is_language(TEXTS[written], language) == (language == written)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("text", ["No", "pizza", "Taxi 12", "Ja"])
def test_few_words_get_the_benefit_of_the_doubt(text, language):
    assert is_language(text, language)


@pytest.mark.parametrize("text", ["", "12 345", "?!"])
def test_text_without_letters_is_of_no_language(text):
    assert not is_language(text, "en")


def test_a_foreign_word_does_no_harm():
    assert is_language('The sign says "Bäckerei" and "東京" in large letters above the door of the shop.', "en")
