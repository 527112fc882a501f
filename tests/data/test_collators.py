from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from hf_vlm.data.collators import ConversationCollator, LineCollator


def processor(images, text, return_tensors):
    assert return_tensors == "pt"
    return {
        "pixel_values": torch.tensor([[float(image.width)] for image in images]),
        "labels": torch.tensor([[len(line), -100] for line in text]),
    }


class Model:
    def prepare_decoder_input_ids_from_labels(self, labels):
        return labels.roll(1, dims=1).masked_fill(labels.roll(1, dims=1) == -100, 0)


EXAMPLES = [
    {"image": Image.new("L", (3, 1)), "text": "ab", "source": "x"},
    {"image": Image.new("L", (5, 1)), "text": ""},
]


def test_examples_go_through_the_processor_in_order():
    batch = LineCollator(processor)(EXAMPLES)
    assert batch["pixel_values"].tolist() == [[3.0], [5.0]]
    assert batch["labels"].tolist() == [[2, -100], [0, -100]]
    assert set(batch) == {"pixel_values", "labels", "sources"}


def test_sources_come_along_where_lines_have_them():
    assert LineCollator(processor)(EXAMPLES)["sources"] == ["x", "a row without a source"]
    assert "sources" not in LineCollator(processor)(EXAMPLES[1:])


def test_a_model_adds_its_decoder_inputs():
    batch = LineCollator(processor, model=Model())(EXAMPLES)
    assert batch["decoder_input_ids"].tolist() == [[0, 2], [0, 0]]


@pytest.mark.parametrize("name", ["label_smoothing", "ctc_loss_weight"])
def test_loss_of_the_model_that_the_trainer_would_replace_is_refused(name):
    model = Model()
    model.config = SimpleNamespace(**{name: 0.1})
    with pytest.raises(ValueError, match=f"`{name}`=0.1 in the model's config beside Trainer's"):
        LineCollator(processor, model=model)


def test_example_without_a_text_is_named():
    with pytest.raises(ValueError, match="got example 1 of the batch without text. Set `remove_unused_columns=False`"):
        LineCollator(processor)([EXAMPLES[0], {"image": EXAMPLES[0]["image"]}])


def encoded(tokens, labels, **pictures):
    return {
        "input_ids": torch.tensor(tokens),
        "labels": torch.tensor(labels),
        "source": f"chat.json:{tokens[0]}",
        **pictures,
    }


def test_conversations_are_padded_on_the_right():
    batch = ConversationCollator(9, is_packed=False)([encoded([1, 2, 3], [-100, 2, 3]), encoded([4], [4])])
    assert set(batch) == {"input_ids", "labels", "attention_mask"}
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [4, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert {value.dtype for value in batch.values()} == {torch.int64}


def test_conversations_are_padded_on_the_left_to_a_multiple():
    collate = ConversationCollator(9, is_packed=False, padding_side="left", pad_to_multiple_of=4)
    batch = collate([encoded([1, 2, 3], [-100, 2, 3]), encoded([4], [4])])
    assert batch["input_ids"].tolist() == [[9, 1, 2, 3], [9, 9, 9, 4]]
    assert batch["labels"].tolist() == [[-100, -100, 2, 3], [-100, -100, -100, 4]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]
    assert collate([encoded([1, 2, 3, 4], [1, 2, 3, 4])])["input_ids"].shape == (1, 4)


def test_packed_conversations_lie_in_one_row_and_know_where_they_begin():
    examples = [encoded([1, 2, 3], [1, 2, 3]), encoded([4], [4]), encoded([5, 6], [-100, 6])]
    batch = ConversationCollator(9, is_packed=True)([examples[:2], examples[2:]])
    assert set(batch) == {"input_ids", "labels", "position_ids"}  # a mask would hide the positions from the model
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6]]
    assert batch["labels"].tolist() == [[-100, 2, 3, -100, -100, 6]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert examples[0]["labels"].tolist() == [1, 2, 3]  # the examples themselves stay as they are


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("kind", ["pixel_values", "image_features"])
def test_pictures_come_in_order_of_the_conversations(kind, is_packed):
    def pictures(*numbers):
        shape = (len(numbers), 3, 1, 1) if kind == "pixel_values" else (len(numbers), 2, 4)
        return {kind: torch.ones(shape) * torch.tensor(numbers).view(-1, *[1] * (len(shape) - 1))}

    items = [[encoded([1], [1], **pictures(7.0, 8.0)), encoded([2], [2])], [encoded([3], [3], **pictures(9.0))]]
    batch = ConversationCollator(0, is_packed=is_packed)(items)
    assert batch[kind].flatten(1)[:, 0].tolist() == [7.0, 8.0, 9.0]
    assert batch[kind].shape[1:] == ((3, 1, 1) if kind == "pixel_values" else (2, 4))
    assert len({"pixel_values", "image_features"} & set(batch)) == 1


def test_pixels_beside_features_are_refused_by_their_sources():
    items = [
        encoded([1], [1], pixel_values=torch.zeros(1, 3, 2, 2)),
        encoded([2], [2]),
        encoded([3], [3], image_features=torch.zeros(1, 2, 4)),
    ]
    with pytest.raises(ValueError, match=r"pixels of chat\.json:1, and features of chat\.json:3\. Compute"):
        ConversationCollator(0, is_packed=False)(items)


@pytest.mark.parametrize("is_packed", [False, True])
def test_sources_come_along_when_asked_for(is_packed):
    items = [[encoded([1], [1]), encoded([2, 3], [2, 3])], [encoded([4], [4])]]
    batch = ConversationCollator(0, is_packed=is_packed, keep_sources=True)(items)
    assert batch["sources"] == ["chat.json:1", "chat.json:2", "chat.json:4"]
    assert "sources" not in ConversationCollator(0, is_packed=is_packed)(items)


def test_conversation_collator_refuses_settings_that_mean_nothing():
    with pytest.raises(ValueError, match="got 8 with `is_packed=True`"):
        ConversationCollator(0, is_packed=True, pad_to_multiple_of=8)
    with pytest.raises(ValueError, match="got 0 with `is_packed=False`"):
        ConversationCollator(0, is_packed=False, pad_to_multiple_of=0)
    with pytest.raises(ValueError, match="got 'middle'"):
        ConversationCollator(0, is_packed=False, padding_side="middle")
