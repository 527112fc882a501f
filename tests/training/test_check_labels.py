"""Labels of a reader's lines are checked before training, some at a time, and all of them are counted."""

import pytest

from hf_vlm.data.lines.character_tokenizer import build_character_tokenizer
from hf_vlm.data.lines.image_text import TextLines
from hf_vlm.models.trocr.processing_trocr import TrOCREncoderDecoderProcessor
from hf_vlm.models.vit.image_processing_vit import VisionTransformerImageProcessor
from hf_vlm.training import trocr
from hf_vlm.training.trocr import check_labels


@pytest.fixture
def processor():
    tokenizer = build_character_tokenizer(alphabet=" abc")
    return TrOCREncoderDecoderProcessor(VisionTransformerImageProcessor(), tokenizer, max_label_length=6)


def lines(*texts):
    return TextLines([b""] * len(texts), texts, [f"lines, row {number}" for number in range(len(texts))])


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 100])
def test_labels_are_checked_alike_however_many_at_a_time(processor, monkeypatch, caplog, at_a_time):
    monkeypatch.setattr(trocr, "TEXTS_AT_A_TIME", at_a_time)
    check_labels(lines("a", "bxc", "cab", "xxa", "b"), processor)
    assert "lines, row 0 and on: 3 of 11 tokens are unknown to the tokenizer." in caplog.text
    with pytest.raises(
        ValueError, match="lines, row 4: a text with characters that the tokenizer knows is wanted, got 'xyz'"
    ):
        check_labels(lines("a", "b", "c", "a", "xyz", "abcabc"), processor)
    with pytest.raises(
        ValueError, match="lines, row 3: a label of at most 6 tokens is wanted, got 7 with the end token"
    ):
        check_labels(lines("a", "b", "c", "abcabc", "xyz"), processor)
