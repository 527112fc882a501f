from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from hf_vlm.data.collators import LineCollator


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
    assert set(batch) == {"pixel_values", "labels"}


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
