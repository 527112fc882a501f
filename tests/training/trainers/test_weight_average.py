import pytest
import torch
from torch import nn

from hf_vlm.blocks.codebook import Codebook
from hf_vlm.training.trainers.weight_average import WeightAverage


def steps_of(model, average, values):
    for value in values:
        with torch.no_grad():
            model.weight.fill_(value)
        average.update()


def test_average_is_the_recursion_by_hand():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.9)
    steps_of(model, average, [1.0, 2.0, 4.0])
    average.apply()
    assert model.weight.item() == pytest.approx(0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * 4.0)


def test_applied_gives_the_weights_back_even_after_an_error():
    model = nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, decay=0.5)
    steps_of(model, average, [1.0, 3.0])
    with pytest.raises(KeyError), average.applied():
        assert model.weight.item() == 2.0
        raise KeyError
    assert model.weight.item() == 3.0


def test_saved_average_goes_on_exactly(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    whole = WeightAverage(model, decay=0.99)
    steps_of(model, whole, [0.1, 0.2])
    whole.save(tmp_path)
    resumed = WeightAverage(model, decay=0.99)
    resumed.load(tmp_path)
    steps_of(model, whole, [0.7])
    steps_of(model, resumed, [0.7])
    whole.apply()
    wanted = model.weight.clone()
    resumed.apply()
    assert torch.equal(model.weight, wanted)


def test_checkpoint_without_an_average_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"average.safetensors.*--no-resume"):
        WeightAverage(nn.Linear(1, 1), decay=0.9).load(tmp_path)


def test_average_of_half_precision_weights_keeps_small_steps():
    model = nn.Linear(1, 1, bias=False).bfloat16()
    average = WeightAverage(model, decay=0.999)
    steps_of(model, average, [1.0] + [2.0] * 1000)
    average.apply()
    assert model.weight.item() == pytest.approx(2 - 0.999**1000, rel=1e-2)  # in bf16 it would have stayed 1


def test_codewords_that_are_running_means_are_averaged_too():
    model = Codebook(2, 1, kmeans_iterations=0)
    average = WeightAverage(model, decay=0.5)
    for value in (1.0, 3.0):
        model.codewords.fill_(value)
        average.update()
    average.apply()
    assert model.codewords.flatten().tolist() == [2.0, 2.0]
