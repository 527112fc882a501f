from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.nn import functional as F
from torch.utils.data import BatchSampler, SequentialSampler

from hf_vlm.training.trainers.validation_loss import num_real_items
from hf_vlm.training.trocr import build_trainer
from tests.tiny_lines import recipe_of


@pytest.mark.parametrize("num_processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_rows_of_the_set_are_told_from_those_that_fill_up_the_last_batch(num_processes, batch_size):
    """Accelerate's own way of sharing the rows is the oracle: what is counted is every row, once."""
    for num_rows in range(1, 14):
        counted = []
        for rank in range(num_processes):
            batches = list(
                BatchSamplerShard(
                    BatchSampler(SequentialSampler(range(num_rows)), batch_size, drop_last=False), num_processes, rank
                )
            )
            for number, batch in enumerate(batches):
                state = SimpleNamespace(
                    end_of_dataloader=number == len(batches) - 1, remainder=num_rows % (num_processes * batch_size)
                )
                trainer = SimpleNamespace(
                    accelerator=SimpleNamespace(gradient_state=state), args=SimpleNamespace(process_index=rank)
                )
                counted += batch[: num_real_items(trainer, batch_size)]
        assert sorted(counted) == list(range(num_rows))


@pytest.mark.parametrize("overrides", [(), ("training.label_smoothing_factor=0.2",)])
def test_loss_of_an_evaluation_is_the_mean_over_tokens_whatever_the_batches(recipe_sections, overrides):
    told = []
    for size in (1, 2, 3):
        settings = (f"training.per_device_eval_batch_size={size}", *overrides)
        trainer = build_trainer(recipe_of(recipe_sections, *settings))
        told.append(trainer.evaluate()["eval_loss"])
    assert told == pytest.approx([told[0]] * 3, abs=1e-6)

    smoothing = trainer.args.label_smoothing_factor
    losses = []
    for index in range(len(trainer.eval_dataset)):
        batch = trainer.data_collator([trainer.eval_dataset[index]])
        batch.pop("sources", None)
        with torch.no_grad():
            logits = trainer.model.eval()(**batch).logits[0]
        losses.append(F.cross_entropy(logits, batch["labels"][0], reduction="none", label_smoothing=smoothing))
    assert told[0] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    means = torch.stack([loss.mean() for loss in losses]).mean()
    assert len({len(loss) for loss in losses}) > 1 and abs(float(means) - told[0]) > 1e-4
