"""A format prompt is a preset by name or a text; LLaVA-1.5's are word for word those of its paper."""

import pytest

from hf_vlm.data.tasks.format_prompts import FORMAT_PROMPTS, format_prompt, with_format_prompt


def test_presets_are_the_words_of_llava_1_5():
    """Table 8 of the paper, and docs/Evaluation.md of its code."""
    assert FORMAT_PROMPTS["short-answer"] == "Answer the question using a single word or phrase."
    assert FORMAT_PROMPTS["option-letter"] == "Answer with the option's letter from the given choices directly."
    assert FORMAT_PROMPTS["caption"] == "Provide a one-sentence caption for the provided image."
    first, second = FORMAT_PROMPTS["unanswerable"].split("\n")
    assert first == "When the provided information is insufficient, respond with 'Unanswerable'."
    assert second == FORMAT_PROMPTS["short-answer"]


def test_prompt_is_a_preset_a_sentence_or_nothing():
    assert format_prompt("caption") == FORMAT_PROMPTS["caption"]
    assert format_prompt(" Say it briefly. ") == "Say it briefly."
    assert format_prompt(None) == format_prompt("none") == format_prompt("") == ""


def test_misspelt_preset_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="got 'short-answr'. Did you mean `short-answer`"):
        format_prompt("short-answr")
    with pytest.raises(ValueError, match="got 'quux'. There are `none`, `short-answer`"):
        format_prompt("quux")


def test_prompt_stands_on_a_line_of_its_own_behind_the_question():
    assert with_format_prompt("How many?", "Be brief please.") == "How many?\nBe brief please."
    assert with_format_prompt("How many?", None) == "How many?"
    assert with_format_prompt("", "caption") == FORMAT_PROMPTS["caption"]
